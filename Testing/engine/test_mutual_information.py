"""Local mutual information against closed forms, hard histograms, a literal loop, and what must not change it."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from MissingModalitySynthLib.diffusion.mutual_information import (
    PUBLISHED,
    local_mutual_information,
    self_information,
)

HARD = {"width": 1e-3, "corrected": False}  # every voxel falls into one bin, but for 1 in 1000 on an edge


def noise(*shape, seed=0):
    """Uniform in [-1, 1], float64."""
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def gaussians(rho, *shape):
    """Two images of independent standard normal pairs of correlation rho."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 1, 1, *shape, generator=generator, dtype=torch.float64)
    return a, rho * a + math.sqrt(1 - rho**2) * b


def whole(a, b, **options):
    """The information in one window over the whole of both images."""
    n = max(a.shape[2:])
    return local_mutual_information(a, b, window=2 * n + 1, stride=n, **options).item()


def histogram_information(a, b, bins):
    """Mutual information of hard histograms in nats, from NumPy."""
    joint, _, _ = np.histogram2d(a.ravel(), b.ravel(), bins=bins, range=[[-1, 1], [-1, 1]])
    p = joint / joint.sum()
    outer = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    return (p[p > 0] * np.log(p[p > 0] / outer[p > 0])).sum()


@pytest.mark.parametrize("rho", [-0.9, -0.5, 0.0, 0.3, 0.8])
def test_gaussians_have_minus_half_the_logarithm_of_one_minus_rho_squared(rho):
    # One window over 27,000 voxels: the spread of the estimate is near sqrt(rho^2 / n) < 0.01; 40 narrow bins within
    # 4 SD lose less than 4 % to the blur; the correction takes the bias of 0.01 to 0.02 away.
    a, b = gaussians(rho, 31, 31, 31)
    exact = -math.log(1 - rho**2) / 2
    found = whole(a, b, bins=40, width=0.3, value_range=(-4, 4))
    assert found == pytest.approx(exact, abs=0.01 + 0.04 * exact)


@pytest.mark.parametrize(("window", "shape"), [(3, (24, 24, 24)), (7, (24, 24, 24)), (7, (96, 96)), (11, (96, 96))])
def test_independent_noise_has_none_once_the_bias_is_subtracted(window, shape):
    a, b = noise(*shape), noise(*shape, seed=1)
    inner = (..., *[slice(window // 2, -(window // 2))] * len(shape))
    plain = local_mutual_information(a, b, window=window, corrected=False)[inner].mean()
    corrected = local_mutual_information(a, b, window=window)[inner].mean()
    assert plain > 0.02
    assert abs(corrected) < 0.1 * plain


def test_the_correction_leaves_information_that_is_no_chance():
    a, b = gaussians(0.9, 40, 40)
    options = {"value_range": (-3, 3)}
    limit = whole(a, b, **options)  # 1600 voxels instead of 49
    few = local_mutual_information(a, b, window=7, **options)[..., 3:-3, 3:-3].mean()
    assert few.item() == pytest.approx(limit, rel=0.15)


@pytest.mark.parametrize("corrected", [False, True])
def test_an_inverted_image_tells_as_much_as_the_image(corrected):
    a, b = noise(9, 9, 9), noise(9, 9, 9, seed=1)
    mixed = (a + b) / 2
    plain = local_mutual_information(a, mixed, window=5, corrected=corrected)
    torch.testing.assert_close(local_mutual_information(a, -mixed, window=5, corrected=corrected), plain)


def test_exchanging_bins_changes_nothing():
    bins = 8
    a, b = noise(12, 12), noise(12, 12, seed=1)
    mixed = (a + b) / 2
    label = ((mixed + 1) * bins / 2).floor()
    order = torch.randperm(bins, generator=torch.Generator().manual_seed(2))
    exchanged = mixed + (order[label.long()] - label) * 2 / bins  # each interval moves as a whole
    before = local_mutual_information(a, mixed, **HARD)
    torch.testing.assert_close(local_mutual_information(a, exchanged, **HARD), before)


def test_moving_the_same_voxels_of_both_images_changes_nothing_and_of_one_image_nearly_all():
    a = noise(7, 7, 7)
    b = (a + noise(7, 7, 7, seed=1) / 4).clamp(-1, 1)
    order = torch.randperm(343, generator=torch.Generator().manual_seed(2))
    moved = [x.flatten()[order].view_as(x) for x in (a, b)]
    before = whole(a, b)
    assert whole(*moved) == pytest.approx(before, abs=1e-9)
    assert abs(whole(a, moved[1])) < 0.1 * before


@pytest.mark.parametrize("options", [{}, {"normalised": True}, {"corrected": False, "stride": 2}])
def test_it_is_symmetric(options):
    a, b = noise(8, 9, 6), noise(8, 9, 6, seed=1)
    there, back = (local_mutual_information(*pair, window=5, **options) for pair in ((a, b), (b, a)))
    torch.testing.assert_close(there, back)


def test_a_narrow_parzen_window_gives_the_histogram_of_numpy():
    a = noise(11, 10, 9)
    b = (a + noise(11, 10, 9, seed=1)) / 2
    found = local_mutual_information(a, b, window=5, bins=6, **HARD)[0, 0]
    for x, y, z in product((0, 4, 10), (0, 5, 9), (0, 4, 8)):  # windows at faces and corners are cut
        box = tuple(slice(max(i - 2, 0), i + 3) for i in (x, y, z))
        expected = histogram_information(a[0, 0][box].numpy(), b[0, 0][box].numpy(), 6)
        assert found[x, y, z].item() == pytest.approx(expected, abs=1e-6)


def test_the_information_of_an_image_and_itself_is_its_entropy():
    a = noise(15, 15)
    p = np.histogram(a.numpy(), bins=8, range=(-1, 1))[0] / 225
    assert whole(a, a, **HARD) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
    assert whole(a, a, normalised=True, **HARD) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"normalised": True, "stride": 2}, {"corrected": False, "partition": False}],
    ids=["default", "normalised", "published weights"],
)
def test_its_gradients_are_right(options):
    a, b = (noise(4, 3, 2, seed=seed).requires_grad_() for seed in (0, 1))
    mask = noise(4, 3, 2, seed=2) > -0.6
    assert torch.autograd.gradcheck(
        lambda a, b: local_mutual_information(a, b, window=3, bins=4, mask=mask, **options), (a, b)
    )


