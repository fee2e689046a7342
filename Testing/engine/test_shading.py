"""The shading that results share with their sources: known fields found again, and what is kept of them."""

import numpy as np
import pytest
from scipy import ndimage

from MissingModalitySynthLib.shading import ORDINARY, estimate_field, shared_shading

SHAPE = (56, 64, 48)
SPACING = (2.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def mask():
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)]
    return x**2 + y**2 + z**2 < 0.9


def shading(strength, seed=0):
    """Factors of a smooth field, 1 in the mean of its logarithm."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 14, mode="nearest")
    return np.exp(strength * (noise - noise.mean()) / noise.std())


def head(mask, field, seed=0):
    """Two tissues in patches of about a centimetre, with the field, in [-1, 1]."""
    patches = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 3) > 0
    image = np.where(patches, 0.7, 0.4) * field * mask
    return (2 * image / image.max() - 1).astype(np.float32)


def logarithm(field, mask):
    values = np.log(field[mask])
    return values - values.mean()


def test_a_known_field_is_found_in_an_image_of_two_tissues(mask):
    field = shading(0.1)
    found = logarithm(estimate_field(head(mask, field) + 1, mask, SPACING), mask)
    truth = logarithm(field, mask)
    assert np.corrcoef(found, truth)[0, 1] > 0.9
    assert found.std() == pytest.approx(truth.std(), rel=0.25)


def test_an_ordinary_field_is_kept_and_neither_gain_nor_tissues_are(mask):
    shaded = shared_shading([head(mask, shading(0.1))], mask, SPACING)
    assert shaded.dtype == np.float32
    assert np.log(shaded[mask]).mean() == pytest.approx(0, abs=1e-4)
    assert np.corrcoef(np.log(shaded[mask]), logarithm(shading(0.1), mask))[0, 1] > 0.9
    flat = shared_shading([head(mask, np.ones(SHAPE))], mask, SPACING)
    assert np.log(flat[mask]).std() < 0.02


def test_of_two_sources_the_geometric_mean_is_kept(mask):
    images = [head(mask, shading(0.1, seed), seed) for seed in (1, 2)]
    both = np.log(shared_shading(images, mask, SPACING)[mask])
    each = [np.log(shared_shading([image], mask, SPACING)[mask]) for image in images]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-3)


@pytest.mark.parametrize(("strength", "share"), [(0.5, 1), (1, 1), (1.5, 0.5), (2, 0), (4, 0)])
def test_less_is_kept_of_a_field_stronger_than_an_ordinary_one(mask, monkeypatch, strength, share):
    field = 7 * shading(1)
    true = strength * ORDINARY * logarithm(field, mask) / logarithm(field, mask).std()
    found = np.ones(SHAPE)
    found[mask] = 7 * np.exp(true)
    monkeypatch.setattr("MissingModalitySynthLib.shading.estimate_field", lambda *_: found)
    kept = np.log(shared_shading([head(mask, field)], mask, SPACING)[mask])
    np.testing.assert_allclose(kept, share * true, atol=1e-5)


def test_a_head_too_small_for_a_field_gets_none(mask):
    np.testing.assert_array_equal(shared_shading([head(mask, shading(0.1))], mask, (0.5, 0.5, 0.5)), 1)
