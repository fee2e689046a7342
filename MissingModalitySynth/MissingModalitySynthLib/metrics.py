"""How close a synthesized volume comes to the acquired one: PSNR, NMSE, SSIM, MAE on 3D arrays, and Dice on labels.

Synthesized volumes have arbitrary units, so ``compare`` first brings prediction and target to one scale
(``scale_to_target``); the single metrics take arrays that are on one scale already. All arrays are numpy, indexed
[i, j, k], of equal shape; unequal ones and empty masks raise InputError. scikit-image is imported where SSIM is
computed, since importing it takes a while.
"""

from __future__ import annotations

import numpy as np

from .errors import InputError

# Voxels kept around the head when a whole volume is scored: without the crop, empty air would dominate every mean.
CROP_MARGIN = 4

_SSIM_WINDOWS = {
    # Wang et al. 2004; what MONAI's SSIMMetric computes by default.
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
    # scikit-image's default.
    "uniform7": {"win_size": 7},
}
_SSIM_WIDTH = {"gaussian": 11, "uniform7": 7}


def psnr(prediction: np.ndarray, target: np.ndarray, data_range: float = 1.0, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range² / MSE), over all voxels or those inside ``mask``.

    Infinite when the two are identical.
    """
    prediction, target = _inside(prediction, target, mask)
    mean_square = np.mean((prediction - target) ** 2)
    return float(10 * np.log10(data_range**2 / mean_square)) if mean_square > 0 else float("inf")


def nmse(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Normalized mean squared error, ‖y - ŷ‖² / ‖y‖², over all voxels or those inside ``mask``.

    Raises:
        InputError: the target is zero everywhere.
    """
    prediction, target = _inside(prediction, target, mask)
    energy = np.sum(target**2)
    if energy == 0:
        raise InputError("The NMSE is not defined for a target that is zero everywhere.")
    return float(np.sum((prediction - target) ** 2) / energy)


