from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from MissingModalitySynthLib.canonical import canonical_grid, resample_to, to_canonical
from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.intensity import (
    BRIGHTEST,
    DARKEST,
    IntensityRange,
    background_value,
    head_mask,
    intensity_range,
    normalise,
    scale,
    unscale,
)
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import read_volume

SHAPE = (48, 56, 52)


def ball(radius=0.75, shape=SHAPE):
    """Boolean ellipsoid that fills ``radius`` of every half axis."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return sum(axis**2 for axis in axes) < radius**2


def tissue(seed=0, shape=SHAPE):
    """Smooth texture of brain-like contrast, 300 to 1000, with dark ventricles of 60."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3)
    noise = (noise - noise.min()) / np.ptp(noise)
    return np.where(ball(0.2, shape), 60, 300 + 700 * noise).astype(np.float32)


def assert_covers(mask, head):
    """The mask holds the head and nothing farther than three voxels from it."""
    assert np.mean(mask[head]) > 0.999
    assert not (mask & ~ndimage.binary_dilation(head, iterations=3)).any()


def dice(a, b):
    return 2 * np.sum(a & b) / (a.sum() + b.sum())


@given(
    hnp.arrays(np.float32, (6, 7, 8), elements=st.floats(-1e4, 1e4, width=32)),
    st.tuples(st.floats(-1e3, 1e3), st.floats(0.1, 1e3)),
)
def test_scaling_is_the_line_through_both_ends_clipped_to_one(array, ends):
    low, span = ends
    scaled = scale(array, IntensityRange(low, low + span))
    expected = np.interp(array.astype(np.float64), (low, low + span), (-1, 1))
    assert scaled.dtype == np.float32
    assert scaled.min() >= -1 and scaled.max() <= 1
    np.testing.assert_allclose(scaled, expected, atol=1e-5 * max(1, abs(low) / span))


@given(st.floats(-1e3, 1e3), st.floats(0.1, 1e3), hnp.arrays(np.float32, 20, elements=st.floats(-2, 2, width=32)))
def test_unscaled_intensities_are_never_negative_and_rise_from_background_to_bright(low, span, array):
    result = unscale(np.sort(array), IntensityRange(low, low + span))
    assert result.dtype == np.float32 and (result >= 0).all() and (np.diff(result) >= 0).all()
    ends = unscale(np.array([-1.0, 1.0]), IntensityRange(low, low + span))
    np.testing.assert_allclose(ends, (0, low + span if low >= 0 else span), rtol=1e-5)


def test_unscale_undoes_scale_for_a_range_that_starts_at_zero():
    array = np.linspace(0, 500, 60, dtype=np.float32).reshape(3, 4, 5)
    intensities = IntensityRange(0, 500)
    np.testing.assert_allclose(unscale(scale(array, intensities), intensities), array, atol=1e-3)


def test_the_range_is_that_of_the_percentiles():
    array = np.random.default_rng(0).permutation(np.arange(1001, dtype=np.float32))
    assert intensity_range(array) == IntensityRange(5, 995)
    assert intensity_range(array, low=10, high=90) == IntensityRange(100, 900)


def test_a_volume_that_is_nearly_all_background_still_has_a_range():
    array = np.full((50, 50, 50), -3, dtype=np.float32)
    array[10:14, 10:14, 10:14] = np.linspace(100, 200, 64).reshape(4, 4, 4)
    found = intensity_range(array)
    assert found.low == -3 and 190 < found.high <= 200


@pytest.mark.parametrize("array", [np.zeros((4, 4, 4)), np.full((4, 4, 4), 7.5)])
def test_a_volume_without_contrast_has_no_range(array):
    with pytest.raises(InputError, match="no image in it"):
        intensity_range(array)


def test_a_range_of_dark_voxels_on_a_bright_constant_is_refused():
    array = np.full((50, 50, 50), 5, dtype=np.float32)
    array[0, 0, 0] = 1
    with pytest.raises(InputError, match="no image in it"):
        intensity_range(array)


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (float("nan"), 1), (0, float("inf"))])
def test_an_empty_range_is_refused(ends):
    with pytest.raises(InputError, match="empty"):
        IntensityRange(*ends)


