"""The bridge: a flow from target-like latents to target latents in very few steps.

ALDM conditions a diffusion from pure noise on the target-like latents; since these already lie near the target, the
bridge starts at them instead (Brownian bridge: Li et al., BBDM, 2023; without noise: flow matching, Lipman et al.,
2023)::

    x_tau = (1 - tau) z_src^tar + tau z_tar + sigma sqrt(tau (1 - tau)) epsilon,       tau in [0, 1]
    v*    = z_tar - z_src^tar
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .samplers import OnStep, gaussian, no_report

Velocity = Callable[[torch.Tensor, float], torch.Tensor]


def interpolate(
    start: torch.Tensor, end: torch.Tensor, tau: torch.Tensor, sigma: float, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """x_tau of the bridge between ``start`` and ``end`` (B, C, X, Y, Z), at the times ``tau`` (B,) in [0, 1]."""
    tau = tau.view(-1, *[1] * (start.ndim - 1))
    x = (1 - tau) * start + tau * end
    if sigma > 0:
        x = x + sigma * (tau * (1 - tau)).sqrt() * noise
    return x


def preconditioning(
    tau: torch.Tensor, sigma: float, spread: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales that leave to the network only what is unknown, of unit variance in and out, at every time.

    With v* ~ N(0, spread^2) and the departure x_tau - start = tau v* + sigma sqrt(tau (1 - tau)) epsilon::

        v = skip (x_tau - start) + scale_out F(scale_in (x_tau - start), start, tau)
        skip        = spread^2 / q,   q = tau spread^2 + (1 - tau) sigma^2      (the best linear estimate)
        scale_out^2 = spread^2 sigma^2 (1 - tau) / q                            (the variance that it leaves)
        scale_in^2  = 1 / (tau q)

    as Karras et al. (EDM, 2022, appendix B.6) derive for diffusion and Zhou et al. (DDBM, 2024) for bridges. Without
    noise the departure holds v* itself, and the network would have nothing to do after its first step; then nothing is
    skipped.

    Args:
        tau: times (B,) in [0, 1).
        sigma: noise of the bridge.
        spread: standard deviation of v* by channel, roughly, (C,).

    Returns:
        skip, scale_in and scale_out, each (B, C, 1, 1, 1).
    """
    tau, spread = tau.view(-1, 1, 1, 1, 1), spread.view(1, -1, 1, 1, 1)
    if sigma == 0:
        scale_out = spread.expand(len(tau), -1, 1, 1, 1)
        return torch.zeros_like(scale_out), 1 / scale_out, scale_out
    q = tau * spread**2 + (1 - tau) * sigma**2
    scale_in = (tau * q).clamp_min(1e-12).rsqrt()  # at tau = 0 there is no departure to scale
    return spread**2 / q, scale_in, spread * sigma * ((1 - tau) / q).sqrt()


def sample_bridge(
    velocity: Velocity,
    start: torch.Tensor,
    *,
    steps: int,
    sigma: float = 0.0,
    generator: torch.Generator,
    on_step: OnStep = no_report,
) -> torch.Tensor:
    """Walk the bridge from ``start`` (tau = 0) to a sample of the target (tau = 1) in ``steps`` equal steps.

    ``velocity(x_tau, tau)`` estimates v*; ``start + v`` is then the estimate of the end. Each step samples the Brownian
    bridge from x_tau that is pinned at that estimate::

        x_tau' ~ N( x_tau + (tau' - tau) / (1 - tau) (end - x_tau),  sigma^2 (tau' - tau) (1 - tau') / (1 - tau) )

    With ``sigma = 0`` and x_tau on the line this is the Euler step x + (tau' - tau) v. The last step returns the
    estimate itself. With one step the result is the network's one-shot prediction, whatever sigma.
    """
    x = start
    for i in range(steps):
        on_step(i, steps)
        tau, tau_next = i / steps, (i + 1) / steps
        end = start + velocity(x, tau)
        x = x + (tau_next - tau) / (1 - tau) * (end - x)
        variance = sigma**2 * (tau_next - tau) * (1 - tau_next) / (1 - tau)
        if variance > 0:
            x = x + variance**0.5 * gaussian(x, generator)
    return x
