"""Sources as the networks see them: on one canonical grid, scaled, with what is needed for the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from .canonical import CanonicalGrid, canonical_grid, from_canonical, mask_to_canonical, to_canonical
from .errors import InputError
from .intensity import IntensityRange, head_mask, neighbour_information, normalise
from .package_format import ZERO_SHOT
from .request import Request
from .shading import shared_shading
from .volume import Geometry, Volume

_INSIDE = 0.1  # share of the head in a voxel; below, splines only ring around it
_ANATOMY = 0.01  # nats of neighbour_information; noise has below 0.005, a scan of SNR 5 has 0.02
_MASK_MARGIN = 1  # voxels kept around the head, where the target may be brighter than the source
_BRAIN_MARGIN_MM = 5.0  # around a brain that is taken out of its head, as around a head


@dataclass(frozen=True)
class Prepared:
    """Sources on the canonical grid.

    Attributes:
        arrays: by modality: (X, Y, Z) float32 in the volume's units.
        images: by modality: (1, 1, X, Y, Z) in [-1, 1].
        intensities: of the reference, or where it is no source of the first one: what -1 and 1 stand for.
        mask: the head on the canonical grid, with a margin.
        native_mask: the same on the reference's grid.
        shading: what results get, None for none.
    """

    grid: CanonicalGrid
    arrays: dict[str, np.ndarray]
    images: dict[str, torch.Tensor]
    intensities: IntensityRange
    mask: np.ndarray
    native_mask: np.ndarray
    shading: np.ndarray | None


@dataclass(frozen=True)
class Brain:
    """What a head's brain is when all around it is background.

    Attributes:
        grid: a part of the head's canonical grid.
        box: that part, as slices of the head's arrays.
        images, intensities: as of :class:`Prepared`.
        mask: the brain, bool, on this grid.
    """

    grid: CanonicalGrid
    box: tuple[slice, ...]
    images: dict[str, torch.Tensor]
    intensities: IntensityRange
    mask: np.ndarray


def prepare(request: Request, multiple: int) -> Prepared:
    """The sources of a checked request.

    Args:
        multiple: every axis of the grid is a multiple of this many voxels.

    Raises:
        InputError: a source has no image in it; zero-shot synthesis: or no anatomy.
    """
    reference = request.reference
    head = head_mask(reference.array)
    grid = canonical_grid(reference, request.package.spacing, multiple, mask=head)
    mask = mask_to_canonical(head, reference.geometry, grid)
    arrays = {modality: to_canonical(volume, grid) for modality, volume in request.sources.items()}
    for modality, volume in request.sources.items():
        if request.method == ZERO_SHOT:  # the others know how their sources look, see input_range
            _check_anatomy(volume, head if volume is reference else head_mask(volume.array))
        if volume is not reference:
            mask |= head_mask(arrays[modality])
    images, intensities = _scaled(
        arrays, request, {modality: volume.array for modality, volume in request.sources.items()}
    )
    mask = ndimage.binary_dilation(mask, iterations=_MASK_MARGIN)
    native_mask = from_canonical(mask, grid).array > _INSIDE
    shading = None
    if request.shading and request.package.unshaded:
        shading = shared_shading((image[0, 0].numpy() for image in images.values()), mask, grid.geometry.spacing)
    return Prepared(grid, arrays, images, intensities, mask, native_mask, shading)


def take_out(brain: np.ndarray, request: Request, prepared: Prepared, multiple: int) -> Brain:
    """The brain of a prepared head as if its skull had been stripped: scaled by its own brightest tissue.

    Args:
        brain: bool, on the canonical grid; some of it is true.
        multiple: every axis of the brain's grid is a multiple of this many voxels, as of the head's.
    """
    geometry = prepared.grid.geometry
    box = tuple(
        _side(np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis}))), brain.shape[axis], spacing, multiple)
        for axis, spacing in enumerate(geometry.spacing)
    )
    start = [side.start for side in box]
    size = [side.stop - side.start for side in box]
    inner = Geometry(size, geometry.spacing, geometry.index_to_world(start), geometry.direction)
    stripped = {}
    for modality, array in prepared.arrays.items():
        inside = array[box]
        stripped[modality] = np.where(brain[box], inside, min(float(inside.min()), 0.0))
    images, intensities = _scaled(stripped, request)
    return Brain(CanonicalGrid(inner, prepared.grid.reference), box, images, intensities, brain[box])


def _scaled(
    arrays: Mapping[str, np.ndarray], request: Request, natives: Mapping[str, np.ndarray] | None = None
) -> tuple[dict[str, torch.Tensor], IntensityRange]:
    """Sources on one grid as the networks see them, and the range of the reference, or where it is no source of the
    first one; ``natives``: before they were resampled, see :func:`~.intensity.normalise`."""
    images: dict[str, torch.Tensor] = {}
    intensities = None
    for modality, array in arrays.items():
        image, found = normalise(array, *request.package.metadata["percentiles"], native=(natives or {}).get(modality))
        if intensities is None or request.sources[modality] is request.reference:
            intensities = found
        images[modality] = torch.from_numpy(image)[None, None]
    return images, intensities


def _side(occupied: np.ndarray, size: int, spacing: float, multiple: int) -> slice:
    """The voxels of one axis that show the brain and its margin: a multiple of so many, among ``size``."""
    margin = int(np.ceil(_BRAIN_MARGIN_MM / spacing))
    low, high = int(occupied[0]) - margin, int(occupied[-1]) + 1 + margin
    length = min(-(-(high - low) // multiple) * multiple, size)
    start = min(max((low + high - length) // 2, 0), size - length)
    return slice(start, start + length)


def _check_anatomy(volume: Volume, head: np.ndarray) -> None:
    if neighbour_information(volume.array, head, volume.geometry.spacing) < _ANATOMY:
        raise InputError(
            f"'{volume.name}' shows no anatomy that could guide the method '{ZERO_SHOT}', as its head is constant or "
            "noise; check that it is the volume you meant."
        )
