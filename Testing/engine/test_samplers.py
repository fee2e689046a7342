"""DDPM and DDIM step by step against MONAI's schedulers, and against closed forms for Gaussian data.

For data x_0 ~ N(m, s^2) the best denoiser is known: with a = alpha_bar_t,
E[noise | x_t] = sqrt(1 - a) (x_t - sqrt(a) m) / (a s^2 + 1 - a), so that every step is linear in x and the mean and the
variance of the samples follow from a recursion over the schedule.
"""

import math

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from MissingModalitySynthLib.diffusion.samplers import ddim, ddpm, gaussian, spaced_times
from MissingModalitySynthLib.diffusion.schedules import alphas_cumprod

MEAN, DEVIATION = 0.7, 0.4
BETAS = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_model(x, t):
    """Neither linear nor the right one: the samplers must agree for any model."""
    return torch.tanh(x) + 0.1 * math.cos(t)


def exact_model(alpha_bar):
    def predict(x, t):
        a = alpha_bar[t].item()
        return (1 - a) ** 0.5 * (x - a**0.5 * MEAN) / (a * DEVIATION**2 + 1 - a)

    return predict


def walk(sampler, x, alpha_bar, **options):
    """All states x_t that the model sees, and the sample."""
    states = []

    def predict(x, t):
        states.append(x)
        return some_model(x, t)

    sample = sampler(predict, x, alpha_bar, **options)
    return [*states, sample]


def walk_monai(scheduler, x, **options):
    states = [x]
    for t in scheduler.timesteps.tolist():
        states.append(scheduler.step(some_model(states[-1], t), t, states[-1], **options)[0])
    return states


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("num_times", [25, 100])
def test_every_ddpm_step_equals_monai(num_times):
    x = gaussian(torch.empty(2, 3, 4, 4, 4), generator(1))
    scheduler = DDPMScheduler(num_times, clip_sample=False, **BETAS)
    scheduler.set_timesteps(num_times)
    ours = walk(ddpm, x, alphas_cumprod(num_steps=num_times), generator=generator())
    assert_same(ours, walk_monai(scheduler, x, generator=generator()))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_ddim_step_equals_monai(eta):
    """With all T times only: for fewer, MONAI takes T // steps for the distance of times that linspace has spread over
    0 to T - 1, so that its noise levels are not those of its own times."""
    x = gaussian(torch.empty(2, 3, 4, 4, 4), generator(1))
    scheduler = DDIMScheduler(50, clip_sample=False, **BETAS)
    scheduler.set_timesteps(50)
    ours = walk(ddim, x, alphas_cumprod(num_steps=50), steps=50, eta=eta, generator=generator())
    theirs = walk_monai(scheduler, x, eta=eta, generator=generator())
    assert_same(ours, theirs)


@pytest.mark.parametrize("steps", [7, 40])
def test_ddim_with_eta_1_is_ddpm_at_any_number_of_steps(steps):
    x, alpha_bar = gaussian(torch.empty(1000), generator(1)), alphas_cumprod()
    a = ddim(some_model, x, alpha_bar, steps=steps, eta=1.0, generator=generator())
    b = ddpm(some_model, x, alpha_bar, steps=steps, generator=generator())
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def noise_levels(alpha_bar, times):
    """Pairs (a, a') of each step, from independent indexing."""
    a = alpha_bar.numpy()[times]
    return zip(a, np.append(a[1:], 1.0), strict=True)


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_ddim_of_gaussian_data_is_the_linear_map_in_closed_form(steps):
    alpha_bar = alphas_cumprod()
    times = np.round(np.linspace(999, 0, steps)).astype(int)
    slope, offset = 1.0, 0.0
    for a, b in noise_levels(alpha_bar, times):
        factor = (np.sqrt(a * b) * DEVIATION**2 + np.sqrt((1 - a) * (1 - b))) / (a * DEVIATION**2 + 1 - a)
        slope, offset = factor * slope, np.sqrt(b) * MEAN + factor * (offset - np.sqrt(a) * MEAN)
    x = gaussian(torch.empty(1000, dtype=torch.float64), generator())
    sample = ddim(exact_model(alpha_bar), x, alpha_bar, steps=steps, generator=generator())
    torch.testing.assert_close(sample, slope * x + offset, atol=1e-6, rtol=1e-5)


def test_ddim_of_gaussian_data_has_their_mean_and_variance():
    alpha_bar, n = alphas_cumprod(), 20_000
    x = gaussian(torch.empty(n), generator())
    sample = ddim(exact_model(alpha_bar), x, alpha_bar, steps=200, generator=generator())
    assert sample.mean().item() == pytest.approx(MEAN, abs=0.02)  # x_T keeps 1 % of the mean, pure noise does not
    assert sample.std().item() == pytest.approx(DEVIATION, rel=0.05)


@pytest.mark.parametrize("steps", [20, 1000])
def test_ddpm_of_gaussian_data_has_their_mean_and_variance(steps):
    alpha_bar, n = alphas_cumprod(), 20_000
    times = np.round(np.linspace(999, 0, steps)).astype(int)
    variance, mean = 1.0, 0.0
    for a, b in noise_levels(alpha_bar, times):
        total = a * DEVIATION**2 + 1 - a
        clean_slope = np.sqrt(a) * DEVIATION**2 / total  # E[x_0 | x_t] = MEAN + clean_slope (x_t - sqrt(a) MEAN)
        slope = (np.sqrt(b) * (1 - a / b) * clean_slope + np.sqrt(a / b) * (1 - b)) / (1 - a)
        mean = np.sqrt(b) * MEAN + slope * (mean - np.sqrt(a) * MEAN)
        variance = slope**2 * variance + (1 - b) / (1 - a) * (1 - a / b)
    x = gaussian(torch.empty(n), generator())
    sample = ddpm(exact_model(alpha_bar), x, alpha_bar, steps=steps, generator=generator(1))
    assert sample.mean().item() == pytest.approx(mean, abs=4 * (variance / n) ** 0.5)
    assert sample.var().item() == pytest.approx(variance, rel=4 * (2 / n) ** 0.5)
    if steps == 1000:  # many small steps make the "fixed small" variance the right one
        assert mean == pytest.approx(MEAN, abs=0.01)
        assert variance**0.5 == pytest.approx(DEVIATION, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 3, 200, 999, 1000])
def test_times_fall_from_the_last_to_the_first(steps):
    times = spaced_times(1000, steps)
    assert len(set(times)) == len(times) == steps
    assert times[0] == 999
    assert times == sorted(times, reverse=True)
    if steps > 1:
        assert times[-1] == 0
        gaps = -np.diff(times)
        assert gaps.max() - gaps.min() <= 1


def test_no_more_times_are_taken_than_there_are():
    assert spaced_times(10, 50) == list(range(9, -1, -1))


@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_samplers_announce_each_step_and_stop_when_told(sampler):
    seen = []

    def on_step(step, steps):
        seen.append((step, steps))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(some_model, torch.zeros(8), alphas_cumprod(), steps=5, generator=generator(), on_step=on_step)
    assert seen == [(0, 5), (1, 5), (2, 5)]


def test_noise_is_a_function_of_the_seed_alone():
    like = torch.zeros(2, 3, 4, 5, 6)
    expected = gaussian(like, generator(7))
    assert torch.equal(gaussian(like.contiguous(memory_format=torch.channels_last_3d), generator(7)), expected)
    assert gaussian(like.bfloat16(), generator(7)).dtype == torch.bfloat16
    assert torch.equal(gaussian(like.bfloat16(), generator(7)), expected.bfloat16())
