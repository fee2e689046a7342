"""The bridge against closed forms for Gaussian pairs.

For z_tar | z_src ~ N(m, s^2) the state on the bridge, less its mean (1 - tau) z_src + tau m, is a residual r with
variance tau^2 s^2 + sigma^2 tau (1 - tau), and the best estimate of the end is m + k r with
k = s^2 / (tau s^2 + sigma^2 (1 - tau)).
"""

import numpy as np
import pytest
import torch

from MissingModalitySynthLib.diffusion.bridge import interpolate, preconditioning, sample_bridge

SLOPE, OFFSET, DEVIATION = 0.8, 0.3, 0.5
N = 20_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def exact_velocity(start, sigma):
    end_mean = SLOPE * start + OFFSET

    def velocity(x, tau):
        residual = x - (1 - tau) * start - tau * end_mean
        gain = DEVIATION**2 / (tau * DEVIATION**2 + sigma**2 * (1 - tau))
        return end_mean + gain * residual - start

    return velocity


def variance_by_recursion(sigma, steps):
    variance = 0.0
    for i in range(steps):
        tau, step = i / steps, 1 / steps
        gain = DEVIATION**2 / (tau * DEVIATION**2 + sigma**2 * (1 - tau))
        slope = 1 + step * (gain - 1) / (1 - tau)
        variance = slope**2 * variance + sigma**2 * step * (1 - tau - step) / (1 - tau)
    return variance


def samples(sigma, steps):
    start = torch.randn(N, generator=generator(1))
    end = sample_bridge(exact_velocity(start, sigma), start, steps=steps, sigma=sigma, generator=generator())
    return start, end - (SLOPE * start + OFFSET)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 100])
def test_samples_have_the_mean_and_the_variance_of_the_recursion(sigma, steps):
    start, residual = samples(sigma, steps)
    variance = variance_by_recursion(sigma, steps)
    assert residual.mean().item() == pytest.approx(0, abs=4 * (variance / N) ** 0.5 + 1e-6)
    assert residual.var().item() == pytest.approx(variance, rel=4 * (2 / N) ** 0.5, abs=1e-8)
    correlation = (residual * start).mean().item()
    assert correlation == pytest.approx(0, abs=4 * (variance / N) ** 0.5 + 1e-6)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0])
def test_many_steps_give_the_right_conditional_distribution(sigma):
    assert variance_by_recursion(sigma, 1000) == pytest.approx(DEVIATION**2, rel=0.02)
    _, residual = samples(sigma, 200)
    assert residual.var().item() == pytest.approx(DEVIATION**2, rel=0.08)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_one_step_is_the_one_shot_estimate(sigma):
    start = torch.randn(50, generator=generator())
    end = sample_bridge(lambda x, tau: torch.sin(x) + tau, start, steps=1, sigma=sigma, generator=generator())
    torch.testing.assert_close(end, start + torch.sin(start))


@pytest.mark.parametrize("steps", [2, 7])
def test_without_noise_it_is_explicit_euler_towards_the_estimated_end(steps):
    start = np.random.default_rng(0).normal(size=50)

    def velocity(x, tau):
        return np.sin(3 * x) + tau

    x = start.copy()
    for i in range(steps):
        tau = i / steps
        x = x + 1 / steps * (start + velocity(x, tau) - x) / (1 - tau)
    end = sample_bridge(
        lambda x, tau: torch.from_numpy(velocity(x.numpy(), tau)),
        torch.from_numpy(start),
        steps=steps,
        generator=generator(),
    )
    np.testing.assert_allclose(end.numpy(), x, atol=1e-12)


def test_without_noise_and_with_a_constant_velocity_it_walks_the_straight_line():
    start, velocity, seen = torch.zeros(3), torch.tensor([1.0, -2.0, 0.5]), []

    def constant(x, tau):
        seen.append((tau, x.clone()))
        return velocity

    end = sample_bridge(constant, start, steps=4, generator=generator())
    assert [tau for tau, _ in seen] == [0.0, 0.25, 0.5, 0.75]
    for tau, x in seen:
        torch.testing.assert_close(x, tau * velocity)
    torch.testing.assert_close(end, velocity)


def test_the_last_step_returns_the_last_estimate_without_noise():
    start = torch.zeros(1000)
    end = sample_bridge(lambda x, tau: torch.full_like(x, 1 + tau), start, steps=4, sigma=2.0, generator=generator())
    torch.testing.assert_close(end, torch.full_like(end, 1.75))


def test_states_that_training_sees_have_the_marginals_of_the_brownian_bridge():
    tau = torch.tensor([0.0, 0.3, 1.0])
    start, end, sigma = torch.full((3, N), -1.0), torch.full((3, N), 2.0), 0.7
    x = interpolate(start, end, tau, sigma, torch.randn(3, N, generator=generator()))
    for i, t in enumerate(tau.tolist()):
        variance = sigma**2 * t * (1 - t)
        assert x[i].mean().item() == pytest.approx(-1 + 3 * t, abs=4 * (variance / N) ** 0.5 + 1e-6)
        assert x[i].var().item() == pytest.approx(variance, rel=4 * (2 / N) ** 0.5, abs=1e-9)


def test_sampling_towards_a_known_end_visits_the_marginals_that_training_saw():
    start, end, sigma, seen = torch.zeros(N), torch.ones(N), 0.7, []

    def to_the_end(x, tau):
        seen.append((tau, x.clone()))
        return end - start

    sample_bridge(to_the_end, start, steps=4, sigma=sigma, generator=generator())
    for tau, x in seen[1:]:
        variance = sigma**2 * tau * (1 - tau)
        assert x.mean().item() == pytest.approx(tau, abs=4 * (variance / N) ** 0.5)
        assert x.var().item() == pytest.approx(variance, rel=4 * (2 / N) ** 0.5)


def test_without_noise_no_noise_is_needed():
    x = interpolate(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0.25, 0.5]), sigma=0.0)
    torch.testing.assert_close(x, torch.tensor([[0.25] * 3, [0.5] * 3]))


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("sigma", "spread"), [(0.3, 0.5), (0.6, 0.2)])
def test_the_network_of_the_bridge_sees_unit_variance_and_is_left_what_no_line_can_predict(tau, sigma, spread):
    velocity = spread * torch.randn(1, 1, 40, 40, 40, generator=generator(1))
    start = torch.randn(velocity.shape, generator=generator(2))
    noise = torch.randn(velocity.shape, generator=generator(3))
    departure = interpolate(start, start + velocity, torch.tensor([tau]), sigma, noise) - start
    skip, scale_in, scale_out = preconditioning(torch.tensor([tau]), sigma, torch.tensor([spread]))
    slope = (departure * velocity).mean() / departure.square().mean()  # least squares
    assert skip.item() == pytest.approx(slope.item(), rel=0.02)
    left = (velocity - skip * departure) / scale_out
    assert (scale_in * departure).std().item() == pytest.approx(1, rel=0.01)
    assert left.std().item() == pytest.approx(1, rel=0.01)
    assert (left * departure * scale_in).mean().item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_where_the_bridge_begins_the_network_gives_the_whole_velocity(sigma):
    skip, scale_in, scale_out = preconditioning(torch.zeros(1), sigma, torch.tensor([0.5]))
    assert torch.isfinite(skip).all()
    assert torch.isfinite(scale_in).all()
    assert scale_out.item() == pytest.approx(0.5)
