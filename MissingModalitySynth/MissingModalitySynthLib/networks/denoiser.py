"""The time-conditioned UNet of the diffusion stage (ALDM section 3.2 and 3.3, Table C), built on MONAI's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import nn
from torch.nn import functional as F


class Denoiser(nn.Module):
    """epsilon_theta(z_src^tar, z_t^tar, t, y) of ALDM eq. 4, or the velocity of the bridge at time tau = t / 1000.

    The one-hot target y is key and value of the cross-attention (ALDM eq. 3). With a single token the softmax is 1 and
    the attention adds ``W_V y`` to every position; it acts on the levels that have attention only. Like the authors'
    released code, an embedding of the target is therefore also added to the time embedding, which reaches every level.

    Args:
        latent_channels: channels of the latents.
        num_targets: length of the one-hot vector.
        channels: width of each level; every level after the first halves the resolution.
        attention: for each level, whether it has self- and cross-attention.
        num_res_blocks: residual blocks per level.
        num_head_channels: channels of an attention head.
        norm_num_groups: groups of the group normalisations.
    """

    def __init__(
        self,
        latent_channels: int,
        num_targets: int,
        channels: Sequence[int] = (128, 256, 512),
        attention: Sequence[bool] = (False, False, True),
        num_res_blocks: int = 1,
        num_head_channels: int = 32,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.num_targets = num_targets
        self.factor = 2 ** (len(channels) - 1)
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=2 * latent_channels,
            out_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            channels=tuple(channels),
            attention_levels=tuple(attention),
            norm_num_groups=norm_num_groups,
            num_head_channels=num_head_channels,
            with_conditioning=True,
            cross_attention_dim=num_targets,
            num_class_embeds=num_targets,
            use_flash_attention=True,
        )

    def forward(
        self, noisy: torch.Tensor, target_like: torch.Tensor, time: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Run the UNet.

        Args:
            noisy: noisy (or interpolated) target latents (B, C, X, Y, Z); every axis a multiple of ``factor``.
            target_like: target-like latents, same shape.
            time: (B,), 0 to 1000.
            target: indices of the targets, (B,).

        Returns:
            (B, C, X, Y, Z).
        """
        one_hot = F.one_hot(target, self.num_targets).to(noisy.dtype)
        x = torch.cat([noisy, target_like], dim=1)
        return self.unet(x, timesteps=time, context=one_hot[:, None, :], class_labels=target)
