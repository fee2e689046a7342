"""Brain extraction: the brain of a whole head by a package's segmenter, so that it is synthesized without its skull.

Networks that learned mostly from skull-stripped brains take the brain of a whole head for something else: its
brightness is that of a head whose fat is the brightest, and what surrounds it they hardly know.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from torch import nn

from .input_range import LARGEST_BRAIN
from .segmentation import CLASSES, label
from .volume import Volume

_SMALLEST_BRAIN = 0.3  # litres, of an infant; with less than that the segmenter has found none
_SMALLEST_EXTENT_MM = 60.0  # along each axis, for the same; of a slab what is called brain may as well be neck
_ALL_BRAIN = 0.9  # share of the head; with more of it there is no skull to be left out
_STEP = 2  # voxels: half the resolution is enough for a smooth outline
_FOLD_MM = 8.0  # sulci and fissures narrower than twice this are filled, as in the masks of the training
_EDGE_MM = 5.0  # beyond the tissue; too much around a brain costs less than too little of it
_BRIDGES = (2, 3, 4, 5)  # voxels of half the resolution; half of what is cut of bridges to what looks like brain
_USUAL_BRAIN = 2.0  # litres with what is around the tissue; more may have face and neck on it: thicker bridges are cut


def shows_skull(image: np.ndarray, head: np.ndarray, voxel_mm3: float) -> bool:
    """Whether a head crop may show more than a brain: its background is no exact -1, or it is larger than a brain.

    Args:
        image: as the networks see it, see :func:`~.intensity.normalise`.
        head: bool, of the same shape.
    """
    return not (image == -1).any() or head.sum() * voxel_mm3 > 1e6 * LARGEST_BRAIN


def find_brain(
    segmenter: nn.Module,
    volume: Volume,
    head: np.ndarray,
    *,
    on_window: Callable[[float], None] = lambda share: None,
) -> np.ndarray:
    """The brain in a head, with its sulci, its ventricles and some fluid around it, as masks of stripped brains have.

    Args:
        segmenter: see :func:`~.segmentation.label`.
        volume: the head on a grid of about 1 mm, in any units.
        head: bool, on the volume's grid.
        on_window: called before each of the segmenter's windows with the share that is done.

    Returns:
        Bool on the volume's grid: nothing where no whole brain was found, all of the head where there is no skull.
    """
    tissues = label(segmenter, volume, mask=head, on_window=on_window).array
    coarse = (slice(None, None, _STEP),) * 3
    solid = tissues[coarse] > CLASSES.index("CSF")
    spacing = np.asarray(volume.geometry.spacing)
    brain = np.zeros_like(head)
    for thickness in _BRIDGES:
        part = _largest_part(solid, thickness)
        if not _may_be_brain(part, _STEP * spacing):
            break
        brain = _enlarged(_hull(part, _STEP * spacing), head.shape) & head
        if brain.sum() * np.prod(spacing) < 1e6 * _USUAL_BRAIN:
            break
    return brain if brain.sum() < _ALL_BRAIN * head.sum() else head


def _may_be_brain(part: np.ndarray, spacing: np.ndarray) -> bool:
    """Whether a mask is large enough for the tissue of a whole brain; the spacing in mm."""
    if part.sum() * np.prod(spacing) < 1e6 * _SMALLEST_BRAIN:
        return False
    extents = np.ptp(np.argwhere(part), axis=0) * spacing
    return bool((extents >= _SMALLEST_EXTENT_MM).all())


def _largest_part(solid: np.ndarray, thickness: int) -> np.ndarray:
    """The largest part of a mask once its bridges are cut, and its own thin folds; nothing where no part is left."""
    parts, count = ndimage.label(ndimage.binary_opening(solid, iterations=thickness))
    if not count:
        return np.zeros_like(solid)
    core = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return solid & ndimage.binary_dilation(core, iterations=thickness - 1)


def _hull(solid: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """A mask with its folds and holes filled and ``_EDGE_MM`` around it; the spacing in mm."""
    room = np.ceil(_FOLD_MM / spacing).astype(int) + 1  # the closing of a mask at the border must not wear it off
    solid = np.pad(solid, [(n, n) for n in room])
    grown = ndimage.distance_transform_edt(~solid, sampling=spacing) < _FOLD_MM
    closed = ndimage.binary_fill_holes(ndimage.distance_transform_edt(grown, sampling=spacing) > _FOLD_MM - _EDGE_MM)
    return closed[tuple(slice(n, -n) for n in room)]


def _enlarged(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of every ``_STEP``-th voxel on all of them, with a smooth edge."""
    share = ndimage.affine_transform(
        coarse.astype(np.float32), (1 / _STEP,) * 3, output_shape=shape, order=1, mode="nearest"
    )
    return share > 0.5
