"""Segmentations of the tissues of volume nodes: what is asked of the worker, and the segmentation nodes it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import vtk
from vtk.util.numpy_support import vtk_to_numpy

from ..segmentation import CLASSES
from ..worker.jobs import SegmentationJob, TargetResult
from .provenance import record, refer_to_segmented, tissues_of
from .results import batch, check_grid, check_sources, free_name
from .subject_hierarchy import place_beside
from .translation import _
from .volumes import grid_from, volume_of

if TYPE_CHECKING:
    from ..model_package import ModelPackage
    from ..volume import Volume

# Outlines lie on grey images, beside a crosshair of orange yellow.
_COLORS = {
    "CSF": (0.25, 0.45, 1.0),
    "grey matter": (0.3, 0.85, 0.2),
    "white matter": (1.0, 0.3, 0.9),
    "deep grey matter": (0.1, 0.95, 0.9),
    "lesion": (1.0, 0.2, 0.15),
}


@dataclass(frozen=True)
class SegmentationTask:
    """What is to be segmented.

    Attributes:
        sources: acquired or synthetic volume nodes of one scene, by any key.
        package: a model with a segmenter.
        device: "auto", "cpu", "cuda:0" or "mps".
        replace: whether earlier segmentations of the same volumes, with all edits, give way.
    """

    sources: Mapping[str, Any]
    package: ModelPackage
    device: str = "auto"
    replace: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.sources)

    def volumes(self) -> dict[str, Volume]:
        """Each in its own coordinates: where it lies in the world does not matter here."""
        return {key: volume_of(node) for key, node in self.sources.items()}

    def begin(self, client: Any, volumes: Mapping[str, Volume], listener: Any) -> None:
        client.segment(SegmentationJob(volumes, self.package.path, self.device), listener)

    def add(self, scene: Any, results: Mapping[str, TargetResult]) -> list[Any]:
        return add_segmentations(scene, self.sources, results, replace=self.replace)

    def told(self, time: str) -> str:
        names = ", ".join(node.GetName() for node in self.sources.values())
        return _("{names} segmented in {time}.").format(names=names, time=time)


def add_segmentations(
    scene: Any, sources: Mapping[str, Any], results: Mapping[str, TargetResult], *, replace: bool
) -> list[Any]:
    """Add the label maps of a run to the scene: all of them, or, where anything is wrong, none.

    Every segmentation has a segment for each tissue, the parent transform of its volume and a place beside it in the
    subject hierarchy. It is not shown: the comparison outlines it, and the user can show it. The volumes are not
    modified.

    Args:
        scene: the scene that the volumes are in.
        sources: the volume nodes that were segmented, by the worker's keys.
        results: label maps by the same keys.
        replace: whether an earlier segmentation of the same volume is updated, keeping its name and display.

    Returns:
        The segmentation nodes in the order of ``results``.

    Raises:
        InputError: a volume was removed, or the scene closed, during the run.
        GeometryError: the grid of a volume is no longer the one that was segmented.
    """
    check_sources(scene, sources)
    for key, result in results.items():
        check_grid(result.volume.geometry, sources[key])
    scene.SaveStateForUndo()
    with batch(scene):
        return [_put(scene, sources[key], result, replace) for key, result in results.items()]


def _put(scene: Any, source: Any, result: TargetResult, replace: bool) -> Any:
    earlier = tissues_of(source) if replace else []
    if earlier:
        node = earlier[-1]
    else:
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", free_name(scene, f"{source.GetName()} (tissues)"))
        node.SetUndoEnabled(source.GetUndoEnabled())
        refer_to_segmented(node, source)
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetVisibility(False)  # it would fill the head in all of the user's own views
        place_beside(node, source, "Segmentations")
    changing = node.StartModify()
    _fill(node.GetSegmentation(), result.volume)
    node.SetReferenceImageGeometryParameterFromVolumeNode(source)
    node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
    record(node, result.provenance)
    node.EndModify(changing)
    return node


def _fill(segmentation: Any, labels: Volume) -> None:
    """One label map that all segments share, as in Slicer's own multi-label segmentations."""
    import slicer

    image = slicer.vtkOrientedImageData()
    image.SetDimensions(labels.array.shape)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(labels.array.shape, order="F")
    voxels[:] = labels.array
    spacing, origin, directions = grid_from(labels.geometry)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirections([directions[row : row + 3] for row in (0, 3, 6)])
    representation = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
    segmentation.RemoveAllSegments()
    for value, name in enumerate(CLASSES):
        if value:
            segment = slicer.vtkSegment()
            segment.SetName(name)
            segment.SetColor(*_COLORS[name])
            segment.SetLabelValue(value)
            segment.AddRepresentation(representation, image)
            segmentation.AddSegment(segment, name)
