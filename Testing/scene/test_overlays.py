import gc

import numpy as np
import pytest
import slicer

from MissingModalitySynthLib.scene.compare import CompareView
from MissingModalitySynthLib.scene.overlays import SegmentationOutlines
from MissingModalitySynthLib.scene.provenance import mark
from Testing.scene.conftest import head
from Testing.scene.offscreen import OffscreenViews, need_opengl
from Testing.scene.segmenting import add_segmentation

SIZE = (40, 48, 36)
SQUARE = {"directions": np.eye(3), "origin": (-20.0, -30.0, -27.0)}


@pytest.fixture
def views(application):
    return OffscreenViews(application.application, size=(120, 140))


@pytest.fixture
def compare(views):
    return CompareView(views.scene, views.layout_node, views)


@pytest.fixture
def volumes(add_scan):
    nodes = {"source": add_scan("T1", head(SIZE), **SQUARE), "synthetic": add_scan("T2", head(SIZE, seed=1), **SQUARE)}
    mark(nodes["synthetic"], {"target": "T2"})
    return nodes


@pytest.fixture
def segment(application):
    """Function: name, color -> segmentation of one box around the middle of the volumes."""
    box = np.zeros(SIZE, np.uint8)
    box[12:28, 16:32, 10:26] = 1
    return lambda name="lesion", **looks: add_segmentation(application, name, {"lesion": box}, **SQUARE, **looks)


def outlined(views, name, channel=1):
    """Where a screenshot of a grey image is clearly green (or red, or blue)."""
    picture = views.screenshot(name).astype(int)
    others = [other for other in range(3) if other != channel]
    return picture[..., channel] - picture[..., others].max(axis=2) > 40


def test_an_outline_of_the_segmentation_and_no_filling_is_on_all_columns(compare, views, volumes, segment):
    need_opengl()
    compare.show(**volumes, rows=("Axial", "Coronal"), segmentations=[segment()])
    for column in compare.columns:
        for name, height in zip(compare.view_names(column), (16 * 1.25, 16 * 1.5), strict=True):
            rows, columns = np.nonzero(outlined(views, name))
            pixel = views.node(name).GetFieldOfView()[0] / views.size[0]
            assert np.ptp(columns) * pixel == pytest.approx(16, abs=3 * pixel)
            assert np.ptp(rows) * pixel == pytest.approx(height, abs=3 * pixel)
            inside = outlined(views, name)[rows.min() + 4 : rows.max() - 3, columns.min() + 4 : columns.max() - 3]
            assert inside.size > 100
            assert not inside.any()


def test_every_column_has_its_own_visibility_and_opacity(compare, views, volumes, segment):
    need_opengl()
    compare.show(**volumes, segmentations=[segment()])
    names = {column: compare.view_names(column)[0] for column in compare.columns}

    def strength():
        pictures = {column: views.screenshot(name).astype(int) for column, name in names.items()}
        return {column: np.max(each[..., 1] - each[..., 0]) for column, each in pictures.items()}

    full = strength()
    assert min(full.values()) > 100
    compare.set_outlines("synthetic", False)
    compare.set_outlines("source", True, opacity=0.4)
    after = strength()
    assert after["synthetic"] == 0
    assert 20 < after["source"] < 0.6 * full["source"]
    assert after["difference"] == full["difference"]
    compare.show(**volumes, segmentations=[segment()])  # remembered
    again = strength()
    assert again["synthetic"] == 0
    assert 20 < again["source"] < full["source"]
    compare.set_outlines("synthetic", True)
    assert strength()["synthetic"] > 100


def test_outlines_follow_transforms_edits_and_the_users_choice_of_segments(
    compare, views, volumes, segment, add_transform
):
    need_opengl()
    node = segment()
    compare.show(**volumes, segmentations=[node])
    name = compare.view_names("synthetic")[0]
    before = np.argwhere(outlined(views, name))
    shift = np.eye(4)
    shift[0, 3] = -6  # to the left of the patient's, which is to the right in the view
    node.SetAndObserveTransformNodeID(add_transform("shift", shift).GetID())
    moved = np.argwhere(outlined(views, name))
    pixel = views.node(name).GetFieldOfView()[0] / views.size[0]
    assert (moved.mean(axis=0) - before.mean(axis=0)) * pixel == pytest.approx((0, 6), abs=1.5 * pixel)
    identifier = node.GetSegmentation().GetNthSegmentID(0)
    node.GetDisplayNode().SetSegmentVisibility(identifier, False)
    assert not outlined(views, name).any()
    node.GetDisplayNode().SetSegmentVisibility(identifier, True)
    assert outlined(views, name).any()
    node.GetSegmentation().GetSegment(identifier).SetColor(0.1, 0.2, 0.9)
    assert outlined(views, name, channel=2).any()
    node.GetSegmentation().RemoveSegment(identifier)
    assert not outlined(views, name, channel=2).any()


