"""What real scans do to a source: each corruption is applied alone, and the loss in dB is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from MissingModalitySynthLib.canonical import resample_to
from MissingModalitySynthLib.intensity import background_value
from MissingModalitySynthLib.volume import Geometry, Volume

from ..loop import generator_at
from ..simulation.randomness import smooth_field
from .cases import Case

SLICE_MM = 5.0
BIAS = 0.35  # standard deviation of the field's logarithm, beyond the 0.3 of training at most
NOISE = 0.08  # of the 98th percentile, beyond the 0.045 of training at most
ANGLE = np.deg2rad(20.0)
TIGHTER_MM = 2.0
DIRECTIONS = ("sagittal", "coronal", "axial")  # slices across R, A, S
Back = Callable[[Volume], np.ndarray]


def corruptions(case: Case, source: Volume) -> Iterator[tuple[str, Volume, Back, np.ndarray]]:
    """Each corruption's name, the corrupted source, the way of a result back to the case's grid, and the mask to score.

    - slices of 5 mm: what a scan of 5 mm slices without gaps shows, interpolated to the original grid;
    - header rotated: the same voxels, said to lie 20 degrees oblique about two axes;
    - axes permuted: the same voxels in space, stored in another order of axes, one of them flipped;
    - acquired obliquely: voxels on a grid that lies 20 degrees oblique about two axes, as of a tilted head;
    - bias field: times the exponential of a smooth Gaussian field;
    - noise: Rician; a constant background, as around a stripped brain, stays;
    - skull-stripped: whole heads whose brain is known. What was removed from a scan cannot be put back;
    - mask 2 mm tighter: of what is stripped already, more is removed.
    """
    for axis, direction in _axes(source.geometry):
        yield f"{SLICE_MM:.0f} mm {direction} slices", thick_slices(source, axis), _array, case.mask

    def back(result: Volume) -> np.ndarray:
        return resample_to(result, source.geometry, 0.0).array

    yield "header rotated", replace(source, geometry=rotated(source.geometry)), _array, case.mask
    yield "axes permuted", permute(source), back, case.mask
    yield "acquired obliquely", resample_to(source, around(source.geometry)), back, case.mask
    yield "bias field", biased(source), _array, case.mask
    yield "noise", noisy(source), _array, case.mask
    if case.brain is not None:
        yield "skull-stripped", _cut(source, case.brain, 0.0), _array, case.mask & case.brain
    else:
        spacing = source.geometry.spacing
        # to the centre of the nearest voxel outside, half a voxel beyond the edge
        distance = ndimage.distance_transform_edt(case.mask, sampling=spacing) - min(spacing) / 2
        inner = distance > TIGHTER_MM
        yield f"mask {TIGHTER_MM:.0f} mm tighter", _cut(source, inner, background_value(source.array)), _array, inner


def thick_slices(volume: Volume, axis: int) -> Volume:
    """Slices of 5 mm along an image axis, brought back to the volume's grid by the engine's cubic splines."""
    grid = volume.geometry
    ratio = SLICE_MM / grid.spacing[axis]
    size, spacing, start = list(grid.size), list(grid.spacing), np.zeros(3)
    size[axis], spacing[axis] = max(int(grid.size[axis] / ratio), 2), SLICE_MM
    start[axis] = (ratio - 1) / 2  # the outer edges of the first voxels coincide
    thick = resample_to(volume, Geometry(size, spacing, grid.index_to_world(start), grid.direction))
    return replace(resample_to(thick, grid), name=volume.name, metadata=volume.metadata)


def rotated(grid: Geometry) -> Geometry:
    """The grid turned about its centre, by 20 degrees about the world's first and then its last axis."""
    cosine, sine = np.cos(ANGLE), np.sin(ANGLE)
    first = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    last = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    turn = last @ first
    centre = grid.index_to_world((np.asarray(grid.size) - 1) / 2)
    return replace(grid, origin=tuple(centre + turn @ (grid.origin - centre)), direction=turn @ grid.direction)


def around(grid: Geometry) -> Geometry:
    """A grid turned as in :func:`rotated`, of the same voxels and large enough to hold all of the given one."""
    turned = rotated(grid)
    index = turned.world_to_index(grid.corners)
    first, last = np.floor(index.min(axis=0)), np.ceil(index.max(axis=0))
    size = tuple((last - first + 1).astype(int).tolist())
    return replace(turned, size=size, origin=tuple(turned.index_to_world(first)))


def permute(volume: Volume) -> Volume:
    """The axes i, j, k stored as k, i, j with j reversed."""
    grid, order = volume.geometry, [2, 0, 1]
    array = volume.array.transpose(order)[:, :, ::-1]
    direction = np.asarray(grid.direction)[:, order] * (1, 1, -1)
    origin = grid.index_to_world((0, grid.size[1] - 1, 0))
    size, spacing = ([values[axis] for axis in order] for values in (grid.size, grid.spacing))
    return replace(volume, array=np.ascontiguousarray(array), geometry=Geometry(size, spacing, origin, direction))


def biased(volume: Volume) -> Volume:
    """A strong receive field, the same for every volume of a shape."""
    shape = volume.array.shape
    field = smooth_field(generator_at(1), shape, max(shape) / 2, "cpu").numpy()
    background = background_value(volume.array)
    array = background + (volume.array - background) * np.exp(BIAS * field)
    return replace(volume, array=array.astype(np.float32))


def noisy(volume: Volume) -> Volume:
    """Rician noise (Gudbjartsson & Patz, MRM 1995), the same for every volume of a shape."""
    background = background_value(volume.array)
    signal = volume.array - background
    sigma = NOISE * np.percentile(signal[signal != 0], 98)
    generator = generator_at(2)
    real, imaginary = (torch.randn(signal.shape, generator=generator).numpy() * sigma for _ in range(2))
    magnitude = background + np.hypot(signal + real, imaginary)
    return replace(volume, array=np.where(signal == 0, volume.array, magnitude).astype(np.float32))


def _cut(volume: Volume, kept: np.ndarray, background: float) -> Volume:
    return replace(volume, array=np.where(kept, volume.array, background).astype(np.float32))


def _axes(grid: Geometry) -> list[tuple[int, str]]:
    """Each image axis with the slices that lie across it."""
    anatomical = np.abs(np.asarray(grid.direction)).argmax(axis=0)
    return [(axis, DIRECTIONS[anatomical[axis]]) for axis in range(3)]


def _array(result: Volume) -> np.ndarray:
    return result.array
