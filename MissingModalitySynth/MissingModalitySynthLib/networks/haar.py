"""The Haar wavelet as a first stage: lossless, without training, no ceiling on the quality of the second stage."""

from __future__ import annotations

import torch
from einops import rearrange

from .first_stage import FirstStage


class HaarFirstStage(FirstStage):
    """Orthonormal 3D Haar wavelet packet (Haar 1910; as a latent space for diffusion: Friedrich et al., WDM, 2024).

    One level turns every 2x2x2 block of voxels into 8 coefficients, the first of which is the (scaled) mean; a further
    level does the same to every channel. The transform is orthonormal, so a squared error in the latents before
    whitening is the squared error of the image.

    Args:
        levels: 0 (the image itself), 1 (8 channels, factor 2) or 2 (64 channels, factor 4).
    """

    def __init__(self, levels: int = 1) -> None:
        super().__init__(channels=8**levels, factor=2**levels)
        self.levels = levels
        low_high = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
        matrix = torch.kron(torch.kron(low_high, low_high), low_high)
        self.register_buffer("matrix", matrix, persistent=False)

    def raw_encode(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, 1, X, Y, Z) to wavelet coefficients (B, 8**levels, X/2**levels, ...)."""
        for _ in range(self.levels):
            blocks = rearrange(image, "b c (x i) (y j) (z k) -> b c x y z (i j k)", i=2, j=2, k=2)
            image = rearrange(self._transform(blocks), "b c x y z w -> b (c w) x y z")
        return image

    def raw_decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Wavelet coefficients (B, 8**levels, X, Y, Z) to the image (B, 1, X*2**levels, ...); the exact inverse."""
        for _ in range(self.levels):
            blocks = self._transform(rearrange(latents, "b (c w) x y z -> b c x y z w", w=8))
            latents = rearrange(blocks, "b c x y z (i j k) -> b c (x i) (y j) (z k)", i=2, j=2, k=2)
        return latents

    def _transform(self, blocks: torch.Tensor) -> torch.Tensor:
        """The matrix is symmetric and orthogonal, hence its own inverse; bfloat16 would make the transform lossy."""
        with torch.autocast(blocks.device.type, enabled=False):
            return blocks.float() @ self.matrix
