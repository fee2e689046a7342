"""The one-step baseline: a plain UNet straight from the sources to the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..diffusion.samplers import OnStep
from ..networks.configurations import build_first_stage
from ..networks.unet import build_unet
from .base import Translator


class RegressionTranslator(Translator):
    """MONAI's BasicUNet, which predicts all targets in one pass from any non-empty set of sources.

    Its input is one slot of latents per modality, zero where the source is not available, and one availability channel
    per modality (on missing inputs: Havaei et al. 2016, Chartsias et al. 2018). Its output is one slot of latents per
    modality, so a training step learns from every contrast of a head at once.

    Args:
        modalities: canonical names, in the order of the networks' slots.
        first_stage: options of :func:`~..networks.configurations.build_first_stage`; best the Haar stage of no level,
            the voxels themselves: in coefficients at half the resolution a map of intensities is hard to learn.
        unet: ``features``, the six widths of MONAI's BasicUNet, multiples of eight.
    """

    method = "regression"
    mode = "one step"
    default_steps = 1
    iterative = False
    stochastic = False
    live_activations = 4

    def __init__(self, modalities: Sequence[str], first_stage: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
        stage = build_first_stage(first_stage)
        super().__init__(modalities, stage, network_factor=16, width=3 * unet["features"][0])
        slots = len(modalities)
        self.unet = build_unet(slots * (stage.channels + 1), slots * stage.channels, **unet)

    def condition(self, latents: Mapping[str, torch.Tensor], target: str) -> torch.Tensor:
        """Slots of latents and availability channels, whatever the target: (B, M * (C + 1), x, y, z), M modalities."""
        like = next(iter(latents.values()))
        absent = torch.zeros_like(like)
        slots = [latents.get(modality, absent) for modality in self.modalities]
        flags = [torch.full_like(like[:, :1], float(modality in latents)) for modality in self.modalities]
        return torch.cat(slots + flags, dim=1)

    def predict(self, condition: torch.Tensor) -> dict[str, torch.Tensor]:
        """Latents (B, C, x, y, z) of every modality."""
        slots = self.unet(condition).float().chunk(len(self.modalities), dim=1)
        return dict(zip(self.modalities, slots, strict=True))

    def sample(
        self, condition: torch.Tensor, target: str, *, steps: int, generator: torch.Generator, on_step: OnStep
    ) -> torch.Tensor:
        """One pass of the UNet, whatever ``steps``; nothing is random."""
        on_step(0, 1)
        return self.predict(condition)[target]
