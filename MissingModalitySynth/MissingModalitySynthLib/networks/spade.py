"""MS-SPADE: latents of any source to target-like latents, switched to the target (ALDM section 3.1, Table B)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from .norms import InstanceNorm


class SwitchableModulation(nn.Module):
    """Spatially adaptive normalisation with one style per target, modulated by the feature itself (ALDM eq. 1)::

        x = gamma_tar(h) * (h - mu_c) / sigma_c + beta_tar(h)

    mu_c and sigma_c are the mean and standard deviation of channel c over the volume (instance normalisation); gamma
    and beta are convolutions of h. ``gamma = 1 + conv(h)``, so that an untrained block is near an instance
    normalisation.

    The targets share the convolutions and differ in a scale and a shift of their hidden features (FiLM, Perez et al.
    2018): a further target costs ``2 * hidden`` parameters and no time. With ``shared=False`` every target has
    convolutions of its own, as published.

    Args:
        channels: channels of the feature.
        num_targets: number of targets.
        hidden: channels between the two convolutions that give gamma and beta.
        shared: one set of convolutions for all targets, or one each.
    """

    def __init__(self, channels: int, num_targets: int, hidden: int, shared: bool = True) -> None:
        super().__init__()
        self.shared = shared
        branches = 1 if shared else num_targets
        self.normalise = InstanceNorm(channels, affine=False)
        self.trunk = nn.ModuleList(nn.Conv3d(channels, hidden, kernel_size=3, padding=1) for _ in range(branches))
        self.gamma = nn.ModuleList(nn.Conv3d(hidden, channels, kernel_size=3, padding=1) for _ in range(branches))
        self.beta = nn.ModuleList(nn.Conv3d(hidden, channels, kernel_size=3, padding=1) for _ in range(branches))
        self.film = nn.Embedding(num_targets, 2 * hidden) if shared else None
        if self.film is not None:
            nn.init.normal_(self.film.weight, std=0.5)  # targets must differ from the first step on

    def forward(self, h: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Feature (B, channels, X, Y, Z) and target indices (B,) to the modulated feature."""
        normalised = self.normalise(h)
        if self.shared:
            return self._modulate(h, normalised, 0, self.film(target))
        items = [self._modulate(h[i : i + 1], normalised[i : i + 1], t) for i, t in enumerate(target.tolist())]
        return torch.cat(items)

    def _modulate(self, h, normalised, branch, film=None):
        features = self.trunk[branch](h)
        if film is not None:
            scale, shift = film.to(features.dtype)[:, :, None, None, None].chunk(2, dim=1)
            features = features * (1 + scale) + shift
        features = F.relu(features)
        return (1 + self.gamma[branch](features)) * normalised + self.beta[branch](features)


class _ResidualBlock(nn.Module):
    """x + two times (3x3x3 convolution, ReLU, normalisation), as in the rows "ResBlock" and "SPADEBlock" of Table B."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1)
        self.skip = (
            nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, kernel_size=1)
        )

    def residual(self, x, norm1, norm2):
        h = norm1(F.relu(self.conv1(x)))
        return self.skip(x) + norm2(F.relu(self.conv2(h)))


class _InstanceNormBlock(_ResidualBlock):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.norm1 = InstanceNorm(out_channels)
        self.norm2 = InstanceNorm(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.residual(x, self.norm1, self.norm2)


class _SpadeBlock(_ResidualBlock):
    def __init__(self, in_channels: int, out_channels: int, **modulation) -> None:
        super().__init__(in_channels, out_channels)
        self.norm1 = SwitchableModulation(out_channels, **modulation)
        self.norm2 = SwitchableModulation(out_channels, **modulation)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.residual(x, lambda h: self.norm1(h, target), lambda h: self.norm2(h, target))


class MSSPADE(nn.Module):
    """The MS-SPADE network of ALDM Table B: 7x7x7 stem, residual blocks, switchable blocks, 7x7x7 output.

    Args:
        latent_channels: channels of the latents, in and out.
        num_targets: number of targets to switch between.
        stem: channels after the stem (Table B: 128).
        residual: channels of the residual blocks (Table B: 256, 256).
        spade: channels of the switchable blocks (Table B: 256, 256, 256, 128).
        hidden: channels inside every modulation.
        shared: see :class:`SwitchableModulation`.
        kernel: edge of the first and last convolutions (Table B: 7).
    """

    def __init__(
        self,
        latent_channels: int,
        num_targets: int,
        stem: int = 128,
        residual: Sequence[int] = (256, 256),
        spade: Sequence[int] = (256, 256, 256, 128),
        hidden: int = 64,
        shared: bool = True,
        kernel: int = 7,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(latent_channels, stem, kernel_size=kernel, padding=kernel // 2), InstanceNorm(stem), nn.ReLU()
        )
        widths = [stem, *residual]
        self.residual_blocks = nn.Sequential(*(_InstanceNormBlock(a, b) for a, b in pairwise(widths)))
        widths = [widths[-1], *spade]
        self.spade_blocks = nn.ModuleList(
            _SpadeBlock(a, b, num_targets=num_targets, hidden=hidden, shared=shared) for a, b in pairwise(widths)
        )
        self.out = nn.Conv3d(widths[-1], latent_channels, kernel_size=kernel, padding=kernel // 2)

    def forward(self, latents: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Source latents (B, C, X, Y, Z), target indices (B,) -> target-like latents (B, C, X, Y, Z)."""
        h = self.residual_blocks(self.stem(latents))
        for block in self.spade_blocks:
            h = block(h, target)
        return self.out(h)


def fuse(target_like: Sequence[torch.Tensor]) -> torch.Tensor:
    """Target-like latents of every available source, to one: their mean.

    All are estimates of the same target latents, so any non-empty set of sources is allowed and a missing one needs no
    stand-in: the mean over the sources that are there is the masked mean over all.
    """
    if not target_like:
        raise ValueError("At least one source is needed.")
    return torch.stack(list(target_like)).mean(dim=0)
