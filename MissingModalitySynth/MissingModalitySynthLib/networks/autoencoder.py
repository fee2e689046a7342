"""Learned first stages: the VQ autoencoder of ALDM and its KL ablation, made of MONAI's encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.nets.autoencoderkl import Decoder, Encoder
from torch import nn
from torch.nn import functional as F

from .first_stage import FirstStage


class Codebook(EMAQuantizer):
    """MONAI's vector quantizer with exponential moving averages, without its (voxels x codes) matrices in memory.

    At 48x48x36 latents and 8192 codes the distances and the one-hot matrix of the parent take 2.7 GB each; here the
    nearest code is found chunk by chunk and the averages are summed by index. From the same state the results are those
    of the parent (van den Oord et al. 2017, section 3.2 and appendix A.1).

    Args:
        num_embeddings: number of codes.
        embedding_dim: channels of a code.
        chunk: voxels whose distances are held in memory at a time.
        **options: as in ``monai.networks.layers.vector_quantizer.EMAQuantizer``.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, chunk: int = 8192, **options) -> None:
        super().__init__(spatial_dims=3, num_embeddings=num_embeddings, embedding_dim=embedding_dim, **options)
        self.chunk = chunk
        # The parent counts from 0, which flings every code that the first batch leaves unused far away for good (its
        # weight is divided by epsilon); counting from 1 leaves unused codes where they are.
        self.ema_cluster_size.fill_(1.0)

    @torch.no_grad()
    def nearest(self, flat: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code (N,) for each row of ``flat`` (N, embedding_dim)."""
        codes = self.embedding.weight
        half_norm = codes.square().sum(dim=1) / 2  # argmin |x - e|^2 = argmin |e|^2 / 2 - <x, e>
        return torch.cat(
            [torch.addmm(half_norm, rows, codes.t(), alpha=-1).argmin(dim=1) for rows in flat.split(self.chunk)]
        )

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantize (B, C, X, Y, Z). Returns the codes (straight-through gradient), the commitment loss, and the indices
        (B, X, Y, Z). In training mode the codebook follows the inputs."""
        with torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.float()
            flat = inputs.movedim(1, -1).reshape(-1, self.embedding_dim)
            indices = self.nearest(flat)
            if self.training:
                self._follow(flat.detach(), indices)
            indices = indices.view(inputs.shape[0], *inputs.shape[2:])
            quantized = self.embed(indices)
            loss = self.commitment_cost * F.mse_loss(quantized.detach(), inputs)
            return inputs + (quantized - inputs).detach(), loss, indices

    @torch.no_grad()
    def _follow(self, flat: torch.Tensor, indices: torch.Tensor) -> None:
        counts = torch.bincount(indices, minlength=self.num_embeddings).to(flat.dtype)
        sums = torch.zeros_like(self.ema_w).index_add_(0, indices, flat)
        self.distributed_synchronization(counts, sums)
        self.ema_cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.ema_w.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        total = self.ema_cluster_size.sum()
        smoothed = (self.ema_cluster_size + self.epsilon) / (total + self.num_embeddings * self.epsilon) * total
        self.embedding.weight.copy_(self.ema_w / smoothed.unsqueeze(1))


class _Autoencoder(FirstStage):
    """MONAI's convolutional encoder and decoder, without attention: its cost is linear in the voxels."""

    def __init__(
        self, channels: Sequence[int], latent_channels: int, moments: int, num_res_blocks: int, norm_num_groups: int
    ) -> None:
        super().__init__(channels=latent_channels, factor=2 ** (len(channels) - 1))
        # The widest activations are those of the last level: input, output and two temporaries of a residual block.
        self.decoder_bytes_per_voxel = 4 * 4 * (channels[0] + channels[min(1, len(channels) - 1)])
        common = {
            "spatial_dims": 3,
            "channels": tuple(channels),
            "num_res_blocks": (num_res_blocks,) * len(channels),
            "norm_num_groups": norm_num_groups,
            "norm_eps": 1e-6,
            "attention_levels": (False,) * len(channels),
            "with_nonlocal_attn": False,
        }
        self.encoder = Encoder(in_channels=1, out_channels=moments, **common)
        self.decoder = Decoder(in_channels=latent_channels, out_channels=1, **common)
        self.before = nn.Conv3d(moments, moments, kernel_size=1)
        self.after = nn.Conv3d(latent_channels, latent_channels, kernel_size=1)


class VQAutoencoder(_Autoencoder):
    """VQGAN's autoencoder in 3D (Esser et al. 2021; ALDM section 3.1 and Table A).

    Args:
        channels: width of each level; every level after the first halves the resolution.
        latent_channels: channels of a code ("embedding size" in Table A).
        num_codes: size of the codebook (Table A: 8192).
        num_res_blocks: residual blocks per level.
        norm_num_groups: groups of the group normalisations.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128),
        latent_channels: int = 4,
        num_codes: int = 8192,
        num_res_blocks: int = 1,
        norm_num_groups: int = 16,
    ) -> None:
        super().__init__(channels, latent_channels, latent_channels, num_res_blocks, norm_num_groups)
        self.codebook = Codebook(num_codes, latent_channels)

    def raw_encode(self, image: torch.Tensor) -> torch.Tensor:
        """Latents before quantization, as ALDM's second stage uses them: it quantizes when it decodes."""
        return self.before(self.encoder(image))

    def raw_decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Quantize the latents, then decode them."""
        quantized, _, _ = self.codebook(latents)
        return self.decoder(self.after(quantized.to(latents.dtype)))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Training pass: reconstruction, commitment loss, code indices (B, X, Y, Z)."""
        quantized, loss, indices = self.codebook(self.raw_encode(image))
        return self.decoder(self.after(quantized)), loss, indices


class KLAutoencoder(_Autoencoder):
    """KL-regularised autoencoder (Kingma & Welling 2014; Rombach et al. 2022; ablation (d) of ALDM Table 3)."""

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128),
        latent_channels: int = 4,
        num_res_blocks: int = 1,
        norm_num_groups: int = 16,
    ) -> None:
        super().__init__(channels, latent_channels, 2 * latent_channels, num_res_blocks, norm_num_groups)

    def moments(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and logarithm of the variance of q(z | image), float32, each (B, latent_channels, X/f, Y/f, Z/f)."""
        mean, log_variance = self.before(self.encoder(image)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def raw_encode(self, image: torch.Tensor) -> torch.Tensor:
        """The mean of q(z | image): encoding is deterministic, so that equal inputs give equal results."""
        return self.moments(image)[0]

    def raw_decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents."""
        return self.decoder(self.after(latents))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Training pass: reconstruction from a sample of q(z | image), and KL(q || N(0, 1)) per latent element."""
        mean, log_variance = self.moments(image)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
        return self.raw_decode(latents), kl.mean()
