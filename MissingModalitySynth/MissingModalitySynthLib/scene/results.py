"""Results become volume nodes, all or none: on the reference's grid, in its study, and marked as synthetic."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import GeometryError, InputError
from ..modality import shown_name
from .display import show_contrast, show_deviation
from .provenance import (
    DEVIATION,
    TARGET,
    deviation_of,
    mark,
    provenance_of,
    refer,
    reference_of,
    source_nodes_of,
    synthetic_results,
    tissues_of,
)
from .subject_hierarchy import forget, place_beside
from .volumes import Grid, geometry_of, grid_from, grid_of, image_of, set_grid, volume_of

if TYPE_CHECKING:
    from ..volume import Geometry, Volume


class TargetResult(Protocol):
    """What was made of one target.

    Attributes:
        volume: the synthesized volume.
        std: the standard deviation over the samples, if there were several.
        provenance: how it was made, JSON-serialisable.
    """

    volume: Volume
    std: Volume | None
    provenance: Mapping[str, Any]


def add_results(
    scene, sources: Mapping[str, Any], reference: str, results: Mapping[str, TargetResult], *, replace: bool
) -> list:
    """Add the results of a run to the scene: all of them, or, where anything fails, none.

    Every node has the grid and the parent transform of the reference node. The sources are not modified. Where undo is
    on for the scene and the reference node, one undo takes all of it back.

    Args:
        scene: the scene that the sources are in.
        sources: the volume nodes that the run started from, by modality.
        reference: the modality of the source whose grid the results have.
        results: by target. The grid may have another spacing than the reference's if it covers the same field of view.
        replace: whether the latest earlier result of the same target, sources, reference and method is updated,
            keeping its name and the display that the user chose, without the segmentation of its former tissues; else
            all are new nodes with names of their own.

    Returns:
        The nodes of the volumes (without standard deviations), in the order of ``results``.

    Raises:
        InputError: a source was removed or emptied, or the scene closed, during the run.
        GeometryError: the reference's grid is no longer the one that the results were made on.
    """
    check_sources(scene, sources)
    base = sources[reference]
    for result in results.values():
        check_grid(result.volume.geometry, base)
    scene.SaveStateForUndo()
    with batch(scene), ExitStack() as rollback:
        nodes, outdated = [], []
        for target, result in results.items():
            about = _About(target, sources, reference, result.provenance)
            old = _earlier(scene, about) if replace else None
            old_deviation = deviation_of(old) if old is not None else None
            outdated += tissues_of(old) if old is not None else []  # of other voxels
            node = _put(scene, old, result.volume, about, rollback)
            nodes.append(node)
            if result.std is not None:
                _put(scene, old_deviation, result.std, about.deviation_of(node), rollback)
            elif old_deviation is not None:
                outdated.append(old_deviation)
        rollback.pop_all()  # nothing failed, so nothing is taken back
        for node in outdated:
            _remove(scene, node)
    return nodes


def remove_results(scene, nodes: Iterable) -> None:
    """Remove synthesized volumes with all that was made of them: standard deviations, segmentations of the tissues,
    displays; one undo step where undo is on."""
    nodes = list(nodes)
    scene.SaveStateForUndo()
    with batch(scene):
        for node in nodes:
            for each in (deviation_of(node), *tissues_of(node), node):
                if each is not None:
                    _remove(scene, each)


def save_result(node, path: str | os.PathLike) -> None:
    """Write a synthetic node with its provenance, as ``volume_io.write_volume`` does; the scene is left as it is.

    The file has the node's own coordinates, without its parent transform, as in Slicer.

    Args:
        node: a synthesized volume or its standard deviation.
        path: .nii, .nii.gz, .nrrd or .mha; an existing file is replaced.

    Raises:
        InputError: the node is not synthetic.
        OutputError: the file can't be written.
    """
    from ..volume_io import write_volume

    provenance = provenance_of(node)
    if not provenance:
        raise InputError(f"'{node.GetName()}' is not synthetic: save it as any other volume.")
    write_volume(volume_of(node), path, provenance)


@dataclasses.dataclass(frozen=True)
class _About:
    """What a node is to say about itself."""

    target: str
    sources: Mapping[str, Any]
    reference: str
    provenance: Mapping[str, Any]
    mean: Any = None

    def deviation_of(self, node) -> _About:
        return dataclasses.replace(self, provenance={**self.provenance, **DEVIATION}, mean=node)

    @property
    def name(self) -> str:
        what = self.target if self.mean is None else f"{self.target} SD"
        return f"{what} (synthetic from {', '.join(map(shown_name, self.sources))})"


def _put(scene, old, volume: Volume, about: _About, rollback: ExitStack):
    """The node of a volume: the old one, updated, or a new one; how to take that back is pushed on ``rollback``."""
    base = about.sources[about.reference]
    grid = grid_of(base) if volume.geometry.matches(geometry_of(base)) else grid_from(volume.geometry)
    image = image_of(volume.array)
    node = old
    if node is None:
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", free_name(scene, about.name))
        rollback.callback(_remove, scene, node)
        node.SetUndoEnabled(base.GetUndoEnabled())  # MRML wants nodes that refer to each other to agree in this
        refer(node, about.sources, about.reference, about.mean)
        place_beside(node, base)
    else:
        before = (node.GetImageData(), grid_of(node), node.GetTransformNodeID(), provenance_of(node))
        rollback.callback(_fill, node, *before)
    _fill(node, image, grid, base.GetTransformNodeID(), about.provenance)
    if node.GetDisplayNode() is None:
        if about.mean is None:
            show_contrast(node, volume.array, about.target)
        else:
            show_deviation(node, volume.array)
    return node


def _fill(node, image, grid: Grid, transform_id: str | None, provenance: Mapping[str, Any]) -> None:
    modifying = node.StartModify()  # observers see the node once, when all of it fits together
    node.SetAndObserveImageData(image)
    set_grid(node, grid)
    node.SetAndObserveTransformNodeID(transform_id)
    mark(node, provenance)
    node.EndModify(modifying)


def _remove(scene, node) -> None:
    displays = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
    for each in (*displays, node.GetStorageNode()):
        if each is not None:
            scene.RemoveNode(each)
    forget(node)  # after the displays, whose end Slicer tells the items of a segmentation
    scene.RemoveNode(node)


def free_name(scene, name: str) -> str:
    """The name itself where no node has it, also after one that had it was removed; else with a number."""
    return name if scene.GetFirstNodeByName(name) is None else scene.GenerateUniqueName(name)


def check_sources(scene, sources: Mapping[str, Any]) -> None:
    """InputError unless all nodes that a run started from are still there."""
    for modality, node in sources.items():
        if not scene.IsNodePresent(node):
            raise InputError(
                f"The {shown_name(modality)} '{node.GetName()}' was removed or the scene closed during the run, so "
                "nothing was added: load it again and run again."
            )


def check_grid(made: Geometry, base) -> None:
    """Refuse a result that was made on another grid than the node has now, unless only the spacing was to differ."""
    now = geometry_of(base)
    if made.matches(now):
        return
    apart = (now.world_to_index(made.corners) - now.world_to_index(now.corners)) * now.spacing  # in mm
    spaced_otherwise = not np.allclose(made.spacing, now.spacing)
    if not (spaced_otherwise and np.abs(apart).max() <= max(*made.spacing, *now.spacing)):
        raise GeometryError(
            f"The grid of '{base.GetName()}' was changed during the run, so nothing was added: run again."
        )


def _earlier(scene, about: _About):
    """The latest result of the same target, sources, reference and method; None where there is none."""
    base = about.sources[about.reference]
    same = [
        node
        for node in synthetic_results(scene)
        if node.GetAttribute(TARGET) == about.target
        and source_nodes_of(node) == about.sources
        and reference_of(node) is base
        and provenance_of(node).get("method") == about.provenance.get("method")
    ]
    return same[-1] if same else None


@contextmanager
def batch(scene) -> Iterator[None]:
    """Let viewers and widgets wait until all changes are made."""
    scene.StartState(scene.BatchProcessState)
    try:
        yield
    finally:
        scene.EndState(scene.BatchProcessState)
