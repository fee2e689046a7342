"""The one-step baseline: one UNet straight from the latents of the sources to those of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..diffusion.samplers import OnStep
from ..networks.configurations import build_first_stage
from ..networks.denoiser import TargetUNet
from .base import Translator


class RegressionTranslator(Translator):
    """A UNet that predicts the target in one pass, from any non-empty set of sources.

    Its input is one slot of latents per modality, zero where the source is not available, and one availability channel
    per modality (on missing inputs: Havaei et al. 2016, Chartsias et al. 2018). The UNet is the diffusion stage's, at
    time 0.

    Args:
        modalities: canonical names, in the order of the networks' indices.
        first_stage: options of :func:`~..networks.configurations.build_first_stage`.
        unet: options of :class:`~..networks.denoiser.TargetUNet`.
    """

    method = "regression"
    default_steps = 1
    iterative = False
    stochastic = False

    def __init__(self, modalities: Sequence[str], first_stage: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
        stage = build_first_stage(first_stage)
        network = TargetUNet(
            len(modalities) * (stage.channels + 1), stage.channels, num_targets=len(modalities), **unet
        )
        super().__init__(modalities, stage, network.factor, unet["channels"][0])
        self.unet = network

    def condition(self, latents: Mapping[str, torch.Tensor], target: str) -> torch.Tensor:
        """Slots of latents and availability channels: (1, M * (C + 1), x, y, z) for M modalities."""
        like = next(iter(latents.values()))
        absent = torch.zeros_like(like)
        slots = [latents.get(modality, absent) for modality in self.modalities]
        flags = [torch.full_like(like[:, :1], float(modality in latents)) for modality in self.modalities]
        return torch.cat(slots + flags, dim=1)

    def sample(
        self, condition: torch.Tensor, target: str, *, steps: int, generator: torch.Generator, on_step: OnStep
    ) -> torch.Tensor:
        """One pass of the UNet, whatever ``steps``; nothing is random."""
        on_step(0, 1)
        time = torch.zeros(condition.shape[0], device=condition.device)
        return self.unet(condition, time, self.index(target, condition)).float()
