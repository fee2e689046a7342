"""Noise schedules against numpy and MONAI's scheduler."""

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from MissingModalitySynthLib.diffusion.schedules import SCHEDULES, add_noise, alphas_cumprod


def test_the_default_is_the_scaled_linear_schedule_of_the_paper():
    betas = np.linspace(np.sqrt(0.0015), np.sqrt(0.0195), 1000) ** 2
    alpha_bar = alphas_cumprod().numpy()
    np.testing.assert_allclose(alpha_bar, np.cumprod(1 - betas), rtol=1e-5)
    assert alpha_bar[0] == pytest.approx(1 - 0.0015)
    assert alpha_bar[-1] / alpha_bar[-2] == pytest.approx(1 - 0.0195)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [10, 1000])
def test_signal_only_ever_decreases(schedule, steps):
    alpha_bar = alphas_cumprod(schedule, steps)
    assert alpha_bar.shape == (steps,)
    assert alpha_bar.dtype == torch.float64
    assert 0 < alpha_bar[-1] < alpha_bar[0] < 1
    assert (alpha_bar.diff() < 0).all()


def test_the_linear_schedule_is_that_of_ho_et_al():
    alpha_bar = alphas_cumprod("linear_beta", 1000, beta_start=1e-4, beta_end=0.02).numpy()
    np.testing.assert_allclose(alpha_bar, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), rtol=1e-5)


def test_the_cosine_schedule_is_that_of_nichol_and_dhariwal():
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    expected = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))
    np.testing.assert_allclose(alphas_cumprod("cosine").numpy()[:990], expected[:990], rtol=1e-3)


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"'quadratic'.*scaled_linear_beta"):
        alphas_cumprod("quadratic")


def test_adding_noise_equals_monai_with_a_time_for_each_item():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 2, 4, 4, 4, generator=generator)
    times = torch.tensor([0, 400, 999])
    monai = DDPMScheduler(1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195)
    ours = add_noise(clean, noise, alphas_cumprod()[times])
    assert ours.dtype == clean.dtype
    torch.testing.assert_close(ours, monai.add_noise(clean, noise, times), atol=1e-5, rtol=1e-5)


def test_noisy_data_have_the_mean_and_variance_of_the_forward_process():
    generator = torch.Generator().manual_seed(0)
    n, time, mean, deviation = 200_000, 300, 0.7, 0.4
    clean = mean + deviation * torch.randn(1, n, generator=generator)
    a = alphas_cumprod()[time]
    noisy = add_noise(clean, torch.randn(1, n, generator=generator), a[None])
    variance = (a * deviation**2 + 1 - a).item()
    assert noisy.mean().item() == pytest.approx(a.sqrt().item() * mean, abs=4 * (variance / n) ** 0.5)
    assert noisy.var().item() == pytest.approx(variance, rel=4 * (2 / n) ** 0.5)
