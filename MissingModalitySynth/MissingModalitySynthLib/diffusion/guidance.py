"""Few steps to an image, from noise or from a noised source, with every clean estimate pulled towards the source.

The pull is the gradient of the local mutual information between the source and the clean estimate, not the noisy state
(as classifier guidance on the clean estimate: Bansal et al., Universal Guidance, 2023)::

    i     = decode(x_0(x_t, t)),    g = grad_i sum LMI(source, i),    |g| its RMS over the head
    x_0'  = x_0 + encode(i + w g / |g|) - encode(i)
    x_s   = sqrt(a_s) x_0' + sqrt(1 - a_s) (x_t - sqrt(a_t) x_0') / sqrt(1 - a_t)        (DDIM: Song et al. 2021)

With a = alpha_bar. Without a pull, from the noised source and with a network that is told nothing else of the source,
this is SDEdit (Meng et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import DivergenceError
from ..networks.first_stage import FirstStage
from .mutual_information import local_mutual_information
from .samplers import OnStep, no_report

LARGEST = 5.0  # RMS of whitened latents, whose standard deviation is 1: beyond, nothing is an image any more


def descending_times(last: int, steps: int) -> list[int]:
    """``steps`` evenly spaced times, the first of them ``last - 1``, the last of them one step above the clean image.

    So the last estimate is made where there is still something to remove, and lies near the mean of what is possible.
    """
    steps = min(steps, last)
    return [round(last * (steps - i) / steps) - 1 for i in range(steps)]


def sample_guided(
    estimate: Callable[[torch.Tensor, int], torch.Tensor],
    x: torch.Tensor,
    alpha_bar: torch.Tensor,
    *,
    times: list[int],
    pull: Callable[[torch.Tensor, float], torch.Tensor] = lambda clean, time: clean,
    on_step: OnStep = no_report,
) -> torch.Tensor:
    """Deterministic steps through ``times`` to the last clean estimate.

    Args:
        estimate: (x_t, t) -> clean estimate x_0, of the shape of ``x``.
        x: state at ``times[0]``, whitened latents of any shape.
        alpha_bar: (T,), from :func:`~.schedules.alphas_cumprod`.
        times: descending, from 0 to T - 1, as of :func:`descending_times`.
        pull: (x_0, time as a fraction of T) -> changed x_0.
        on_step: called before every step.

    Raises:
        DivergenceError: an estimate, before or after the pull, is not finite, or its RMS is above :data:`LARGEST`; it
            holds the one before, which may be the same step's without the pull.
    """
    good = None

    def checked(clean: torch.Tensor, step: int) -> torch.Tensor:
        if not clean.square().mean().sqrt() <= LARGEST:  # so that NaN is caught
            raise DivergenceError(step, len(times), good)
        return clean

    for i, t in enumerate(times):
        on_step(i, len(times))
        good = checked(estimate(x, t), i + 1)
        good = checked(pull(good, (t + 1) / len(alpha_bar)), i + 1)
        if i + 1 < len(times):
            a, a_next = alpha_bar[t].item(), alpha_bar[times[i + 1]].item()
            noise = (x - a**0.5 * good) / (1 - a) ** 0.5
            x = a_next**0.5 * good + (1 - a_next) ** 0.5 * noise
    return good


def towards_information(
    clean: torch.Tensor, source: torch.Tensor, stage: FirstStage, *, weight: float, mask: torch.Tensor, **options
) -> torch.Tensor:
    """One step of steepest ascent of the local mutual information between the source and the decoded estimate.

    The step is taken in the image: among whitened latents the few coarse ones would take nearly all of it.

    Args:
        clean: latents (B, C, x, y, z).
        source: image (B, 1, X, Y, Z) in [-1, 1].
        stage: the first stage of the latents.
        weight: RMS over the head of what is added to the image, in its units.
        mask: bool (B, 1, X, Y, Z), the head.
        **options: of :func:`~.mutual_information.local_mutual_information`.

    Returns:
        The changed latents.
    """
    with torch.inference_mode(False), torch.enable_grad():
        image = stage.decode(clean.detach().clone()).requires_grad_(True)
        information = local_mutual_information(source.clone(), image, mask=mask.clone(), **options)
        (gradient,) = torch.autograd.grad(information.sum(), image)
    image, rms = image.detach(), (gradient.square().sum() / mask.sum()).sqrt()
    return clean + stage.encode(image + weight * gradient / rms.clamp_min(1e-12)) - stage.encode(image)
