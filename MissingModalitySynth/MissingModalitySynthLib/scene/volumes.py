"""Volume nodes as the engine's Volumes, and back: the voxels without needless copies, the grid to the last bit.

MRML's world is RAS, the engine's is LPS; the sign of two axes is the only difference, so nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from ..errors import GeometryError, InputError
from ..modality import guess_modality
from .provenance import TARGET, is_deviation, is_synthetic

if TYPE_CHECKING:  # they load SimpleITK, which a panel can do without until the first run
    from ..volume import Geometry, Volume

Grid = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]  # spacing; origin, directions by row in RAS

_LPS = np.diag((-1.0, -1.0, 1.0))
_SLAB = 32
_DICOM_TAGS = {
    "Modality": "0008,0060",
    "SeriesDescription": "0008,103e",
    "ContrastBolusAgent": "0018,0010",
    "ScanningSequence": "0018,0020",
    "SequenceName": "0018,0024",
    "RepetitionTime": "0018,0080",
    "EchoTime": "0018,0081",
    "InversionTime": "0018,0082",
    "ProtocolName": "0018,1030",
}


def geometry_of(node) -> Geometry:
    """The grid of a volume node in its own coordinates, that is, without its parent transform.

    Raises:
        InputError: the volume is empty.
        GeometryError: its axes are sheared, or a spacing is not positive.
    """
    from ..volume import Geometry

    directions = np.array(_directions(node)).reshape(3, 3)
    try:
        return Geometry(_size(node), node.GetSpacing(), _LPS @ node.GetOrigin(), _LPS @ directions)
    except GeometryError as error:
        raise GeometryError(f"'{node.GetName()}': {error}") from error


def volume_of(node) -> Volume:
    """The Volume of a scalar volume node in its own coordinates, that is, without its parent transform.

    Returns:
        Voxels [i, j, k] in Fortran order, float32; read-only, and where the node has float32 voxels a view of them.

    Raises:
        InputError: the node is no scalar volume, a label map, or empty.
        GeometryError: see ``geometry_of``.
    """
    from ..volume import Volume

    check_scalar(node)
    geometry = geometry_of(node)
    scalars = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())
    array = scalars.astype(np.float32, copy=False).reshape(geometry.size, order="F")
    array.flags.writeable = False
    return Volume(array, geometry, node.GetName() or "")


def volumes_of(sources: Mapping[str, Any], reference: str) -> dict[str, Volume]:
    """The Volumes of several nodes in one frame: the coordinates of the reference node, without its parent transform.

    What all nodes have in common of their parent transforms, linear or not, cancels; what differs is applied to the
    grids and has to be rigid.

    Args:
        sources: volume nodes by modality.
        reference: the modality whose node is the reference; its grid is kept to the last bit.

    Raises:
        InputError: see ``volume_of``.
        GeometryError: see ``geometry_of``; or a node is not rigidly related to the reference.
    """
    from ..volume import Geometry

    base = sources[reference]
    volumes = {}
    for modality, node in sources.items():
        volume = volume_of(node)
        matrix = _to_frame_of(base, node)
        if matrix is not None:
            affine = _as_lps(matrix) @ volume.geometry.affine
            spacing = np.linalg.norm(affine[:3, :3], axis=0)
            try:
                moved = Geometry(volume.geometry.size, spacing, affine[:3, 3], affine[:3, :3] / spacing)
            except GeometryError as error:
                raise GeometryError(
                    f"The transforms of '{node.GetName()}' and '{base.GetName()}' differ by more than a rigid movement "
                    f"and a scaling along the axes: resample '{node.GetName()}' onto '{base.GetName()}' first."
                ) from error
            volume = replace(volume, geometry=moved)
        volumes[modality] = volume
    return volumes


def check_scalar(node) -> None:
    """Refuse what is not one grey value per voxel.

    Raises:
        InputError: the node is no scalar volume, a label map, or empty; the message names it.
    """
    name = node.GetName()
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        raise InputError(f"'{name}' is no volume: choose a scalar volume.")
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise InputError(f"'{name}' is a label map: choose the scan that it belongs to.")
    _size(node)
    scalars = node.GetImageData().GetPointData().GetScalars()
    if scalars is None or scalars.GetNumberOfComponents() != 1:
        raise InputError(f"'{name}' has several values per voxel: extract the component to use as a scalar volume.")


def image_of(array: np.ndarray) -> vtk.vtkImageData:
    """The image of voxels [i, j, k], float32; the voxels are copied once."""
    image = vtk.vtkImageData()
    image.SetDimensions(array.shape)
    image.AllocateScalars(vtk.VTK_FLOAT, 1)
    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(array.shape, order="F")
    slab = len(array) if array.flags.f_contiguous else _SLAB  # where the order differs, slabs stay in the cache
    for start in range(0, len(array), slab):
        voxels[start : start + slab] = array[start : start + slab]
    return image


def grid_of(node) -> Grid:
    """The grid of a volume node, to the last bit (CopyOrientation would round it)."""
    return node.GetSpacing(), node.GetOrigin(), _directions(node)


def grid_from(geometry: Geometry) -> Grid:
    """The grid of a Volume as MRML has it."""
    directions = np.ravel(_LPS @ np.asarray(geometry.direction))
    return geometry.spacing, tuple(_LPS @ geometry.origin), tuple(directions)


def set_grid(node, grid: Grid) -> None:
    """Give a volume node a grid."""
    spacing, origin, directions = grid
    node.SetSpacing(spacing)
    node.SetOrigin(origin)
    node.SetIJKToRASDirections(*directions)


def copy_grid(source, node) -> None:
    """Give a volume node the grid of another."""
    set_grid(node, grid_of(source))


def guess_of(node, dicom_tags: Callable[[Any], Mapping[str, str]] | None = None) -> str | None:
    """The contrast that a volume node probably shows, for pre-filling a choice.

    What the program made itself says what it is; of anything else the name and the DICOM attributes are judged, see
    ``modality.guess_modality``.

    Args:
        node: a volume node.
        dicom_tags: node -> DICOM attributes by keyword, see ``dicom_tags_of``.
    """
    if is_deviation(node):
        return None
    if is_synthetic(node):
        return node.GetAttribute(TARGET)
    return guess_modality(node.GetName(), dicom_tags(node) if dicom_tags else None)


def dicom_tags_of(node, database) -> dict[str, str]:
    """The DICOM attributes that tell a contrast, by keyword; empty for a volume that was not loaded from DICOM.

    Args:
        node: a volume node.
        database: Slicer's ``slicer.dicomDatabase``, or anything else with ``instanceValue(uid, "gggg,eeee")``.
    """
    uids = (node.GetAttribute("DICOM.instanceUIDs") or "").split()
    if not uids or database is None:
        return {}
    values = {keyword: database.instanceValue(uids[0], tag) for keyword, tag in _DICOM_TAGS.items()}
    return {keyword: value for keyword, value in values.items() if value}


def _size(node) -> tuple[int, int, int]:
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise InputError(f"'{node.GetName()}' is empty: it has no voxels.")
    return image.GetDimensions()


def _directions(node) -> tuple[float, ...]:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASDirectionMatrix(matrix)
    return tuple(matrix.GetElement(row, column) for row in range(3) for column in range(3))


def _as_lps(matrix: np.ndarray) -> np.ndarray:
    """A 4x4 matrix between RAS frames as one between LPS frames."""
    flip = np.diag((-1.0, -1.0, 1.0, 1.0))
    return flip @ matrix @ flip


def _to_frame_of(base, node) -> np.ndarray | None:
    """4x4 matrix (RAS) from a node's coordinates to another's; None where both have the same parent transforms."""
    down, up = _transforms(node), _transforms(base)
    while down and up and down[-1] is up[-1]:
        down.pop()
        up.pop()
    for transform in (*down, *up):
        if not transform.IsLinear():
            raise GeometryError(
                f"'{node.GetName()}' and '{base.GetName()}' differ by the non-linear transform "
                f"'{transform.GetName()}': harden the transform first."
            )
    if not down and not up:
        return None
    return np.linalg.inv(_product(up)) @ _product(down)


def _transforms(node) -> list:
    """The transforms that move a node, from its parent to the world."""
    chain = []
    while (node := node.GetParentTransformNode()) is not None:
        chain.append(node)
    return chain


def _product(transforms: list) -> np.ndarray:
    product = np.eye(4)
    for transform in transforms:
        matrix = vtk.vtkMatrix4x4()
        transform.GetMatrixTransformToParent(matrix)
        product = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)]) @ product
    return product
