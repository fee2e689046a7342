"""Label maps become segmentation nodes beside their volumes, all or none."""

from types import SimpleNamespace

import numpy as np
import pytest
import slicer
import vtk

from MissingModalitySynthLib.errors import GeometryError, InputError
from MissingModalitySynthLib.scene.compare import CompareView
from MissingModalitySynthLib.scene.compare_choices import Comparison, metrics_text
from MissingModalitySynthLib.scene.comparison import dice_of
from MissingModalitySynthLib.scene.provenance import (
    is_synthetic,
    mark,
    provenance_of,
    segmented_volume_of,
    synthetic_nodes,
)
from MissingModalitySynthLib.scene.segmentations import SegmentationTask, add_segmentations
from MissingModalitySynthLib.scene.volumes import geometry_of
from MissingModalitySynthLib.segmentation import CLASSES
from MissingModalitySynthLib.volume import Volume
from MissingModalitySynthLib.worker.jobs import SegmentationJob, TargetResult
from Testing.scene.conftest import head
from Testing.scene.offscreen import OffscreenViews

SIZE = (20, 24, 18)
RECORD = {"quantity": "tissue classes", "package": "tiny", "labels": {"1": "CSF"}}


def labels_for(node, seed=0, classes=6):
    array = np.random.default_rng(seed).integers(0, classes, geometry_of(node).size).astype(np.uint8)
    return TargetResult(Volume(array, geometry_of(node)), None, RECORD)


def add(scene, replace=False, **volumes):
    made = {key: labels_for(node, seed) for seed, (key, node) in enumerate(volumes.items())}
    nodes = add_segmentations(scene, volumes, made, replace=replace)
    return nodes, [made[key].volume.array for key in volumes]


def segments_of(node):
    found = node.GetSegmentation()
    return {found.GetSegment(name).GetName(): name for name in found.GetSegmentIDs()}


def test_every_tissue_is_a_segment_of_the_volumes_very_voxels(scene, add_scan):
    t1 = add_scan("T1")
    (node,), (array,) = add(scene, t1=t1)
    found = segments_of(node)
    assert list(found) == list(CLASSES[1:])
    for value, name in enumerate(CLASSES[1:], start=1):
        image, matrix, expected = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        assert logic.GetSegmentBinaryLabelmapRepresentation(node, found[name], image, False)
        image.GetImageToWorldMatrix(matrix)
        t1.GetIJKToRASMatrix(expected)
        counted = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        assert np.count_nonzero(counted == value) == np.count_nonzero(array == value)
        np.testing.assert_allclose(
            [matrix.GetElement(row, column) for row in range(3) for column in range(3)],
            [expected.GetElement(row, column) for row in range(3) for column in range(3)],
            atol=1e-9,
        )


def test_dice_between_two_of_them_is_that_of_the_label_maps(scene, add_scan):
    t1, t2 = add_scan("T1"), add_scan("T2")
    nodes, (a, b) = add(scene, t1=t1, t2=t2)
    found = dice_of(*nodes, reference=t1)
    for value, name in enumerate(CLASSES[1:], start=1):
        overlap = 2 * np.sum((a == value) & (b == value)) / (np.sum(a == value) + np.sum(b == value))
        assert found[name] == pytest.approx(overlap)


def test_the_tissues_stand_out_from_grey_from_the_crosshair_and_from_each_other(scene, add_scan):
    (node,), _ = add(scene, t1=add_scan("T1"))
    found = node.GetSegmentation()
    colors = [np.array(found.GetSegment(name).GetColor()) for name in found.GetSegmentIDs()]
    crosshair = np.array((1.0, 0.8, 0.1))  # of Slicer
    assert all(np.ptp(color) > 0.5 for color in colors)
    for number, color in enumerate(colors):
        assert all(np.linalg.norm(color - other) > 0.5 for other in (*colors[:number], crosshair))


def test_a_tissue_that_is_nowhere_has_an_empty_segment_and_no_dice(scene, add_scan):
    t1, t2 = add_scan("T1"), add_scan("T2")
    made = {"t1": labels_for(t1, 0, classes=5), "t2": labels_for(t2, 1, classes=5)}
    nodes = add_segmentations(scene, {"t1": t1, "t2": t2}, made, replace=False)
    found = dice_of(*nodes, reference=t1)
    assert np.isnan(found["lesion"]) and found["CSF"] > 0
    text = metrics_text(Comparison(t1, t2, None, ("Axial",), *nodes))
    assert "Dice lesion" in text and "in neither" in text
    assert f"{found['CSF']:.3f}" in text and "PSNR" not in text


def test_nothing_is_measured_with_one_segmentation_and_nothing_acquired(scene, add_scan):
    t1 = add_scan("T1")
    (node,), _ = add(scene, t1=t1)
    assert metrics_text(Comparison(t1, t1, None, ("Axial",), node, None)) == ""