@pytest.mark.parametrize("background", [0, -1000, 37.5, -0.25])
def test_the_mask_of_a_skull_stripped_volume_is_exactly_its_brain(background):
    brain = ball()
    array = np.where(brain, tissue() + max(background, 0) * 3, background)
    mask = head_mask(array)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, brain)
    assert background_value(array) == background


def test_a_z_scored_brain_on_zero_is_found_though_its_mean_is_the_background():
    brain = ball()
    values = tissue()
    scored = np.where(brain, (values - values[brain].mean()) / values[brain].std(), 0)
    assert dice(head_mask(scored), brain) > 0.99


@pytest.mark.parametrize("offset", [0, -1000])
@pytest.mark.parametrize("noise", [5, 40])
def test_a_whole_head_is_found_in_noisy_air(noise, offset):
    rng = np.random.default_rng(3)
    head = ball()
    signal = np.where(head, tissue(), 0)
    rician = np.hypot(signal + noise * rng.standard_normal(SHAPE), noise * rng.standard_normal(SHAPE)) + offset
    assert_covers(head_mask(rician), head)
    assert offset <= background_value(rician) < offset + 3 * noise


def test_a_head_in_many_fine_voxels_is_found_as_well():
    rng = np.random.default_rng(5)
    shape = (300, 40, 44)
    head = ball(shape=shape)
    noisy = np.hypot(np.where(head, tissue(shape=shape), 0) + 15 * rng.standard_normal(shape), 15)
    mask = head_mask(noisy)
    assert mask.shape == shape
    assert_covers(mask, head)


def test_noisy_air_that_is_framed_by_zeros_is_no_head():
    rng = np.random.default_rng(4)
    head = ball(0.6)
    noisy = np.hypot(np.where(head, tissue(), 0) + 15 * rng.standard_normal(SHAPE), 15 * rng.standard_normal(SHAPE))
    framed = np.zeros(SHAPE, dtype=np.float32)
    framed[2:-2, 2:-2, 2:-2] = noisy[2:-2, 2:-2, 2:-2]
    assert_covers(head_mask(framed), head)


def test_a_volume_without_background_is_head_everywhere():
    assert head_mask(tissue()).all()
    assert head_mask(tissue() - 1200).all()


def test_ventricles_and_small_specks_do_not_change_the_mask():
    brain = ball()
    array = np.where(brain, tissue(), 0)
    array[ball(0.2)] = 0  # as dark as the background
    array[1:3, 1:3, 1:3] = 900
    np.testing.assert_array_equal(head_mask(array), brain)


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.int16, np.float64]), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_any_finite_volume_has_a_mask_that_is_not_empty(seed, dtype, filled):
    rng = np.random.default_rng(seed)
    array = (rng.random((16, 17, 18)) * 200 * (rng.random((16, 17, 18)) < filled)).astype(dtype)
    mask = head_mask(array)
    assert mask.shape == array.shape and mask.any()


def test_a_single_bright_voxel_is_a_head():
    array = np.zeros((16, 16, 16))
    array[8, 8, 8] = 1
    assert head_mask(array)[8, 8, 8]


def test_the_masks_of_the_contrasts_of_a_real_patient_agree(real_data):
    subject = real_data / "subjects" / "open-ms-07"
    masks = [head_mask(read_volume(subject / f"ms07-{name}-mni-brain.nii.gz").array) for name in ("t1", "flair")]
    assert dice(*masks) > 0.97


def test_the_real_head_with_its_skull_contains_the_brain(real_data):
    folder = real_data / "templates" / "mni152-hcp"
    head = head_mask(read_volume(folder / "MNI152_T1_2mm.nii.gz").array)
    brain = read_volume(folder / "MNI152_T1_1mm_brain.nii.gz").array[::2, ::2, ::2] > 0
    assert np.mean(head[brain]) > 0.999
    assert 0.4 < head.mean() < 0.65


def test_a_z_scored_brain_on_zero_is_normalised_with_a_dark_background():
    brain, signal = ball(), tissue()
    scored = np.where(brain, (signal - signal[brain].mean()) / signal[brain].std(), 0).astype(np.float32)
    normalised, found = normalise(scored)
    assert (normalised[~brain] == -1).all()
    assert (normalised[brain] > -1).mean() > 0.995  # but for spots of its surface
    inside = brain & (normalised > DARKEST) & (normalised < 1)  # not clipped
    np.testing.assert_allclose(unscale(normalised, found)[inside] + found.low, scored[inside], atol=1e-4)