def test_several_segmentations_have_outlines_of_their_own(compare, views, volumes, segment, add_transform):
    need_opengl()
    blue = segment("other", color=(0.1, 0.2, 0.9))
    shift = np.eye(4)
    shift[1, 3] = 5
    blue.SetAndObserveTransformNodeID(add_transform("shift", shift).GetID())
    compare.show(**volumes, segmentations=[segment(), blue])
    for column in compare.columns:
        assert outlined(views, compare.view_names(column)[0]).any()
        assert outlined(views, compare.view_names(column)[0], channel=2).any()
    compare.show(**volumes)  # none, although the user's own display shows both elsewhere
    for column in ("source", "synthetic"):
        assert not outlined(views, compare.view_names(column)[0]).any()
        assert not outlined(views, compare.view_names(column)[0], channel=2).any()


def test_the_users_display_is_as_before_and_never_in_the_compared_views(scene, views, segment):
    node = segment()
    own = node.GetDisplayNode()
    slice_views = ["vtkMRMLSliceNodeRed", "vtkMRMLSliceNodeGreen"]
    modified = []
    outlines = SegmentationOutlines(scene)
    outlines.show([node], {"left": slice_views[:1], "right": slice_views[1:]})
    assert node.GetDisplayNode() is own
    assert node.GetNumberOfDisplayNodes() == 3
    for view in slice_views:
        assert not own.IsDisplayableInView(view)
        visible = [node.GetNthDisplayNode(number).IsDisplayableInView(view) for number in range(3)]
        assert sum(visible) == 1
    assert own.IsDisplayableInView("vtkMRMLSliceNodeYellow")
    assert own.IsDisplayableInView("vtkMRMLViewNode1")
    assert own.GetVisibility2DFill()
    outlines.hide()
    assert own.GetNumberOfViewNodeIDs() == 0
    assert node.GetNumberOfDisplayNodes() == 1
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationDisplayNode") == 1

    own.AddObserver("ModifiedEvent", lambda *_: modified.append(1))
    own.SetViewNodeIDs(("vtkMRMLSliceNodeYellow",))  # the user's choice, which needs no change
    modified.clear()
    outlines.show([node], {"left": slice_views})
    outlines.hide()
    assert own.GetViewNodeIDs() == ("vtkMRMLSliceNodeYellow",)
    assert not modified


def test_views_that_the_user_chooses_meanwhile_are_kept(scene, views, segment):
    node = segment()
    outlines = SegmentationOutlines(scene)
    outlines.show([node], {"left": ["vtkMRMLSliceNodeRed"]})
    node.GetDisplayNode().SetViewNodeIDs(("vtkMRMLSliceNodeGreen",))
    outlines.hide()
    assert node.GetDisplayNode().GetViewNodeIDs() == ("vtkMRMLSliceNodeGreen",)


def test_a_segmentation_without_display_is_outlined_and_stays_without(scene, views, segment):
    node = segment()
    scene.RemoveNode(node.GetDisplayNode())
    node.RemoveAllDisplayNodeIDs()
    outlines = SegmentationOutlines(scene)
    outlines.show([node], {"left": ["vtkMRMLSliceNodeRed"]})
    assert isinstance(node.GetDisplayNode(), slicer.vtkMRMLSegmentationDisplayNode)
    outlines.hide()
    assert node.GetNumberOfDisplayNodes() == 0


def test_an_outline_lives_as_long_as_its_segmentation_since_views_keep_its_address(compare, volumes, segment):
    lesion = segment()
    deleted = []
    for rows in (("Axial",), ("Axial", "Coronal"), ("Axial",)):
        compare.show(**volumes, rows=rows, segmentations=[lesion])
        for number in range(1, lesion.GetNumberOfDisplayNodes()):
            lesion.GetNthDisplayNode(number).AddObserver("DeleteEvent", lambda node, event: deleted.append(event))
        compare.hide()
        gc.collect()
        assert lesion.GetNumberOfDisplayNodes() == 1
    assert not deleted


def test_outlines_are_freed_with_their_segmentation(scene, segment):
    deleted = []
    lesion, outlines = segment(), SegmentationOutlines(scene)
    outlines.show([lesion], {"source": ["vtkMRMLSliceNodeRed"]})
    lesion.GetNthDisplayNode(1).AddObserver("DeleteEvent", lambda node, event: deleted.append(event))
    outlines.hide()
    scene.RemoveNode(lesion)
    outlines.hide()
    del lesion
    gc.collect()
    assert deleted