def test_it_follows_its_volume_in_the_scene(scene, hierarchy, add_scan, add_transform):
    moved = add_transform(matrix=np.diag((1.0, -1.0, -1.0, 1.0)))
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    t1 = add_scan("T1", parent=study)
    t1.SetAndObserveTransformNodeID(moved.GetID())
    (node,), _ = add(scene, t1=t1)
    assert node.GetName() == "T1 (tissues)"
    assert node.GetParentTransformNode() is moved
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    assert segmented_volume_of(node) is t1
    assert provenance_of(node) == RECORD
    assert not is_synthetic(node) and not is_synthetic(t1) and synthetic_nodes(scene) == []
    assert not node.GetDisplayNode().GetVisibility()  # filled, it would hide the scan in the user's own views
    scene.RemoveNode(t1)
    assert segmented_volume_of(node) is None


def test_an_earlier_one_gives_way_with_its_name_and_display_kept(scene, add_scan):
    t1, t2 = add_scan("T1"), add_scan("T2")
    (first, other), _ = add(scene, t1=t1, t2=t2)
    first.SetName("mine")
    first.GetDisplayNode().SetOpacity(0.25)
    first.GetDisplayNode().SetVisibility(True)
    (again,), (array,) = add(scene, replace=True, only=t1)
    assert again is first and again.GetName() == "mine" and again.GetDisplayNode().GetOpacity() == 0.25
    assert again.GetDisplayNode().GetVisibility()
    assert list(segments_of(again)) == list(CLASSES[1:])
    (new,), _ = add(scene, t1=t1)
    assert new not in (first, other)
    assert array.shape == SIZE


def test_a_volume_that_was_removed_or_moved_in_its_grid_adds_nothing(scene, add_scan):
    t1, t2 = add_scan("T1"), add_scan("T2")
    made = {"t1": labels_for(t1), "t2": labels_for(t2)}
    before = scene.GetNumberOfNodes()
    t2.SetOrigin(1.0, 2.0, 3.0)
    with pytest.raises(GeometryError, match="'T2' was changed"):
        add_segmentations(scene, {"t1": t1, "t2": t2}, made, replace=False)
    assert scene.GetNumberOfNodes() == before
    scene.RemoveNode(t2)
    with pytest.raises(InputError, match="'T2' was removed"):
        add_segmentations(scene, {"t1": t1, "t2": t2}, made, replace=False)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_the_volumes_are_handed_over_as_they_are(scene, add_scan):
    volumes = {"synthetic": add_scan("T2"), "source": add_scan("T1", origin=(1.0, 2.0, 3.0))}
    asked = []
    client = SimpleNamespace(segment=lambda job, listener: asked.append((job, listener)))
    task = SegmentationTask(volumes, SimpleNamespace(path="folder"), device="cpu")
    task.begin(client, task.volumes(), "listener")
    ((job, listener),) = asked
    assert isinstance(job, SegmentationJob) and listener == "listener"
    assert (job.package, job.device, list(job.sources)) == ("folder", "cpu", ["synthetic", "source"])
    for key, node in volumes.items():
        assert job.sources[key].geometry == geometry_of(node)
    assert task.told("3 s") == "T2, T1 segmented in 3 s."


def test_in_a_comparison_each_is_outlined_on_its_own_volume(application, scene, add_scan):
    views = OffscreenViews(application.application)
    compare = CompareView(scene, views.layout_node, views)
    source, synthetic = add_scan("T1", head(SIZE)), add_scan("T2", head(SIZE, seed=1))
    mark(synthetic, {"target": "T2"})
    nodes, _ = add(scene, source=source, synthetic=synthetic)
    stranger = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "lesions")
    stranger.CreateDefaultDisplayNodes()
    (foreign,), _ = add(scene, other=add_scan("FLAIR", head(SIZE)))
    compare.show(source, synthetic, segmentations=[*nodes, stranger, foreign])

    def columns(node):
        displays = [node.GetNthDisplayNode(n) for n in range(1, node.GetNumberOfDisplayNodes())]
        shown = {view for display in displays for view in display.GetViewNodeIDs()}
        names = {column: compare.view_names(column) for column in compare.columns}
        return [c for c, group in names.items() if shown & {views.node(name).GetID() for name in group}]

    assert columns(nodes[0]) == ["source", "difference"]
    assert columns(nodes[1]) == ["synthetic", "difference"]
    assert columns(stranger) == ["source", "synthetic", "difference"]
    assert columns(foreign) == []
    outlines = {node: node.GetNthDisplayNode(1) for node in (*nodes, stranger)}
    assert all(outline.GetVisibility() for outline in outlines.values())  # although their own display is hidden
    assert [outline.GetSliceIntersectionThickness() for outline in outlines.values()] == [1, 1, 2]
    compare.hide()
    assert [node.GetNumberOfDisplayNodes() for node in (*nodes, stranger)] == [1, 1, 1]
