"""How well a synthetic volume agrees with the acquired one, and two segmentations with each other, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from ..errors import InputError
from .difference import on_one_grid


@dataclass(frozen=True)
class Metrics:
    """The agreement of a synthetic volume with the acquired one, inside the head.

    Attributes:
        psnr: peak signal-to-noise ratio in dB; infinite for identical volumes.
        nmse: normalized mean squared error; 0 for identical volumes.
        ssim: structural similarity, at most 1.
        dice: Dice coefficient (0 to 1) by the name of the segment; NaN for a segment that is empty in both
            segmentations; no entries without segmentations.
    """

    psnr: float
    nmse: float
    ssim: float
    dice: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean_dice(self) -> float | None:
        """Mean over the segments that are not empty; None where there is none."""
        known = [value for value in self.dice.values() if not np.isnan(value)]
        return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class Overlap:
    """How much of a segment two segmentations share, and how large it is in each, in voxels of the reference."""

    dice: float
    sizes: tuple[int, int]


def metrics_of(synthetic: Any, acquired: Any, segmentations: tuple[Any, Any] | None = None) -> Metrics:
    """Score a synthetic volume against the acquired volume of the same contrast.

    Both are brought to one grid (the synthetic volume's) and one scale (see ``metrics.scale_to_target``) first.

    Args:
        synthetic, acquired: scalar volume nodes.
        segmentations: two segmentation nodes, say one of each volume, whose segments of the same name are compared on
            the synthetic volume's grid; under any transforms.

    Raises:
        InputError: a node cannot be used, or the segmentations have no segment name in common.
        GeometryError: the volumes cannot be brought onto one grid.
    """
    from ..metrics import compare

    scores = compare(*on_one_grid(synthetic, acquired))
    overlap = dice_of(*segmentations, reference=synthetic) if segmentations else {}
    return Metrics(scores["psnr_mask"], scores["nmse"], scores["ssim_mask"], overlap)


def dice_of(first: Any, second: Any, reference: Any) -> dict[str, float]:
    """Dice coefficient by name of the segments that two segmentation nodes have in common.

    Args:
        first, second: segmentation nodes.
        reference: the volume node on whose grid they are compared.

    Raises:
        InputError: no name is in both.
    """
    return {name: overlap.dice for name, overlap in overlaps_of(first, second, reference).items()}


def overlaps_of(first: Any, second: Any, reference: Any) -> dict[str, Overlap]:
    """As :func:`dice_of`, with the sizes."""
    from ..metrics import dice

    names = _segments(first), _segments(second)
    common = [name for name in names[0] if name in names[1]]
    if not common:
        raise InputError(
            f"'{first.GetName()}' and '{second.GetName()}' have no segment of the same name to compare: rename one."
        )
    overlaps = {}
    for name in common:
        masks = [_mask(node, ids[name], reference) for node, ids in zip((first, second), names, strict=True)]
        overlaps[name] = Overlap(dice(*masks, label=1), tuple(int(mask.sum()) for mask in masks))
    return overlaps


def _segments(segmentation: Any) -> dict[str, str]:
    """Segment IDs by name."""
    segments = segmentation.GetSegmentation()
    return {segments.GetSegment(identifier).GetName(): identifier for identifier in segments.GetSegmentIDs()}


def _mask(segmentation: Any, segment: str, reference: Any) -> np.ndarray:
    """The voxels [i, j, k] of a volume node's grid that lie in a segment, 0 or 1, wherever both are moved to."""
    import slicer

    labels, grid, resampled = (slicer.vtkOrientedImageData() for _each in range(3))
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    if not logic.GetSegmentBinaryLabelmapRepresentation(segmentation, segment, labels, False):
        raise InputError(f"'{segmentation.GetName()}' cannot be converted to a label map: repair it first.")
    grid.SetDimensions(reference.GetImageData().GetDimensions())
    grid.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    matrix, movement = vtk.vtkMatrix4x4(), vtk.vtkGeneralTransform()
    reference.GetIJKToRASMatrix(matrix)
    grid.SetImageToWorldMatrix(matrix)
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        segmentation.GetParentTransformNode(), reference.GetParentTransformNode(), movement
    )
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        labels, grid, resampled, False, False, movement
    )
    size = resampled.GetDimensions()
    voxels = vtk_to_numpy(resampled.GetPointData().GetScalars()).reshape(size, order="F")
    # segments may share one label map, in which each has a value of its own
    return (voxels == segmentation.GetSegmentation().GetSegment(segment).GetLabelValue()).astype(np.uint8)
