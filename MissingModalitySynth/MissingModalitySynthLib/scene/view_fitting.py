"""Where the comparison's views look: turned and fitted to a volume once, and again only where it would be cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import vtk

# Attributes of a view's node: the grid that it was fitted to, and how many columns and which rows there were then.
# Closing the scene resets node and attributes alike.
_GRID = "MissingModalitySynth.fitted"
_COLUMNS = "MissingModalitySynth.fittedColumns"
_ROWS = "MissingModalitySynth.fittedRows"

Grid = Mapping[str, Mapping[str, Any]]  # slice nodes by column and row


def needs_fit(nodes: Grid, volume: Any, rotate: bool) -> bool:
    """Whether something of the volume may be out of view though the user has not moved it there.

    That is so on another grid, or where views became narrower: Slicer keeps a resized view's height in millimetres, so
    what was fitted to a wide view of three rows, or to one of three columns, is cut in a narrow one.
    """
    grid, columns, rows = _state(nodes, volume, rotate)
    return any(
        (node.GetAttribute(_GRID), node.GetAttribute(_ROWS)) != (grid, rows)
        or columns > int(node.GetAttribute(_COLUMNS))
        for column in nodes.values()
        for node in column.values()
    )


def fit(nodes: Grid, logics: Mapping[Any, Any], volume: Any, rotate: bool) -> None:
    """Turn and fit all views to a volume, with one size of a millimetre in all; slices of the same grid stay.

    Args:
        nodes: with a column "synthetic", which the others follow.
        logics: the vtkMRMLSliceLogic of every slice node.
        volume: a volume node, shown in the column "synthetic".
        rotate: turn the views to the axes of the volume.
    """
    grid, columns, rows = _state(nodes, volume, rotate)
    parent = volume.GetParentTransformNode()
    linear = parent is None or parent.IsTransformToWorldLinear()
    models = nodes["synthetic"]
    changing = [(node, node.StartModify()) for column in nodes.values() for node in column.values()]
    for row, node in models.items():
        offset = node.GetSliceOffset() if node.GetAttribute(_GRID) == grid else None
        node.SetOrientation(row)
        if rotate and linear:
            node.RotateToVolumePlane(volume)
        logics[node].FitSliceToVolume(volume, *node.GetDimensions()[:2])
        if offset is not None:
            node.SetSliceOffset(offset)
    pixel = max(node.GetFieldOfView()[0] / node.GetDimensions()[0] for node in models.values())
    for column in nodes.values():
        for row, node in column.items():
            # Fitted by itself, a column would snap to the slices of its own volume.
            width, height, _depth = node.GetDimensions()
            node.GetSliceToRAS().DeepCopy(models[row].GetSliceToRAS())
            node.SetXYZOrigin(*models[row].GetXYZOrigin())
            node.SetFieldOfView(pixel * width, pixel * height, models[row].GetFieldOfView()[2])
            node.UpdateMatrices()
            node.SetAttribute(_GRID, grid)
            node.SetAttribute(_COLUMNS, str(columns))
            node.SetAttribute(_ROWS, rows)
    for node, before in changing:
        node.EndModify(before)


def _state(nodes: Grid, volume: Any, rotate: bool) -> tuple[str, int, str]:
    return _grid_in_world(volume, rotate), len(nodes), " ".join(nodes["synthetic"])


def _grid_in_world(volume: Any, rotate: bool) -> str:
    """The grid of a volume in the world, up to a non-linear transform; turned to or not."""
    matrix, parent = vtk.vtkMatrix4x4(), volume.GetParentTransformNode()
    volume.GetIJKToRASMatrix(matrix)
    if parent and parent.IsTransformToWorldLinear():
        to_world = vtk.vtkMatrix4x4()
        parent.GetMatrixTransformToWorld(to_world)
        vtk.vtkMatrix4x4.Multiply4x4(to_world, matrix, matrix)
    numbers = [f"{matrix.GetElement(row, column):.6g}" for row in range(3) for column in range(4)]
    return " ".join([*numbers, *map(str, volume.GetImageData().GetDimensions()), str(bool(rotate))])
