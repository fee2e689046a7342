"""ALDM (Kim & Park, WACV 2024): first stage, MS-SPADE, and a diffusion or a bridge to the target latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..diffusion.bridge import preconditioning, sample_bridge
from ..diffusion.samplers import OnStep, ddim, ddpm, gaussian
from ..diffusion.schedules import alphas_cumprod
from ..networks.configurations import build_first_stage
from ..networks.denoiser import Denoiser
from ..networks.spade import MSSPADE, fuse
from .base import Translator

MODES = ("bridge", "paper")
TIME_SCALE = 1000.0  # the UNet's time embedding is made for times between 0 and 1000


class AldmTranslator(Translator):
    """One source to many targets, or many to one, through target-like latents.

    Args:
        modalities: canonical names, in the order of the networks' indices.
        first_stage: options of :func:`~..networks.configurations.build_first_stage`.
        spade: options of :class:`~..networks.spade.MSSPADE`.
        denoiser: options of :class:`~..networks.denoiser.Denoiser`.
        mode: what the denoiser was trained for. ``paper``: the noise (ALDM eq. 2 and 4), sampled from pure noise.
            ``bridge``: the velocity from target-like to target latents, in few steps (``diffusion/bridge.py``).
        steps: default number of steps.
        sigma: noise of the bridge, in units of the latents' standard deviation.
        eta: variance of the paper mode's sampler: 0 is DDIM, 1 with all steps is DDPM.
        schedule: options of :func:`~..diffusion.schedules.alphas_cumprod` for the paper mode.
    """

    method = "aldm"
    iterative = True

    def __init__(
        self,
        modalities: Sequence[str],
        first_stage: Mapping[str, Any],
        spade: Mapping[str, Any],
        denoiser: Mapping[str, Any],
        mode: str = "bridge",
        steps: int = 2,
        sigma: float = 0.0,
        eta: float = 0.0,
        schedule: Mapping[str, Any] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"Unknown mode '{mode}'; known are {', '.join(MODES)}.")
        stage = build_first_stage(first_stage)
        unet = Denoiser(stage.channels, len(modalities), **denoiser)
        super().__init__(modalities, stage, unet.factor, max(spade["stem"], *spade["spade"], denoiser["channels"][0]))
        self.spade = MSSPADE(stage.channels, len(modalities), **spade)
        self.denoiser = unet
        self.mode = mode
        self.default_steps = steps
        self.sigma = sigma
        # how far targets are from target-like latents, by channel; training measures it
        self.register_buffer("spread", torch.ones(stage.channels))
        self.eta = eta
        self.alpha_bar = alphas_cumprod(**(schedule or {}))

    def stochastic(self, steps: int) -> bool:
        """Always from noise, on the bridge only if it is noisy."""
        return self.mode == "paper" or self.sigma > 0

    def condition(self, latents: Mapping[str, torch.Tensor], target: str) -> torch.Tensor:
        """Target-like latents z_src^tar, the mean over the available sources: (1, C, x, y, z)."""
        return fuse([self.spade(z, self.index(target, z)).float() for z in latents.values()])

    def velocity(self, x: torch.Tensor, start: torch.Tensor, tau: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Estimate of v* = z_tar - z_src^tar from x_tau (B, C, x, y, z) at the times ``tau`` (B,); float32."""
        skip, scale_in, scale_out = preconditioning(tau, self.sigma, self.spread)
        departure = x - start
        return skip * departure + scale_out * self.denoiser(scale_in * departure, start, tau * TIME_SCALE, y).float()

    def sample(
        self, condition: torch.Tensor, target: str, *, steps: int, generator: torch.Generator, on_step: OnStep
    ) -> torch.Tensor:
        """Target latents from target-like latents; see :meth:`Translator.sample`."""
        y = self.index(target, condition)

        def times(time: float) -> torch.Tensor:
            return torch.full((condition.shape[0],), float(time), device=condition.device)

        if self.mode == "bridge":
            return sample_bridge(
                lambda x, tau: self.velocity(x, condition, times(tau), y),
                condition,
                steps=steps,
                sigma=self.sigma,
                generator=generator,
                on_step=on_step,
            )

        def evaluate(x: torch.Tensor, t: int) -> torch.Tensor:
            return self.denoiser(x, condition, times(t), y).to(x.dtype)

        noise = gaussian(condition, generator)
        arguments = {"steps": steps, "generator": generator, "on_step": on_step}
        if self.eta == 1.0 and steps >= len(self.alpha_bar):
            return ddpm(evaluate, noise, self.alpha_bar, **arguments)
        return ddim(evaluate, noise, self.alpha_bar, eta=self.eta, **arguments)