def mae(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean absolute error over all voxels or those inside ``mask``."""
    prediction, target = _inside(prediction, target, mask)
    return float(np.mean(np.abs(prediction - target)))


def ssim(
    prediction: np.ndarray,
    target: np.ndarray,
    data_range: float = 1.0,
    window: str = "gaussian",
    mask: np.ndarray | None = None,
) -> float:
    """Structural similarity (Wang et al. 2004) with a three-dimensional window.

    ``window`` is "gaussian" (sigma 1.5, 11 voxels wide, population covariance: MONAI's default) or "uniform7"
    (7 voxels wide, sample covariance: scikit-image's default). Without a mask the result is the mean over the
    voxels whose window lies fully in the volume; with one, the mean of the SSIM map inside the mask, where windows
    that cross the border of the volume see its mirror image.

    Raises:
        InputError: an axis is shorter than the window, the mask is empty, or the window unknown.
    """
    _check(prediction, target, mask)
    mean, similarity = ssim_map(prediction, target, data_range, window)
    return mean if mask is None else _mean(similarity[mask.astype(bool)])


def ssim_map(
    prediction: np.ndarray, target: np.ndarray, data_range: float = 1.0, window: str = "gaussian"
) -> tuple[float, np.ndarray]:
    """As :func:`ssim`: the mean over the voxels whose window lies fully in the volume, and the SSIM of every voxel."""
    if window not in _SSIM_WINDOWS:
        raise InputError(f"Unknown SSIM window {window!r}: choose one of {', '.join(_SSIM_WINDOWS)}.")
    if min(target.shape) < _SSIM_WIDTH[window]:
        raise InputError(
            f"SSIM with the {window} window needs {_SSIM_WIDTH[window]} voxels on every axis, "
            f"but the volume has {' x '.join(map(str, target.shape))}."
        )
    from skimage.metrics import structural_similarity

    mean, similarity = structural_similarity(
        prediction, target, data_range=data_range, full=True, **_SSIM_WINDOWS[window]
    )
    return float(mean), similarity


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))


def dice(labels_a: np.ndarray, labels_b: np.ndarray, label: int) -> float:
    """Dice coefficient 2|A∩B| / (|A| + |B|) of one label in two label maps; NaN when neither holds the label."""
    _check(labels_a, labels_b, None)
    a, b = labels_a == label, labels_b == label
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else float("nan")


def scale_to_target(
    prediction: np.ndarray, target: np.ndarray, mask: np.ndarray, low: float = 0.5, high: float = 99.5
) -> tuple[np.ndarray, np.ndarray]:
    """Bring prediction and target to one scale, [0, 1]; both are zero outside ``mask``.

    The target's own ``low`` and ``high`` percentiles, taken over the box of the mask with ``CROP_MARGIN``, become 0
    and 1 (clipped). The prediction is never normalized by itself: one gain and one offset, fitted to the scaled
    target by least squares inside the mask, map it, and it is clipped likewise. The fit may choose a negative gain,
    so copying a source of inverted contrast is scored at its best.

    Args:
        prediction: in any units.
        target: in any units; only the mask and a little air around it count.
        mask: true or non-zero inside the head or brain.
        low, high: percentiles, 0 to 100.

    Returns:
        (prediction, target) as float32 arrays of the shape that came in.

    Raises:
        InputError: shapes differ or the mask is empty.
    """
    _check(prediction, target, mask)
    inside = mask.astype(bool)
    bottom, top = np.percentile(target[box_of(inside)], [low, high])
    scaled_target = np.clip((target - bottom) / max(top - bottom, 1e-6), 0, 1) * inside
    gain, offset = gain_and_offset(prediction, scaled_target, inside)
    scaled_prediction = np.clip(gain * prediction + offset, 0, 1) * inside
    return scaled_prediction.astype(np.float32), scaled_target.astype(np.float32)


def gain_and_offset(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """The gain and the offset that bring a prediction closest to the target inside ``mask``, by least squares.

    A constant prediction gets the gain 0 and the target's mean as offset.
    """
    x, y = _inside(prediction, target, mask)
    variance = np.var(x)
    gain = np.mean((x - x.mean()) * (y - y.mean())) / variance if variance > 0 else 0.0
    return float(gain), float(y.mean() - gain * x.mean())


def compare(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """Score a prediction in any units against the acquired target in its own, after ``scale_to_target``.

    Args:
        prediction, target: each in its own units.
        mask: the head or brain; by default the head is found in the target (``intensity.head_mask``).

    Returns:
        psnr, nmse, ssim: over the box of the mask with ``CROP_MARGIN``, zero outside the mask; the protocol of Kim and
            Park (ALDM, WACV 2024: percentiles 0.5 to 99.5, data range 1) made precise.
        psnr_mask, ssim_mask, mae_mask: over the voxels inside the mask, so that air counts for nothing.
        SSIM is the Gaussian one, its map averaged over every voxel of the box or of the mask.

    Raises:
        InputError: as ``scale_to_target`` and ``ssim`` do.
    """
    if mask is None:
        from .intensity import head_mask

        mask = head_mask(target)
    scaled_prediction, scaled_target = scale_to_target(prediction, target, mask)
    box = box_of(mask.astype(bool))
    p, t, inside = scaled_prediction[box], scaled_target[box], mask[box].astype(bool)
    _, similarity = ssim_map(p, t)  # the slowest part by far: once for both means
    return {
        "psnr": psnr(p, t),
        "nmse": nmse(p, t),
        "ssim": _mean(similarity),
        "psnr_mask": psnr(p, t, mask=inside),
        "ssim_mask": _mean(similarity[inside]),
        "mae_mask": mae(p, t, mask=inside),
    }


def spectral_error(prediction: np.ndarray, target: np.ndarray, bands: int = 16) -> float:
    """Mean absolute difference in dB of two volumes' power spectra, averaged within bands of spatial frequency.

    A blurred prediction lacks power in the upper bands, a noisy one has too much there, whatever its PSNR says. The
    bands are equally wide, from 0 (which is left out) to the Nyquist frequency of the axes. 0 for equal spectra.
    """
    _check(prediction, target, None)
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in target.shape[:2]), np.fft.rfftfreq(target.shape[2]),
                              indexing="ij", sparse=True)  # fmt: skip
    radius = np.sqrt(sum(frequency**2 for frequency in frequencies))
    band = np.where((radius > 0) & (radius <= 0.5), np.ceil(2 * bands * radius), 0).astype(int).ravel()
    powers = [
        np.bincount(band, weights=np.abs(np.fft.rfftn(array)).ravel() ** 2, minlength=bands + 1)[1:]
        for array in (prediction, target)
    ]
    smallest = max(np.finfo(np.float32).tiny, 1e-12 * max(power.max() for power in powers))
    decibel = [10 * np.log10(np.maximum(power, smallest)) for power in powers]
    filled = np.bincount(band, minlength=bands + 1)[1:] > 0  # a small volume has few frequencies
    return float(np.mean(np.abs(decibel[0] - decibel[1])[filled]))


def calibration(error: np.ndarray, deviation: np.ndarray, bins: int = 10) -> dict[str, float | list[float]]:
    """Whether a predicted standard deviation says how large the error is.

    Args:
        error: prediction minus target, (N,), on one scale with
        deviation: the predicted standard deviation, (N,), non-negative.
        bins: of equal numbers of voxels, in the order of their deviation.

    Returns:
        deviation_bins, error_bins: by bin, the root mean square of the deviation and of the error: on the diagonal
            where calibrated. ence: expected normalized calibration error, the mean over the bins of
            |error - deviation| / deviation (Levi et al., Sensors 2022), without bins of no deviation at all.
            correlation: Pearson's, of |error| and deviation over voxels; NaN where either is constant.

    Raises:
        InputError: the shapes differ, or there are fewer voxels than bins.
    """
    _check(error, deviation, None)
    if error.size < bins:
        raise InputError(f"Calibration in {bins} bins needs as many voxels, but there are {error.size}.")
    order = np.argsort(deviation, axis=None, kind="stable")
    error, deviation = error.ravel()[order].astype(np.float64), deviation.ravel()[order].astype(np.float64)
    rms = [
        np.array([np.sqrt(np.mean(part**2)) for part in np.array_split(values, bins)]) for values in (deviation, error)
    ]
    known = rms[0] > 0
    constant = np.std(deviation) == 0 or np.std(np.abs(error)) == 0
    return {
        "deviation_bins": rms[0].tolist(),
        "error_bins": rms[1].tolist(),
        "ence": float(np.mean(np.abs(rms[1] - rms[0])[known] / rms[0][known])) if known.any() else float("nan"),
        "correlation": float("nan") if constant else float(np.corrcoef(np.abs(error), deviation)[0, 1]),
    }


def _check(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray | None) -> None:
    shapes = {array.shape for array in (prediction, target, mask) if array is not None}
    if len(shapes) > 1:
        raise InputError(
            "Volumes and mask can only be compared on one grid, but their sizes are "
            + " and ".join(" x ".join(map(str, shape)) for shape in sorted(shapes))
            + ": resample them to the same grid first."
        )
    if mask is not None and not np.any(mask):
        raise InputError("The mask is empty: there is no voxel to compare.")


def _inside(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    _check(prediction, target, mask)
    if mask is not None:
        inside = mask.astype(bool)
        prediction, target = prediction[inside], target[inside]
    return prediction.astype(np.float64), target.astype(np.float64)


def box_of(mask: np.ndarray, margin: int = CROP_MARGIN) -> tuple[slice, ...]:
    """The slices of the smallest box around the true voxels, wider by ``margin`` where the volume has room."""
    where = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(max(int(w[0]) - margin, 0), int(w[-1]) + margin + 1) for w in where)
