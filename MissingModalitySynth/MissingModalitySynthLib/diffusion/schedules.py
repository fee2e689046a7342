"""Noise schedules of the forward process, from MONAI."""

from __future__ import annotations

import torch
from monai.networks.schedulers.scheduler import NoiseSchedules

SCHEDULES = ("scaled_linear_beta", "linear_beta", "cosine", "sigmoid_beta")


def alphas_cumprod(schedule: str = "scaled_linear_beta", num_steps: int = 1000, **options: float) -> torch.Tensor:
    """The products alpha_bar_t = prod_{s<=t} (1 - beta_s) of a forward process (Ho et al. 2020, eq. 4).

    Args:
        schedule: one of :data:`SCHEDULES`. The default is ALDM's: sqrt(beta) linear from sqrt(0.0015) to sqrt(0.0195).
        num_steps: length T of the process.
        **options: ``beta_start`` and ``beta_end`` where the schedule takes them.

    Returns:
        float64 tensor (T,), decreasing from nearly 1.

    Raises:
        ValueError: for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"Unknown noise schedule '{schedule}'; known are {', '.join(SCHEDULES)}.")
    if schedule == "scaled_linear_beta":
        options = {"beta_start": 0.0015, "beta_end": 0.0195, **options}
    with torch.device("cpu"):  # a table of numbers, wherever the networks are built
        betas = NoiseSchedules[schedule](num_steps, **options)
    if isinstance(betas, tuple):  # MONAI's cosine schedule returns betas, alphas and their products
        betas = betas[0]
    return torch.cumprod(1.0 - betas.double(), dim=0)


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Sample q(x_t | x_0): sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (Ho et al. 2020, eq. 4).

    Args:
        clean, noise: (B, C, X, Y, Z).
        alpha_bar: (B,), one value per item.
    """
    alpha_bar = alpha_bar.view(-1, *[1] * (clean.ndim - 1))
    return (alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise).to(clean.dtype)
