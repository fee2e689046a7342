"""What every first stage has in common: images in [-1, 1] to whitened latents and back."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


class FirstStage(nn.Module, ABC):
    """Base of the first stages.

    Latents are whitened per channel, so that the second stage sees zero mean and unit variance whatever the first stage
    is (Rombach et al. 2022, section 4.3.2 and appendix G, one number per channel instead of one for all).

    Attributes:
        channels: channels of the latents.
        factor: voxels of the image per voxel of the latents, along each axis.
        decoder_bytes_per_voxel: estimate of the memory that decoding takes, per voxel of the image.
        latent_mean, latent_std: buffers of shape (C,), measured by :meth:`whiten_on`; 0 and 1 until then.
    """

    decoder_bytes_per_voxel = 16

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.channels = channels
        self.factor = factor
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))

    @abstractmethod
    def raw_encode(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, 1, X, Y, Z) to latents (B, channels, X/factor, Y/factor, Z/factor) before whitening."""

    @abstractmethod
    def raw_decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`raw_encode`."""

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, 1, X, Y, Z) in [-1, 1] to whitened latents (B, channels, X/factor, Y/factor, Z/factor).

        Every axis of the image must be a multiple of ``factor``. The latents are float32 under autocast too: rounded
        statistics would not be undone by :meth:`decode`.
        """
        latents = self.raw_encode(image).float()
        return (latents - _per_channel(self.latent_mean)) / _per_channel(self.latent_std)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Whitened latents to an image (B, 1, X, Y, Z), about [-1, 1], not clipped."""
        return self.raw_decode(latents.float() * _per_channel(self.latent_std) + _per_channel(self.latent_mean))

    @torch.no_grad()
    def whiten_on(self, images: torch.Tensor) -> None:
        """Set ``latent_mean`` and ``latent_std`` from a representative batch of images (B, 1, X, Y, Z) in [-1, 1]."""
        latents = self.raw_encode(images).float()
        self.latent_mean.copy_(latents.mean(dim=(0, 2, 3, 4)))
        self.latent_std.copy_(latents.std(dim=(0, 2, 3, 4)).clamp_min(1e-6))


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1, 1)
