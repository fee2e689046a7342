"""The Haar first stage against its definition, written out voxel by voxel, and against what orthonormality demands."""

from itertools import product

import numpy as np
import pytest
import torch

from MissingModalitySynthLib.networks.haar import HaarFirstStage


def image(*size, batch=1, seed=0):
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def haar_by_hand(array):
    """One level: coefficient (a, b, c) of a 2x2x2 block is sum (-1)^(ai + bj + ck) x[i, j, k] / sqrt(8)."""
    coefficients = []
    for a, b, c in product((0, 1), repeat=3):
        total = 0
        for i, j, k in product((0, 1), repeat=3):
            total = total + (-1) ** (a * i + b * j + c * k) * array[i::2, j::2, k::2]
        coefficients.append(total / 8**0.5)
    return np.stack(coefficients)


def test_one_level_is_the_textbook_transform():
    x = image(6, 4, 8)
    latents = HaarFirstStage().encode(x)
    assert latents.shape == (1, 8, 3, 2, 4)
    np.testing.assert_allclose(latents[0].numpy(), haar_by_hand(x[0, 0].numpy()), atol=1e-6)


def test_the_second_level_transforms_every_channel_of_the_first():
    x = image(8, 4, 12)
    latents = HaarFirstStage(levels=2).encode(x)
    first = haar_by_hand(x[0, 0].numpy())
    expected = np.concatenate([haar_by_hand(channel) for channel in first])
    assert latents.shape == (1, 64, 2, 1, 3)
    np.testing.assert_allclose(latents[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 2])
def test_the_images_of_single_voxels_are_orthonormal(levels):
    stage = HaarFirstStage(levels)
    n = stage.factor
    voxels = torch.eye(n**3).view(n**3, 1, n, n, n)
    basis = stage.encode(voxels).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(n**3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("levels", [1, 2])
def test_decoding_returns_the_image(levels):
    stage, x = HaarFirstStage(levels), image(8, 16, 12, batch=2)
    torch.testing.assert_close(stage.decode(stage.encode(x)), x, atol=2e-6, rtol=0)


def test_the_energy_of_a_difference_of_latents_is_that_of_the_images():
    stage, x, y = HaarFirstStage(), image(8, 8, 8), image(8, 8, 8, seed=1)
    latent_energy = (stage.raw_encode(x) - stage.raw_encode(y)).square().sum()
    torch.testing.assert_close(latent_energy, (x - y).square().sum())


def test_autocast_to_bfloat16_does_not_make_it_lossy():
    stage, x = HaarFirstStage(), image(8, 8, 8)
    stage.whiten_on(x)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = stage.decode(stage.encode(x))
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, x, atol=2e-6, rtol=0)


def test_whitened_latents_have_zero_mean_and_unit_variance():
    stage, images = HaarFirstStage(), image(16, 16, 8, batch=3).cumsum(dim=2) / 8
    stage.whiten_on(images)
    latents = stage.encode(images).double().numpy()
    np.testing.assert_allclose(latents.mean(axis=(0, 2, 3, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(latents.std(axis=(0, 2, 3, 4), ddof=1), 1, atol=1e-5)
    torch.testing.assert_close(stage.decode(stage.encode(images)), images, atol=1e-5, rtol=0)


def test_a_channel_without_variance_does_not_become_infinite():
    stage = HaarFirstStage()
    stage.whiten_on(torch.full((1, 1, 4, 4, 4), 0.5))  # all details are 0
    assert torch.isfinite(stage.encode(image(4, 4, 4))).all()


def test_the_statistics_travel_with_the_weights():
    stage, x = HaarFirstStage(), image(8, 8, 8)
    stage.whiten_on(x)
    other = HaarFirstStage()
    other.load_state_dict(stage.state_dict())
    torch.testing.assert_close(other.encode(x), stage.encode(x), atol=0, rtol=0)
