"""The absolute difference between a synthetic volume and another one, as a volume that can be shown beside both.

Synthetic volumes have arbitrary units. So the difference is taken after ``metrics.scale_to_target``, which maps the
other volume's robust range to [0, 1] and the synthetic one to it by the best gain and offset, and is given in percent
of that range, within the head. Against the acquired volume of the same contrast it is the error. Against the source,
which is all there is where nothing was acquired, it is what remains when one contrast is stretched, or inverted, to
resemble the other as well as it can: structures that the two do not share, and no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .volumes import copy_grid, image_of, volumes_of

# Upper ends of the scale in percent: round figures, so that differences of several volumes can be compared.
_TOPS = (1, 2, 5, 10, 20, 50, 100)
_MAGMA = ((0, 0, 0), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))  # every quarter of it, from black
_COLORS = 256


@dataclass(frozen=True)
class Difference:
    """A difference in a scene.

    Attributes:
        volume: the volume node, in percent; on the synthetic volume's grid and under its transform.
        top: where its scale ends, in percent.
        nodes: all nodes that belong to it, hidden from the user's lists and not saved.
    """

    volume: Any
    top: int
    nodes: tuple[Any, ...]

    def remove(self, scene: Any) -> None:
        """Take out of the scene what is still there."""
        for node in self.nodes:
            if node.GetScene():
                scene.RemoveNode(node)


def on_one_grid(synthetic: Any, other: Any) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [i, j, k] of two scalar volume nodes on the grid of the first, each at its place in the world.

    Raises:
        InputError: a node is no scalar volume, or empty.
        GeometryError: the transforms between the two are not rigid, or the two share too little of the head.
    """
    from ..canonical import check_overlap, resample_to

    first, second = volumes_of({"synthetic": synthetic, "other": other}, "synthetic").values()
    if not first.geometry.matches(second.geometry):
        check_overlap([second], first)
        second = resample_to(second, first.geometry)
    return first.array, second.array


def absolute_difference(synthetic: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Percent (0 to 100) of the other array's robust range, 0 outside its head; float32 [i, j, k]."""
    from ..intensity import head_mask
    from ..metrics import scale_to_target

    # One order of voxels for all arrays: mixed, they take twice the time.
    synthetic, other = np.ascontiguousarray(synthetic), np.ascontiguousarray(other)
    return 100 * np.abs(np.subtract(*scale_to_target(synthetic, other, head_mask(other))))


def top_of_scale(difference: np.ndarray) -> int:
    """The round figure in percent at which the scale of a difference ends: above 95 of 100 voxels that differ.

    The others are mostly at the rim of the head, where a voxel is air in one volume and skin in the other.
    """
    differing = difference[difference > 0]
    largest = np.percentile(differing, 95) if differing.size else 0.0
    return next((top for top in _TOPS if top >= largest), _TOPS[-1])


def add_difference(scene: Any, synthetic: Any, voxels: np.ndarray, name: str) -> Difference:
    """Add a difference to the scene.

    Args:
        scene: the MRML scene.
        synthetic: the volume node whose grid and transform the difference gets.
        voxels: from ``absolute_difference``.
        name: of the new volume node.
    """
    import slicer

    top = top_of_scale(voxels)
    colors = slicer.vtkMRMLColorTableNode()
    colors.SetTypeToUser()
    colors.SetNumberOfColors(_COLORS)
    levels = np.linspace(0, 1, _COLORS)
    anchors = np.linspace(0, 1, len(_MAGMA))
    for number, rgb in enumerate(
        np.column_stack([np.interp(levels, anchors, channel) for channel in np.transpose(_MAGMA)]) / 255
    ):
        colors.SetColor(number, f"{top * levels[number]:.1f} %", *rgb, 1.0)
    display = slicer.vtkMRMLScalarVolumeDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0, top)
    volume = slicer.vtkMRMLScalarVolumeNode()
    volume.SetName(name)
    volume.SetAndObserveImageData(image_of(voxels))
    copy_grid(synthetic, volume)
    for node in (colors, display, volume):
        node.SetHideFromEditors(True)
        node.SaveWithSceneOff()
        scene.AddNode(node)
    display.SetAndObserveColorNodeID(colors.GetID())
    volume.SetAndObserveDisplayNodeID(display.GetID())
    volume.SetAndObserveTransformNodeID(synthetic.GetTransformNodeID())
    return Difference(volume, top, (volume, display, colors))
