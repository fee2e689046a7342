"""Intensities: head against air, robust ranges, scaling to [-1, 1] and back.

Networks see [-1, 1], scaled by the 0.5th and 99.5th percentile of the cropped head, background included (the
preprocessing of Kim and Park, "Adaptive Latent Diffusion Model for 3D Medical Image to Image Translation", WACV 2024).
What they make may be brighter, up to BRIGHTEST: oedema in FLAIR is, where the percentile lies in healthy tissue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.stats import entropy
from skimage.filters import threshold_otsu

from .errors import InputError

DARKEST = -1 + 2**-8  # of a head, in bfloat16 too: exactly -1 is background, so that dark fluid is no hole in a brain
BRIGHTEST = 2.2  # of what is made: 1.6 times the percentile

# Fractions of the bright tissue's signal (98th percentile): below the first may be air (as in FSL's BET); what differs
# less than the second from a constant background is an interpolation's ringing.
_FRACTION_OF_BRIGHT = 0.1
_TRACE = 0.01
_LEVEL = 0.001  # and less than this far from the head
_AIR_SHARE = 0.1  # with more such dark voxels inside a constant frame, that frame pads a whole head with its air
_OTSU_SHARE = 0.6  # Otsu's threshold lies between air and bright tissue; dark tissue and skull are below it
_HEAD_ON_BORDER = 0.6  # share of border voxels above the threshold, beyond which there is no air around
_AMID_TISSUE = 0.01  # share of voxels that must be darker than a background, beyond stray negative ones
_RIM = 2  # voxels, half the width of the gaps in a brain's outline that are closed
_SMALL_COMPONENT = 0.1  # of the largest one; smaller ones are noise, ghosts, a marker
_ENOUGH_VOXELS = 256
_SAMPLE_MM = 2.0  # distance of the voxels that tell of each other's neighbourhood, and of those neighbours
_NEIGHBOUR_MM = 4.0
_LEVELS = 16  # of intensity


@dataclass(frozen=True)
class IntensityRange:
    """The intensities that become -1 (``low``) and 1 (``high``).

    Raises:
        InputError: the range is empty or not finite.
    """

    low: float
    high: float

    def __post_init__(self):
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise InputError(f"The intensity range {self.low:g} to {self.high:g} is empty: there is no image in it.")

    @property
    def top(self) -> float:
        """What 1 becomes where 0 is background, see :func:`unscale`."""
        return self.high - min(self.low, 0.0)


def intensity_range(array: np.ndarray, low: float = 0.5, high: float = 99.5) -> IntensityRange:
    """The range between two percentiles of an array of any shape, background included.

    Where nearly all voxels are background, both percentiles fall on it; then the upper percentile is taken among the
    voxels brighter than the lower one.

    Raises:
        InputError: no voxel is brighter than the rest.
    """
    bottom, top = np.percentile(array, (low, high))
    if top <= bottom:
        brighter = array[array > bottom]
        if brighter.size == 0:
            raise InputError("The volume has no voxels brighter than its background: there is no image in it.")
        top = np.percentile(brighter, high)
    return IntensityRange(float(bottom), float(top))


def scale(array: np.ndarray, intensities: IntensityRange, brightest: float = 1.0) -> np.ndarray:
    """Map ``low`` to -1 and ``high`` to 1 and clip to [-1, ``brightest``]; float32, same shape."""
    scaled = (array.astype(np.float32) - np.float32(intensities.low)) * np.float32(
        2.0 / (intensities.high - intensities.low)
    )
    scaled -= 1
    return np.clip(scaled, -1, brightest, out=scaled)


def unscale(array: np.ndarray, intensities: IntensityRange) -> np.ndarray:
    """Map [-1, BRIGHTEST] to non-negative intensities in the units of the source; float32, same shape.

    -1 (background) becomes 0, and 1 becomes ``high``, so a synthetic volume has the source's usual window. A source
    with negative intensities (an offset) is shifted: 1 becomes ``high - low``.
    """
    return (np.clip(array, -1, BRIGHTEST).astype(np.float32) + 1) * np.float32(intensities.top / 2)


def normalise(
    array: np.ndarray,
    low: float = 0.5,
    high: float = 99.5,
    *,
    brightest: float = 1.0,
    native: np.ndarray | None = None,
) -> tuple[np.ndarray, IntensityRange]:
    """A head crop as the networks see it, in [-1, ``brightest``], and the range that was found.

    A constant background that lies amid the tissue, as that of a z-scored and skull-stripped volume does, is first set
    to the darkest intensity: the networks know background as dark. A constant background around the head is -1 and
    what it surrounds is at least DARKEST; without one, all is at least DARKEST.

    Args:
        array: the head crop, 3D.
        low, high: percentiles.
        brightest: where to clip.
        native: the image before it was resampled, after which a background is no longer constant; None: the array.

    Raises:
        InputError: there is no image in the array.
    """
    constant = _level_background(array if native is None else native)
    outside = None if constant is None else _outside(array, constant)
    if outside is not None and np.mean(array < constant) > _AMID_TISSUE:
        # tissue is as bright as this background somewhere, so that its rim is not open to it
        outside &= ~ndimage.binary_closing(~outside, iterations=_RIM)
        array = np.where(outside, array.min(), array)
    found = intensity_range(array, low, high)
    image = np.maximum(scale(array, found, brightest), np.float32(DARKEST))
    if outside is not None:
        image[outside] = -1
    return image, found


def background_value(array: np.ndarray) -> float:
    """The intensity of what lies outside the head.

    The value that most voxels of the border share exactly (skull-stripped and padded volumes), else a low percentile
    (air is dark in every contrast).
    """
    constant = _constant_background(array)
    return float(np.percentile(array, 1)) if constant is None else constant


def head_mask(array: np.ndarray) -> np.ndarray:
    """The head, or the brain of a skull-stripped volume, against the background.

    Skull-stripped: what differs from the constant background, whatever its value. Whole head: what is brighter than
    air, by Otsu's threshold on the smoothed image. Then the large connected components with their holes filled. A
    volume without any background (the field of view lies within the head) is head everywhere.

    Args:
        array: 3D, finite.

    Returns:
        Boolean array of the same shape, never empty.
    """
    array = np.asarray(array, dtype=np.float32)
    constant = _constant_background(array)
    deviation = array - (np.percentile(array, 1) if constant is None else constant)
    if constant is not None:
        deviation = np.abs(deviation)  # z-scored tissue lies on both sides of its background
    inside = deviation > 0
    if not inside.any():
        return np.ones(array.shape, dtype=bool)
    bright = np.percentile(deviation[inside], 98)
    if constant is not None:
        inside = deviation > _TRACE * bright
        dark = np.mean(deviation[inside] < _FRACTION_OF_BRIGHT * bright)
        two_sided = array.min() < constant - _FRACTION_OF_BRIGHT * bright
        if two_sided or dark < _AIR_SHARE:
            return _fill_holes(_large_components(inside))

    # Every second voxel is enough beyond 256 along an axis: the result is smooth, and takes an eighth of the time.
    steps = [-(-n // _ENOUGH_VOXELS) for n in array.shape]
    mask = _head_in_air(deviation[tuple(slice(None, None, step) for step in steps)], bright)
    for axis, step in enumerate(steps):
        mask = mask.repeat(step, axis)
    return mask[tuple(slice(n) for n in array.shape)]


def neighbour_information(array: np.ndarray, mask: np.ndarray, spacing: Sequence[float]) -> float:
    """What the intensity of a voxel inside the head tells of the one about 4 mm further: mutual information in nats.

    Near 0 where the head is constant or noise, whatever its outline; scans have from 0.02 (as noisy as SNR 5) to 1. The
    least of the three axes counts, so that noise which was smeared across thick slices is noise. The bias of the finite
    histogram is subtracted (Miller 1955), so that the value can be negative; infinite for a head of too few voxels.

    Args:
        array: 3D, finite.
        mask: the head, bool.
        spacing: of the voxels in mm.
    """
    steps = [max(1, round(_SAMPLE_MM / mm)) for mm in spacing]
    cut = tuple(slice(None, None, step) for step in steps)
    array, inside = array[cut], ndimage.binary_erosion(mask[cut], iterations=2)  # the outline is no anatomy
    if not inside.any():
        return np.inf
    low, high = np.percentile(array[inside], (1, 99))
    if low == high:
        return 0.0
    level = np.clip((array - low) * (_LEVELS / (high - low)), 0, _LEVELS - 1).astype(int)
    found = []
    for axis, (step, mm) in enumerate(zip(steps, spacing, strict=True)):
        apart = max(1, round(_NEIGHBOUR_MM / (step * mm)))
        levels, both = np.moveaxis(level, axis, 0), np.moveaxis(inside, axis, 0)
        pairs = both[apart:] & both[:-apart]
        if not pairs.any():
            return np.inf
        counts, *_ = np.histogram2d(levels[apart:][pairs], levels[:-apart][pairs], _LEVELS, [(0, _LEVELS)] * 2)
        parts = counts.sum(0), counts.sum(1), counts.ravel()
        bias = np.dot((-1, -1, 1), [np.count_nonzero(part) for part in parts]) + 1
        found.append(np.dot((1, 1, -1), [entropy(part) for part in parts]) - bias / (2 * counts.sum()))
    return float(min(found))


def _head_in_air(deviation: np.ndarray, bright: float) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.clip(deviation, 0, bright), 1.0, truncate=2.0)
    mask = smooth > max(_FRACTION_OF_BRIGHT * bright, _OTSU_SHARE * threshold_otsu(smooth))
    if not mask.any() or np.mean(_border(mask)) > _HEAD_ON_BORDER:
        return np.ones(mask.shape, dtype=bool)
    mask = _large_components(mask)
    # Skull and sinuses reach the lower end of the field of view, but are enclosed in slices of one orientation.
    return np.logical_or.reduce([_fill_holes(mask, within_slices_of=axis) for axis in range(3)])


def _border(array: np.ndarray, axes: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """All voxels of the faces at both ends of the axes (those of the edges count twice)."""
    return np.concatenate([np.take(array, end, axis=axis).ravel() for axis in axes for end in (0, -1)])


def _constant_background(array: np.ndarray) -> float | None:
    values, counts = np.unique(_border(array), return_counts=True)
    commonest = counts.argmax()
    return float(values[commonest]) if counts[commonest] > 0.5 * counts.sum() else None


def _level_background(array: np.ndarray) -> float | None:
    """A background as :func:`_constant_background` finds it, also where an interpolation left traces far from the head.

    Air has more noise than that.
    """
    border = _border(array)
    level = float(np.median(border))
    bright = np.percentile(np.abs(array - level), 99)
    return level if np.mean(np.abs(border - level) <= _LEVEL * bright) > 0.5 else None


def _outside(array: np.ndarray, constant: float) -> np.ndarray:
    """What is as the constant background, but for traces of interpolation, and connected to the border."""
    deviation = np.abs(array - np.float32(constant))
    inside = deviation > 0
    if not inside.any():
        return ~inside
    return ~_fill_holes(deviation > _TRACE * np.percentile(deviation[inside], 98))


def _large_components(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= _SMALL_COMPONENT * max(sizes.max(), 1))[labels]


def _fill_holes(mask: np.ndarray, within_slices_of: int | None = None) -> np.ndarray:
    """Fill what the border can't reach, in 3D or within the slices across one axis.

    By connected components, which takes a fraction of the time of scipy's iterated dilation.
    """
    neighbours = ndimage.generate_binary_structure(3, 1)
    axes = [0, 1, 2]
    if within_slices_of is not None:
        axes.remove(within_slices_of)
        neighbours[tuple(slice(None) if axis in axes else [0, 2] for axis in range(3))] = False
    labels, count = ndimage.label(~mask, neighbours)
    outside = np.zeros(count + 1, dtype=bool)
    outside[np.unique(_border(labels, tuple(axes)))] = True
    outside[0] = False
    return ~outside[labels]
