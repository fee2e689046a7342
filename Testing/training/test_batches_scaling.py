"""Crops of simulated heads: scaled as the engine would scale the whole head that they are cut from."""

import numpy as np
import pytest
import torch

from MissingModalitySynthLib.intensity import intensity_range, normalise
from training.batches import scaled


@pytest.fixture(scope="module")
def head():
    """Tissue of 3 to 9 units in air, with a bright centre."""
    axes = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    tissue = 6 + 3 * np.sin(7 * axes[0]) * np.cos(5 * axes[1]) + 6 * np.exp(-((radius / 0.2) ** 2))
    return np.where(radius < 0.9, tissue, 0).astype(np.float32)


@pytest.mark.parametrize("corner", [(0, 0, 0), (16, 16, 16), (14, 20, 12), (24, 8, 24)])
def test_a_crop_is_scaled_as_its_whole_head_with_or_without_air_in_it(head, corner):
    box = tuple(slice(start, start + 16) for start in corner)
    headroom = intensity_range(head).high / intensity_range(head[box]).high
    found = scaled(torch.from_numpy(head[box].copy()), headroom)
    assert found.shape == (1, 1, 16, 16, 16)
    np.testing.assert_allclose(found[0, 0].numpy(), normalise(head)[0][box], atol=1e-5)


def test_a_head_that_is_the_crop_has_no_headroom(head):
    np.testing.assert_allclose(scaled(torch.from_numpy(head))[0, 0].numpy(), normalise(head)[0], atol=1e-5)
