"""How a prediction is scored: two protocols, the lesion, the uncertainty, and a judge from outside.

In both protocols the target's own percentiles make its scale, [0, 1], and one gain and one offset, fitted inside the
mask, bring the prediction to it: see ``metrics.scale_to_target``. Outside the mask both are 0.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from MissingModalitySynthLib import metrics
from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.intensity import background_value
from MissingModalitySynthLib.segmentation import CLASSES
from MissingModalitySynthLib.volume import Geometry, Volume

from .cases import Case
from .lesions import lesion_scores

PAPER_BOX_MM = (192.0, 192.0, 144.0)  # along R, A, S: the crop of ALDM's BraTS volumes
_AIR = 8  # voxels of zeros around a head, beyond which every window of SSIM sees zeros only
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], Mapping[str, float]]
Scores = dict[str, float]


def score(prediction: np.ndarray, acquired: Volume, case: Case, *, paper: bool = True) -> Scores:
    """All scores of one prediction, (i, j, k) in any units, against the acquired volume on the same grid.

    Args:
        paper: also by protocol 1.

    Returns:
        paper_psnr, paper_nmse, paper_ssim, paper_ssim_uniform: protocol 1, see :func:`paper_comparable`.
        psnr, nmse, ssim: over the crop of the head (``metrics.compare``).
        psnr_mask, ssim_mask, mae_mask, nmse_mask, and mae_<tissue>, mae_lesion where known: protocol 2, inside the
            mask. spectral: ``metrics.spectral_error`` of the crop in dB.
        lesion_contrast, lesion_contrast_acquired, lesions_clear, lesions_right: see ``lesions.lesion_scores``.
    """
    target, mask = acquired.array, case.mask
    scores = metrics.compare(prediction, target, mask)
    if paper:
        scores |= paper_comparable(prediction, acquired, mask)
    whole = metrics.scale_to_target(prediction, target, mask)
    scaled, truth = (_crop(array, mask) for array in whole)
    inside = _crop(mask, mask)
    scores["nmse_mask"] = metrics.nmse(scaled, truth, inside)
    scores["spectral"] = metrics.spectral_error(scaled, truth)
    tissues = None if case.tissues is None else _crop(case.tissues, mask)
    if tissues is not None:
        for index, name in enumerate(CLASSES[1:-1], start=1):
            if (tissues == index).any():
                scores[f"mae_{name.replace(' ', '_')}"] = metrics.mae(scaled, truth, tissues == index)
    if case.lesion is not None:
        scores["mae_lesion"] = metrics.mae(scaled, truth, _crop(case.lesion, mask))
    if case.lesions is not None:
        scores |= lesion_scores(case.lesions, *whole)
    return scores


def paper_comparable(prediction: np.ndarray, acquired: Volume, mask: np.ndarray) -> Scores:
    """PSNR, NMSE and SSIM over a box of 192 x 192 x 144 mm around the head, the crop of Kim & Park (WACV 2024).

    The paper does not say more than that. Here the percentiles 0.5 and 99.5 of the target's box become 0 and 1, the
    data range is 1, SSIM is three-dimensional with a Gaussian window (sigma 1.5) or a uniform one of 7 voxels, and its
    mean is over all voxels of the box. A head that does not fill the box has air around it, which is always right.
    """
    box, count = _paper_box(acquired.geometry, mask)
    inside, target = mask[box], acquired.array[box]
    missing = np.full(count - target.size, background_value(acquired.array))
    low, high = np.percentile(np.concatenate([target.ravel(), missing]), [0.5, 99.5])
    truth = np.clip((target - low) / max(high - low, 1e-6), 0, 1) * inside
    gain, offset = metrics.gain_and_offset(prediction[box], truth, inside)
    scaled = np.clip(gain * prediction[box] + offset, 0, 1) * inside
    squares = float(np.sum((scaled - truth) ** 2, dtype=np.float64))
    scores = {
        "paper_psnr": float(10 * np.log10(count / squares)) if squares > 0 else float("inf"),
        "paper_nmse": squares / float(np.sum(truth**2, dtype=np.float64)),
    }
    padded = [np.pad(array.astype(np.float32), _AIR) for array in (_crop(scaled, inside), _crop(truth, inside))]
    for key, window in (("paper_ssim", "gaussian"), ("paper_ssim_uniform", "uniform7")):
        similarity = metrics.ssim_map(*padded, window=window)[1]  # 1 wherever both are 0
        scores[key] = 1 - float(np.sum(1 - similarity, dtype=np.float64)) / count
    return scores


def calibrate(prediction: np.ndarray, deviation: np.ndarray, target: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """``metrics.calibration`` inside the mask, of a prediction and its standard deviation in the same units."""
    scaled, truth = metrics.scale_to_target(prediction, target, mask)
    gain, _ = metrics.gain_and_offset(prediction, truth, mask)
    return metrics.calibration((scaled - truth)[mask], abs(gain) * deviation[mask])


def load_judge(path: Path) -> Judge:
    """The function ``scores(prediction, target, mask) -> {"psnr": ..., "ssim": ...}`` of a Python file.

    The file is run: give only one that you trust.

    Raises:
        InputError: the file cannot be read or run, or has no such function.
    """
    try:
        content = runpy.run_path(str(path))
    except (OSError, SyntaxError, ImportError) as error:
        raise InputError(f"The judge '{path}' cannot be run ({error}); give a Python file with `scores`.") from error
    if not callable(content.get("scores")):
        raise InputError(f"The judge '{path}' has no function scores(prediction, target, mask).")
    return content["scores"]


def _crop(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return array[metrics.box_of(mask)]


def _paper_box(grid: Geometry, mask: np.ndarray) -> tuple[tuple[slice, ...], int]:
    """The part of the array in the box around the mask's centre, and how many voxels the whole box has."""
    anatomical = np.abs(np.asarray(grid.direction)).argmax(axis=0)  # of each image axis: 0 R, 1 A, 2 S
    slices, count = [], 1
    for axis, tight in enumerate(metrics.box_of(mask, margin=0)):
        size = max(round(PAPER_BOX_MM[anatomical[axis]] / grid.spacing[axis]), 1)
        start = (tight.start + min(tight.stop, mask.shape[axis]) - size) // 2
        slices.append(slice(max(start, 0), max(min(start + size, mask.shape[axis]), 0)))
        count *= size
    return tuple(slices), count
