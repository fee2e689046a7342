"""Samplers from noise to data. ``predict(x_t, t)`` returns the noise in ``x_t`` at the integer time t (0 to T-1)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import DivergenceError

_HIDDEN = 0.1  # alpha_bar below which a clean estimate is the network's error, enlarged

Predict = Callable[[torch.Tensor, int], torch.Tensor]
OnStep = Callable[[int, int], None]


def no_report(step: int, steps: int) -> None:
    """Default of ``on_step``: called before every step with (steps done, steps in all); may raise to stop."""


def gaussian(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal noise of the shape of ``like``, drawn on the CPU: a seed means the same on every device."""
    return torch.randn(like.shape, generator=generator).to(like)


def _good(clean: torch.Tensor, a: float, step: int, steps: int, good: torch.Tensor | None) -> torch.Tensor | None:
    """The clean estimate at alpha_bar = ``a``, or None where noise hides it; of the step before is ``good``."""
    if not clean.isfinite().all():
        raise DivergenceError(step, steps, good)
    return clean if a > _HIDDEN else None


def spaced_times(num_times: int, steps: int) -> list[int]:
    """``steps`` times out of 0 to ``num_times - 1``, from the last to 0, evenly spaced ("trailing" end included)."""
    steps = min(steps, num_times)
    if steps == 1:
        return [num_times - 1]
    return torch.linspace(num_times - 1, 0, steps, dtype=torch.float64).round().long().tolist()


def ddim(
    predict: Predict,
    x: torch.Tensor,
    alpha_bar: torch.Tensor,
    *,
    steps: int,
    eta: float = 0.0,
    generator: torch.Generator,
    on_step: OnStep = no_report,
) -> torch.Tensor:
    """Denoising diffusion implicit models (Song et al. 2021, eq. 12 and 16).

    Args:
        predict: the denoiser.
        x: noise x_T to start from, any shape.
        alpha_bar: (T,), from :func:`~.schedules.alphas_cumprod`.
        steps: number of evaluations of the denoiser, at most T.
        eta: 0 is deterministic; 1 gives the variance of DDPM.
        generator: source of the noise that eta > 0 adds.
        on_step: called before every step.

    Returns:
        The sample x_0.

    Raises:
        DivergenceError: a clean estimate is not finite; it holds the one before, if that was more than noise.
    """
    good = None
    times = spaced_times(len(alpha_bar), steps)
    for i, t in enumerate(times):
        on_step(i, len(times))
        a = alpha_bar[t].item()
        a_next = alpha_bar[times[i + 1]].item() if i + 1 < len(times) else 1.0
        noise = predict(x, t)
        clean = (x - (1 - a) ** 0.5 * noise) / a**0.5
        good = _good(clean, a, i + 1, len(times), good)
        sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)) ** 0.5
        x = a_next**0.5 * clean + (1 - a_next - sigma**2) ** 0.5 * noise
        if sigma > 0:
            x = x + sigma * gaussian(x, generator)
    return x


def ddpm(
    predict: Predict,
    x: torch.Tensor,
    alpha_bar: torch.Tensor,
    *,
    steps: int | None = None,
    large: bool = False,
    generator: torch.Generator,
    on_step: OnStep = no_report,
) -> torch.Tensor:
    """Ancestral sampling of denoising diffusion (Ho et al. 2020, eq. 6 and 7, algorithm 2; "fixed small" variance)::

        x_s ~ N( sqrt(a_s) (1 - a_t/a_s) / (1 - a_t) x_0  +  sqrt(a_t/a_s) (1 - a_s) / (1 - a_t) x_t ,
                 (1 - a_s) / (1 - a_t) (1 - a_t/a_s) )

    with a = alpha_bar, s the next smaller time and x_0 the clean estimate.

    Args:
        steps: number of evaluations, all T by default; fewer skip times (Nichol & Dhariwal 2021, section 4).
        large: the variance is 1 - a_t/a_s instead ("fixed large", the other end of what Ho et al. allow).
        predict, x, alpha_bar, generator, on_step: as in :func:`ddim`.

    Returns:
        The sample x_0.

    Raises:
        DivergenceError: a clean estimate is not finite; it holds the one before, if that was more than noise.
    """
    good = None
    times = spaced_times(len(alpha_bar), steps or len(alpha_bar))
    for i, t in enumerate(times):
        on_step(i, len(times))
        a = alpha_bar[t].item()
        a_next = alpha_bar[times[i + 1]].item() if i + 1 < len(times) else 1.0
        clean = (x - (1 - a) ** 0.5 * predict(x, t)) / a**0.5
        good = _good(clean, a, i + 1, len(times), good)
        ratio = a / a_next
        x = (a_next**0.5 * (1 - ratio) * clean + ratio**0.5 * (1 - a_next) * x) / (1 - a)
        variance = (1 - a_next) / (1 - a) * (1 - ratio)
        if variance > 0:
            x = x + (1 - ratio if large else variance) ** 0.5 * gaussian(x, generator)
    return x
