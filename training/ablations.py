"""ALDM with parts left out, rows (a) to (c) of Table 3: for comparisons, not for packages."""

from __future__ import annotations

import torch
from torch import nn

from MissingModalitySynthLib.diffusion.samplers import OnStep, ddim, gaussian
from MissingModalitySynthLib.diffusion.schedules import add_noise
from MissingModalitySynthLib.translators.aldm import AldmTranslator

SDEDIT_STRENGTH = 0.6  # of the noise's full length, at which the sampler begins without a palette


class SourceLatents(nn.Module):
    """In the place of MS-SPADE: the latents as they are, whatever the target."""

    def forward(self, latents: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return latents


class AblatedTranslator(AldmTranslator):
    """ALDM in paper mode without some of its parts.

    Args:
        use_spade: False leaves the latents of the source as they are.
        use_palette: False hides the target-like latents from the denoiser. The sampler then begins at their noised
            version instead of pure noise (Meng et al., SDEdit, 2022), the only way in which it learns of the source.
        use_denoiser: False takes the target-like latents for the result.
        **options: as in :class:`~MissingModalitySynthLib.translators.aldm.AldmTranslator`.
    """

    def __init__(self, *, use_spade: bool = True, use_palette: bool = True, use_denoiser: bool = True, **options):
        super().__init__(**options)
        self.use_denoiser, self.use_palette = use_denoiser, use_palette
        if not use_spade:
            self.spade = SourceLatents()
        if not use_palette:
            self.denoiser.register_forward_pre_hook(_hide_target_like)

    def sample(
        self, condition: torch.Tensor, target: str, *, steps: int, generator: torch.Generator, on_step: OnStep
    ) -> torch.Tensor:
        if not self.use_denoiser:
            return condition
        if self.use_palette:
            return super().sample(condition, target, steps=steps, generator=generator, on_step=on_step)
        y = self.index(target, condition)
        alpha_bar = self.alpha_bar[: int(SDEDIT_STRENGTH * len(self.alpha_bar))]
        start = add_noise(condition, gaussian(condition, generator), alpha_bar[-1:].float().to(condition.device))

        def predict(x: torch.Tensor, t: int) -> torch.Tensor:
            return self.denoiser(x, condition, torch.full((x.shape[0],), float(t), device=x.device), y).to(x.dtype)

        return ddim(
            predict,
            start,
            alpha_bar,
            steps=min(steps, len(alpha_bar)),
            eta=self.eta,
            generator=generator,
            on_step=on_step,
        )


def _hide_target_like(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    noisy, target_like, *rest = inputs
    return noisy, torch.zeros_like(target_like), *rest