def test_a_few_negative_voxels_do_not_make_the_background_dark():
    signal = np.where(ball(), tissue(), 0).astype(np.float32)
    stray = signal.copy()
    stray[20, 20:26, 20] = -5
    np.testing.assert_array_equal(normalise(stray)[0][~ball()], normalise(signal)[0][~ball()])


def test_dark_tissue_is_no_background_and_only_what_surrounds_a_stripped_brain_is():
    brain = ball()
    signal = np.where(brain, tissue(), 0).astype(np.float32)
    signal[19:23, 19:23, 19:23] = 0  # fluid as dark as the background, enclosed in the brain
    signal[brain & (np.arange(len(signal))[:, None, None] < 12)] *= 1e-6  # and as dark as traces, but at its edge
    image = normalise(signal)[0]
    np.testing.assert_array_equal(image[19:23, 19:23, 19:23], np.float32(DARKEST))
    traces = brain & (signal < 1e-3) & (signal > 0)
    np.testing.assert_array_equal(image == -1, ~brain | traces)
    assert image[brain & ~traces].min() == np.float32(DARKEST)


def test_noisy_air_is_no_background_set_to_zero():
    air = np.random.default_rng(0).rayleigh(3, ball().shape).astype(np.float32)
    image = normalise(np.where(ball(), tissue(), air))[0]
    assert image.min() == np.float32(DARKEST)
    assert torch.tensor(DARKEST).bfloat16() > -1  # networks see it in this type


def test_what_is_brighter_than_the_percentile_can_be_kept_and_comes_back():
    signal = np.where(ball(), tissue(), 0).astype(np.float32)
    signal[20, 20:24, 20] = 1.5 * np.percentile(signal, 99.5)
    image, found = normalise(signal, brightest=BRIGHTEST)
    assert normalise(signal)[0].max() == 1 < image.max() < BRIGHTEST
    np.testing.assert_allclose(unscale(image, found)[20, 20:24, 20], signal[20, 20:24, 20], rtol=1e-5)
    np.testing.assert_allclose(unscale(np.full(1, 9.0), found), found.high * (BRIGHTEST + 1) / 2, rtol=1e-5)


@pytest.mark.parametrize("z_scored", [False, True])
@pytest.mark.parametrize("spacing", [(0.8, 0.8, 0.8), (0.94, 0.94, 1.5), (1.2, 1.2, 1.2)])
def test_the_background_of_a_stripped_brain_is_known_on_another_lattice(spacing, z_scored):
    """Interpolation rings around a brain that has values on both sides of its background."""
    brain, signal = ball(), tissue()
    stripped = np.where(brain, signal, 0).astype(np.float32)
    stripped[18, 20:24, 20] = -0.05 * signal.max()
    if z_scored:
        stripped = np.where(brain, (signal - signal[brain].mean()) / signal[brain].std(), 0).astype(np.float32)
    volume = Volume(stripped, Geometry(stripped.shape, spacing))
    grid = canonical_grid(volume, (1.0, 1.0, 1.0), 16, mask=brain)
    image = normalise(to_canonical(volume, grid), native=stripped)[0]
    inside = to_canonical(replace(volume, array=brain.astype(np.float32)), grid)
    assert (image[inside < 0.01] == -1).mean() > 0.95
    assert (image[inside > 0.99] > -1).mean() > 0.995


def test_a_stripped_brain_that_came_from_thick_slices_has_a_background():
    """The splines of the other program left traces everywhere; noise of a whole head's air is more than these."""
    brain = ball()
    volume = Volume(np.where(brain, tissue(), 0).astype(np.float32), Geometry(SHAPE))
    thick = resample_to(volume, Geometry((SHAPE[0], SHAPE[1], SHAPE[2] // 3), (1.0, 1.0, 3.0), (0.0, 0.0, 1.0)))
    again = resample_to(thick, volume.geometry).array
    image = normalise(again)[0]
    far = ~ndimage.binary_dilation(brain, iterations=6)
    assert (again[far] != 0).mean() > 0.1
    assert (image[far] == -1).mean() > 0.95
    assert (image[brain] > -1).mean() > 0.999