def test_gradients_stay_finite_where_there_is_nothing_to_tell():
    a = torch.full((1, 1, 6, 6), -1.0, requires_grad=True)
    b = torch.full((1, 1, 6, 6), 40.0, requires_grad=True)  # far outside the range
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    mask[..., :2] = True
    found = local_mutual_information(a, b, window=3, normalised=True, mask=mask)
    found.sum().backward()
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-5, rtol=0)
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


def test_climbing_the_gradient_brings_a_noisy_image_nearer_to_what_the_other_shows():
    a = torch.linspace(-1, 1, 12, dtype=torch.float64).sin().expand(1, 1, 12, 12)
    b = (-a / 2 + noise(12, 12) / 2).requires_grad_()
    before = local_mutual_information(a, b).mean()
    (gradient,) = torch.autograd.grad(before, b)
    after = local_mutual_information(a, b + 0.05 * gradient / gradient.abs().max()).mean()
    assert after > before


@pytest.mark.parametrize("options", [{"reach": 1}, {"reach": 0, "normalised": True}])
def test_a_slice_gives_the_same_as_a_volume_of_depth_one(options):
    a, b = noise(8, 7), noise(8, 7, seed=1)
    flat = local_mutual_information(a, b, window=5, **options)
    deep = local_mutual_information(a[..., None], b[..., None], window=5, **options)
    torch.testing.assert_close(deep[..., 0], flat)


def test_equal_slices_give_the_same_as_one_slice():
    a, b = noise(8, 7), noise(8, 7, seed=1)
    flat = local_mutual_information(a, b, window=5, corrected=False)
    stacks = (x[..., None].expand(-1, -1, -1, -1, 6) for x in (a, b))
    deep = local_mutual_information(*stacks, window=5, corrected=False)
    torch.testing.assert_close(deep, flat[..., None].expand_as(deep))


def published_information(a, b):
    """Normalised information of patches as Wang et al. (2024) define it: arrays of intensities in 0 to 255."""
    bins = np.linspace(0, 255, 27)
    p_a, p_b, p_ab = np.zeros(27), np.zeros(27), np.zeros((27, 27))
    for u, v in zip(a, b, strict=True):
        k_u, k_v = (np.exp(-0.5 * ((value - bins) / 8) ** 2) for value in (u, v))
        p_a += k_u
        p_b += k_v
        p_ab += np.outer(k_u, k_v)
    h_a, h_b, h_ab = (-(p / p.sum() * np.log2(p / p.sum())).sum() for p in (p_a, p_b, p_ab))
    return 2 * (h_a + h_b - h_ab) / (h_a + h_b)


