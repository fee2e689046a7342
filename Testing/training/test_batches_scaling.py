"""Crops of simulated heads: scaled as the engine would scale the whole head that they are cut from."""

import numpy as np
import pytest
import torch

from MissingModalitySynthLib.intensity import intensity_range, normalise
from training.batches import BLACK_LEVEL, LIFT, black_level, scaled


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


def test_the_dark_end_is_cut_off_or_lifted_and_air_peak_and_order_stay(head):
    """A cut is a line to the peak above its level; a lift is a power of the signal, which makes no voxel darker."""
    image = scaled(torch.from_numpy(head))
    cut = lifted = 0
    for seed in range(60):
        found = black_level(image, torch.Generator().manual_seed(seed))
        if torch.equal(found, image):
            continue
        assert found.min() == -1 and found.max() == pytest.approx(float(image.max()), abs=1e-5)
        assert (found[image == -1] == -1).all()
        if (found > image + 1e-6).any():
            lifted += 1
            inside = (image > -0.99) & (image < 0.99)
            power = torch.log((found[inside] + 1) / 2) / torch.log((image[inside] + 1) / 2)
            assert LIFT[0] - 1e-3 <= power.min() and power.max() <= LIFT[1] + 1e-3
            assert power.std() < 1e-3
            continue
        cut += 1
        above = found > -1
        assert image[above].min() >= image[~above].max()
        assert image[~above].max() <= -1 + 2 * BLACK_LEVEL + 1e-6
        line = np.polyfit(image[above].numpy(), found[above].numpy(), 1)
        np.testing.assert_allclose(np.polyval(line, image[above].numpy()), found[above].numpy(), atol=1e-5)
    assert 8 < cut < 30 and 12 < lifted < 36
