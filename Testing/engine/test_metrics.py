import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric, MAEMetric, PSNRMetric, SSIMMetric
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.metrics import (
    calibration,
    compare,
    dice,
    gain_and_offset,
    mae,
    nmse,
    psnr,
    scale_to_target,
    spectral_error,
    ssim,
)

torch.set_num_threads(2)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    target = rng.random((20, 18, 16), dtype=np.float32)
    return np.clip(target + 0.1 * rng.standard_normal(target.shape, dtype=np.float32), 0, 1), target


@pytest.fixture
def head():
    """A target in scanner units inside an ellipsoid of zeros' air, and its mask."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (32, 36, 28)), indexing="ij"))
    mask = (grid**2).sum(axis=0) < 0.5
    rng = np.random.default_rng(1)
    target = (400 + 300 * np.sin(5 * grid[0]) * np.cos(4 * grid[1]) + 20 * rng.standard_normal(mask.shape)) * mask
    return target.astype(np.float32), mask


def batch(array):
    return torch.as_tensor(array)[None, None]


def test_psnr_of_a_constant_error_has_the_closed_form():
    target = np.zeros((4, 5, 6))
    assert psnr(target + 0.1, target) == pytest.approx(20)
    assert psnr(target + 0.1, target, data_range=2) == pytest.approx(20 + 20 * math.log10(2))


def test_psnr_of_identical_volumes_is_infinite(pair):
    assert psnr(pair[1], pair[1]) == math.inf


def test_psnr_agrees_with_scikit_image_and_monai(pair):
    prediction, target = pair
    expected = peak_signal_noise_ratio(target.astype(float), prediction.astype(float), data_range=1)
    assert psnr(prediction, target) == pytest.approx(expected)
    monai = PSNRMetric(max_val=1)(batch(prediction), batch(target)).item()
    assert psnr(prediction, target) == pytest.approx(monai, abs=1e-3)


def test_mae_agrees_with_monai(pair):
    monai = MAEMetric()(batch(pair[0]), batch(pair[1])).item()
    assert mae(*pair) == pytest.approx(monai, abs=1e-5)


@given(st.floats(-2, 2))
def test_nmse_of_a_scaled_target_is_the_square_of_the_scale_error(scale):
    target = np.arange(1.0, 61.0).reshape(3, 4, 5)
    assert nmse(scale * target, target) == pytest.approx((1 - scale) ** 2, abs=1e-12)


def test_nmse_against_a_target_of_zeros_is_refused():
    with pytest.raises(InputError, match="zero everywhere"):
        nmse(np.ones((3, 3, 3)), np.zeros((3, 3, 3)))


def test_masked_errors_see_only_the_mask():
    target = np.full((6, 6, 6), 0.5)
    mask = np.zeros(target.shape, bool)
    mask[2:4, 2:4, 2:4] = True
    prediction = np.where(mask, 0.6, 9.0)
    assert psnr(prediction, target, mask=mask) == pytest.approx(20)
    assert mae(prediction, target, mask=mask) == pytest.approx(0.1)
    assert nmse(prediction, target, mask=mask) == pytest.approx(0.04)


def test_gaussian_ssim_agrees_with_monai(pair):
    monai = SSIMMetric(spatial_dims=3, data_range=1.0)(batch(pair[0]), batch(pair[1])).item()
    assert ssim(*pair) == pytest.approx(monai, abs=1e-4)


def test_uniform_ssim_is_the_default_of_scikit_image(pair):
    assert ssim(*pair, window="uniform7") == pytest.approx(structural_similarity(*pair, data_range=1))


def test_ssim_of_two_constants_is_the_luminance_term():
    a, b, c1 = 0.4, 0.6, 0.01**2
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    volumes = np.full((12, 12, 12), a), np.full((12, 12, 12), b)
    assert ssim(*volumes) == pytest.approx(expected)
    assert ssim(*volumes, mask=np.ones((12, 12, 12), np.uint8)) == pytest.approx(expected)


def test_masked_ssim_is_one_where_the_volumes_agree_and_less_where_they_do_not(pair):
    noisy, target = pair
    prediction = target.copy()
    prediction[10:] = noisy[10:]
    left = np.zeros(target.shape, np.uint8)
    left[:4] = 1  # further than the window's radius of 5 from the first noisy slice
    assert ssim(prediction, target, mask=left) == pytest.approx(1)
    assert ssim(prediction, target, mask=1 - left) < 0.99


def test_ssim_refuses_a_volume_thinner_than_its_window_and_an_unknown_window(pair):
    with pytest.raises(InputError, match="11 voxels"):
        ssim(pair[0][:10], pair[1][:10])
    with pytest.raises(InputError, match="gaussian, uniform7"):
        ssim(*pair, window="box")


def test_dice_agrees_with_monai_and_has_no_value_for_a_missing_label():
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 3, (2, 9, 8, 7))
    for label in (0, 1, 2):
        monai = DiceMetric()(batch((a == label).astype(float)), batch((b == label).astype(float))).item()
        assert dice(a, b, label) == pytest.approx(monai)
    assert math.isnan(dice(a, b, 7))


def test_volumes_of_different_size_and_an_empty_mask_are_refused():
    with pytest.raises(InputError, match="4 x 4 x 4 and 4 x 4 x 5"):
        psnr(np.zeros((4, 4, 4)), np.zeros((4, 4, 5)))
    with pytest.raises(InputError, match="empty"):
        mae(np.zeros((4, 4, 4)), np.zeros((4, 4, 4)), mask=np.zeros((4, 4, 4), bool))


def test_scaling_puts_the_percentiles_of_the_target_at_zero_and_one(head):
    target, mask = head
    _, scaled = scale_to_target(target, target, mask)
    where = np.argwhere(mask)
    box = tuple(slice(max(a - 4, 0), b + 5) for a, b in zip(where.min(0), where.max(0), strict=True))
    low, high = np.percentile(target[box], [0.5, 99.5])
    between = mask & (target > low) & (target < high)
    np.testing.assert_allclose(scaled[between], (target[between] - low) / (high - low), atol=1e-6)
    assert scaled.min() == 0
    assert scaled.max() == 1
    assert not scaled[~mask].any()


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(0.01, 100), sign=st.sampled_from([-1, 1]), offset=st.floats(-1000, 1000))
def test_units_of_the_prediction_do_not_change_its_scores(gain, sign, offset):
    rng = np.random.default_rng(3)
    target = rng.random((16, 16, 16)) * 500
    prediction = target + 50 * rng.standard_normal(target.shape)
    mask = np.ones(target.shape, bool)
    expected = compare(prediction, target, mask)
    assert compare(sign * gain * prediction + offset, target, mask) == pytest.approx(expected, rel=1e-3)


def test_fit_is_the_least_squares_line_inside_the_mask(head):
    target, mask = head
    rng = np.random.default_rng(4)
    prediction = 3 * target + 200 * rng.standard_normal(target.shape) + 500 * ~mask
    scaled, scaled_target = scale_to_target(prediction, target, mask)
    gain, offset = np.polyfit(prediction[mask], scaled_target[mask].astype(float), 1)
    np.testing.assert_allclose(scaled, np.clip(gain * prediction + offset, 0, 1) * mask, atol=1e-5)


def test_a_constant_prediction_scores_as_the_mean_of_the_target(head):
    target, mask = head
    scaled, scaled_target = scale_to_target(np.full_like(target, 7), target, mask)
    np.testing.assert_allclose(scaled[mask], scaled_target[mask].mean(), atol=1e-5)


def test_comparison_follows_its_definition_step_by_step(head):
    target, mask = head
    prediction = target + 30 * np.random.default_rng(5).standard_normal(target.shape)
    p, t = scale_to_target(prediction, target, mask)
    where = np.argwhere(mask)
    box = tuple(slice(max(a - 4, 0), b + 5) for a, b in zip(where.min(0), where.max(0), strict=True))
    error = p[box].astype(float) - t[box]
    inside = error[mask[box]]
    _, ssim_map = structural_similarity(
        p[box], t[box], data_range=1, full=True, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert compare(prediction, target, mask) == pytest.approx(
        {
            "psnr": -10 * np.log10(np.mean(error**2)),
            "nmse": np.sum(error**2) / np.sum(t[box].astype(float) ** 2),
            "ssim": ssim_map.mean(),
            "psnr_mask": -10 * np.log10(np.mean(inside**2)),
            "ssim_mask": ssim_map[mask[box]].mean(),
            "mae_mask": np.abs(inside).mean(),
        },
        rel=1e-5,
    )


def test_without_a_mask_the_head_of_the_target_is_compared(head):
    target, mask = head
    prediction = target + 30 * mask * np.random.default_rng(6).standard_normal(target.shape)
    assert compare(prediction, target)["psnr_mask"] == pytest.approx(
        compare(prediction, target, mask)["psnr_mask"], abs=0.5
    )


def test_air_around_the_head_does_not_change_the_scores(head):
    target, mask = head
    prediction = target + 30 * mask * np.random.default_rng(7).standard_normal(target.shape)
    padded = [np.pad(array, 12) for array in (prediction, target, mask)]
    cropped = [array[2:-2, 2:-2, 2:-2] for array in padded]
    assert compare(*padded) == pytest.approx(compare(*cropped))


def test_importing_the_metrics_loads_neither_scikit_image_nor_torch():
    code = "import MissingModalitySynthLib.metrics, sys; print({'skimage', 'scipy', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_the_gain_and_offset_are_those_of_a_least_squares_line(head):
    target, mask = head
    prediction = 3 * target**2 - 7
    expected = np.polyfit(prediction[mask].astype(float), target[mask].astype(float), 1)
    assert gain_and_offset(prediction, target, mask) == pytest.approx(tuple(expected), rel=1e-6)
    assert gain_and_offset(np.full_like(target, 5), target, mask) == pytest.approx((0, target[mask].mean()))


def test_doubling_the_amplitude_is_a_spectral_error_of_six_decibel(pair):
    target = pair[1]
    assert spectral_error(2 * target, target) == pytest.approx(20 * math.log10(2), abs=1e-4)
    assert spectral_error(target, target) == 0


def test_a_blur_shows_in_the_spectrum_and_a_shift_does_not():
    target = np.random.default_rng(0).standard_normal((24, 22, 20))
    blurred = (target + np.roll(target, 1, axis=0) + np.roll(target, -1, axis=0)) / 3
    assert spectral_error(np.roll(target, 5, axis=1), target) == pytest.approx(0, abs=1e-9)
    assert spectral_error(blurred, target) > 1


def test_deviations_that_errors_were_drawn_from_are_calibrated():
    rng = np.random.default_rng(0)
    deviation = rng.uniform(0.01, 0.2, 200_000)
    error = rng.standard_normal(deviation.shape) * deviation
    found = calibration(error, deviation)
    assert found["ence"] < 0.02
    assert found["error_bins"] == pytest.approx(found["deviation_bins"], rel=0.03)
    assert found["correlation"] == pytest.approx(np.corrcoef(np.abs(error), deviation)[0, 1])


@given(st.floats(0.1, 10))
@settings(max_examples=10)
def test_deviations_that_are_wrong_by_a_factor_have_a_calibration_error_of_that_factor_minus_one(factor):
    deviation = np.linspace(0.1, 1, 1000)
    error = factor * deviation * np.where(np.arange(1000) % 2, 1, -1)
    assert calibration(error, deviation)["ence"] == pytest.approx(abs(factor - 1), abs=1e-9)


def test_a_constant_deviation_correlates_with_nothing_and_too_few_voxels_are_refused():
    assert math.isnan(calibration(np.arange(20.0), np.ones(20))["correlation"])
    assert math.isnan(calibration(np.arange(20.0), np.zeros(20))["ence"])
    with pytest.raises(InputError, match="10 bins"):
        calibration(np.arange(5.0), np.ones(5))