def test_the_published_setting_is_what_its_formula_says():
    a, b = noise(7, 6), noise(7, 6, seed=1)
    found = local_mutual_information(a, b, **PUBLISHED)[0, 0]
    u, v = ((x[0, 0].numpy() + 1) * 127.5 for x in (a, b))
    around = list(product((-1, 0, 1), repeat=2))
    for x, y in product(range(2, 5), range(2, 4)):  # away from the border, where windows are cut here
        patch = [u[x + i, y + j] for i, j in around]
        scores = [published_information(patch, [v[x + dx + i, y + dy + j] for i, j in around]) for dx, dy in around]
        assert found[x, y].item() == pytest.approx(max(scores), abs=1e-6)


def test_reach_finds_what_lies_beside():
    a = noise(7, 7, 7)
    b = torch.roll(a, (1, -1, 0), (2, 3, 4))
    same, beside, found = (
        local_mutual_information(a, image, window=5, reach=reach)[0, 0, 3, 3, 3].item()
        for image, reach in ((a, 0), (b, 0), (b, 1))
    )
    assert beside < 0.2 * same
    assert found == pytest.approx(same, abs=1e-9)


def test_voxels_outside_the_mask_do_not_count():
    a, b, other = (noise(9, 9, 9, seed=seed) for seed in range(3))
    mask = noise(9, 9, 9, seed=3) > -0.5
    mask[..., :4] = False
    found = local_mutual_information(a, b, window=5, mask=mask)
    filled = (torch.where(mask, x, other) for x in (a, b))
    torch.testing.assert_close(local_mutual_information(*filled, window=5, mask=mask), found, rtol=0, atol=0)
    assert (found[..., :2] == 0).all()
    box = (0, 0, *[slice(3, 8)] * 3)
    selected = [x[box][mask[box]].view(1, 1, -1, 1) for x in (a, b)]
    assert found[0, 0, 5, 5, 5].item() == pytest.approx(whole(*selected), abs=1e-9)


@pytest.mark.parametrize("options", [{}, {"reach": 1}])
def test_a_stride_leaves_out_maps_voxels_and_changes_none(options):
    a, b = noise(9, 8, 7), noise(9, 8, 7, seed=1)
    full = local_mutual_information(a, b, window=5, **options)
    strided = local_mutual_information(a, b, window=5, stride=3, **options)
    assert strided.shape == (1, 1, 3, 3, 3)
    torch.testing.assert_close(strided, full[..., ::3, ::3, ::3])


def test_images_of_a_batch_do_not_mix():
    a, b = (torch.cat([noise(8, 8, seed=seed), noise(8, 8, seed=seed + 1)]) for seed in (0, 5))
    both = local_mutual_information(a, b, window=3)
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], local_mutual_information(a[i : i + 1], b[i : i + 1], window=3))


def test_single_precision_is_precise_and_kept_under_autocast():
    a, b = noise(10, 10, 10), noise(10, 10, 10, seed=1)
    exact = local_mutual_information(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        found = local_mutual_information(a.float(), b.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)


def test_self_information_is_that_of_the_shifted_copy_and_the_same_for_an_inverted_contrast():
    a = noise(10, 9, 8)
    offsets = [(0, 0, 0), (2, 0, -1)]
    found = self_information(a, offsets, window=3)
    assert found.shape == (1, 2, 10, 9, 8)
    torch.testing.assert_close(found[:, :1], local_mutual_information(a, a, window=3))
    crops = a[..., :-2, :, 1:], a[..., 2:, :, :-1]  # x and x + offset
    inner = local_mutual_information(*crops, window=3)
    torch.testing.assert_close(found[:, 1:, :-2, :, 1:], inner)
    torch.testing.assert_close(self_information(-a, offsets, window=3), found)


def test_self_information_heeds_the_mask_of_both_places():
    a, other = noise(8, 8), noise(8, 8, seed=1)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 5:] = False
    filled = torch.where(mask, a, other)
    options = {"offsets": [(0, 3)], "window": 3, "mask": mask}
    torch.testing.assert_close(self_information(filled, **options), self_information(a, **options), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": noise(6, 5)}, r"one shape, not \(1, 1, 6, 6\) and \(1, 1, 6, 5\)"),
        ({"a": noise(6, 6)[0, 0], "b": noise(6, 6)[0, 0]}, r"\(B, 1, X, Y\) or \(B, 1, X, Y, Z\), not \(6, 6\)"),
        ({"mask": torch.ones(1, 1, 6, 5, dtype=torch.bool)}, r"mask must be bool \(1, 1, 6, 6\)"),
        ({"window": 4}, "odd number of voxels, not 4"),
        ({"partition": False}, "corrected=False"),
    ],
)
def test_input_that_cannot_be_meant_is_refused_in_a_sentence(change, message):
    arguments = {"a": noise(6, 6), "b": noise(6, 6)} | change
    with pytest.raises(ValueError, match=message):
        local_mutual_information(arguments.pop("a"), arguments.pop("b"), **arguments)
