"""A volume: a 3D array with its place in the patient, and the checks that every acquired volume passes.

World coordinates are LPS in millimetres (left, posterior, superior are positive), as in ITK and DICOM. The first axis
of every array is the first image axis: ``array[i, j, k]``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import SimpleITK as sitk

from .errors import GeometryError, InputError

MIN_SIZE, MAX_SIZE = 16, 512
# Direction cosines are written with 6 decimals by some scanners and as float32 quaternions by NIfTI.
_ORTHONORMAL_TOLERANCE = 1e-3
_ZERO_COSINE = 1e-14


@dataclass(frozen=True)
class Geometry:
    """The grid of an image.

    Attributes:
        size: number of voxels along the image axes i, j, k.
        spacing: distance of neighbouring voxel centres along i, j, k in mm.
        origin: world position (LPS, mm) of the centre of voxel (0, 0, 0).
        direction: 3x3 matrix, row-major; its columns are the world directions of the image axes.

    Raises:
        GeometryError: a spacing is not positive, or the direction is not orthonormal.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[tuple[float, float, float], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

    def __post_init__(self):
        size = tuple(int(n) for n in self.size)
        spacing = tuple(float(s) for s in self.spacing)
        origin = tuple(float(o) for o in self.origin)
        matrix = np.asarray(self.direction, dtype=float)
        if len(size) != 3 or len(spacing) != 3 or len(origin) != 3 or matrix.size != 9:
            raise GeometryError(f"A volume needs three axes, but its size is {size} and its spacing {spacing}.")
        matrix = matrix.reshape(3, 3)
        if min(size) < 1:
            raise GeometryError(f"The size {size} is not positive along every axis.")
        if not all(np.isfinite(s) and s > 0 for s in spacing):
            raise GeometryError(f"The voxel spacing {_round(spacing)} mm is not positive along every axis.")
        if not np.isfinite(origin).all():
            raise GeometryError(f"The origin {origin} is not finite.")
        # "not <=" also refuses NaN
        if not np.abs(matrix.T @ matrix - np.eye(3)).max() <= _ORTHONORMAL_TOLERANCE:
            raise GeometryError(
                f"The direction matrix {matrix.round(4).tolist()} is not orthonormal (sheared or scaled)."
            )
        # Cosines of about 1e-310, which rotations near 180 degrees leave, make ITK's inverse of the matrix wrong.
        matrix = np.where(np.abs(matrix) < _ZERO_COSINE, 0.0, matrix)
        for name, value in (("size", size), ("spacing", spacing), ("origin", origin)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "direction", tuple(tuple(row) for row in matrix.tolist()))

    @property
    def affine(self) -> np.ndarray:
        """4x4 matrix from homogeneous voxel indices to world coordinates (LPS, mm)."""
        affine = np.eye(4)
        affine[:3, :3] = np.asarray(self.direction) * self.spacing
        affine[:3, 3] = self.origin
        return affine

    def index_to_world(self, index: Sequence | np.ndarray) -> np.ndarray:
        """World positions (..., 3) in LPS mm of (continuous) voxel indices (..., 3)."""
        return np.asarray(index, dtype=float) @ self.affine[:3, :3].T + self.origin

    def world_to_index(self, point: Sequence | np.ndarray) -> np.ndarray:
        """Continuous voxel indices (..., 3) of world positions (..., 3) in LPS mm."""
        return (np.asarray(point, dtype=float) - self.origin) @ np.linalg.inv(self.affine[:3, :3]).T

    @property
    def corners(self) -> np.ndarray:
        """World positions (8, 3) of the corners of the field of view, at the outer edges of the outermost voxels."""
        return self.index_to_world(list(product(*((-0.5, n - 0.5) for n in self.size))))

    def matches(self, other: "Geometry", tol: float = 1e-6) -> bool:
        """Whether both are the same grid: sizes equal, all else within ``tol`` (relative for values beyond 1)."""
        return self.size == other.size and all(
            np.allclose(getattr(self, name), getattr(other, name), rtol=tol, atol=tol)
            for name in ("spacing", "origin", "direction")
        )


@dataclass(frozen=True, eq=False)
class Volume:
    """An image with its geometry; treated as immutable.

    Attributes:
        array: voxels indexed [i, j, k]; float32 for images.
        geometry: the grid; its size is the array's shape.
        name: what messages call the volume.
        metadata: what was read beside the voxels, by DICOM keyword where there is one ("EchoTime": "3.2").
    """

    array: np.ndarray
    geometry: Geometry
    name: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.array.shape != self.geometry.size:
            raise GeometryError(
                f"{_called(self.name)} has an array of shape {self.array.shape} on a grid of size {self.geometry.size}."
            )


def check_usable(volume: Volume) -> None:
    """Refuse a volume that no network can work on.

    Raises:
        GeometryError: an axis has fewer than 16 or more than 512 voxels.
        InputError: voxels are NaN or infinite, or all the same.
    """
    called = _called(volume.name)
    for axis, n in zip("ijk", volume.geometry.size, strict=True):
        if not MIN_SIZE <= n <= MAX_SIZE:
            advice = "crop or resample it" if n > MAX_SIZE else "a 3D acquisition is needed"
            raise GeometryError(
                f"{called} has {n} voxels along axis {axis}, outside {MIN_SIZE} to {MAX_SIZE}: {advice}."
            )
    bad = volume.array.size - np.count_nonzero(np.isfinite(volume.array))
    if bad:
        raise InputError(f"{called} has {bad} voxels that are NaN or infinite: repair them first.")
    low, high = volume.array.min(), volume.array.max()
    if low == high:
        raise InputError(f"{called} is constant: every voxel is {low:g}, so there is no image in it.")


def from_sitk(image: sitk.Image, name: str = "", metadata: Mapping[str, str] | None = None) -> Volume:
    """The Volume (float32) of a scalar 3D SimpleITK image.

    Raises:
        GeometryError: the grid is invalid, see ``Geometry``.
    """
    geometry = Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which check_usable refuses by its own sentence
        array = sitk.GetArrayViewFromImage(image).T.astype(np.float32)
    return Volume(array, geometry, name, dict(metadata or {}))


def to_sitk(volume: Volume) -> sitk.Image:
    """The SimpleITK image of a Volume, on the same grid; the voxels are copied."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    geometry = volume.geometry
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.ravel(geometry.direction).tolist())
    return image


def _called(name: str) -> str:
    return f"Volume '{name}'" if name else "The volume"


def _round(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
