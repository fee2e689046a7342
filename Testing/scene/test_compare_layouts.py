"""What stays, and what is done, when the rows or columns of a comparison change."""

import numpy as np
import pytest
import slicer

from MissingModalitySynthLib.scene.compare import CompareView
from MissingModalitySynthLib.scene.provenance import mark
from Testing.scene.conftest import head, voxels_of
from Testing.scene.offscreen import OffscreenViews
from Testing.scene.segmenting import add_segmentation

SIZE = (40, 48, 36)
PLANES = ("Axial", "Sagittal", "Coronal")
CELLS = {1: (150, 420), 3: (300, 140)}  # pixels of a view by the number of rows


@pytest.fixture
def views(application):
    return OffscreenViews(application.application)


@pytest.fixture
def compare(views):
    return CompareView(views.scene, views.layout_node, views)


@pytest.fixture
def volumes(add_scan):
    nodes = {
        "source": add_scan("T1", head(SIZE), directions=np.eye(3)),
        "synthetic": add_scan("T2 (synthetic from T1)", 2 * head(SIZE, seed=1), directions=np.eye(3)),
        "acquired": add_scan("T2", head(SIZE, seed=1) + 20, directions=np.eye(3)),
    }
    mark(nodes["synthetic"], {"target": "T2"})
    return nodes


@pytest.fixture
def show(compare, views, volumes):
    """Function: rows, widths of the cells -> shows the volumes as the main window does, which sizes the views late."""

    def show(rows, narrower=1.0, **options):
        views.callbacks.clear()
        compare.show(**{**volumes, **options.pop("volumes", {})}, rows=rows, **options)
        width, height = CELLS[len(rows)]
        for name in names_of(compare):
            views.slice_logic(name).ResizeSliceNode(round(width * narrower), height)
        for callback in views.callbacks:
            callback()

    return show


def names_of(compare):
    return [name for column in compare.columns for name in compare.view_names(column)]


def extent_of(volume, axes):
    return [(np.array(voxels_of(volume).shape) * volume.GetSpacing())[axis] for axis in axes]


def assert_all_in_view(compare, views, volume):
    for name in names_of(compare):
        axes = {"A": (0, 1), "S": (1, 2), "C": (0, 2)}[views.node(name).GetOrientation()[0]]
        seen, extent = views.node(name).GetFieldOfView()[:2], extent_of(volume, axes)
        assert all(s >= 0.99 * e for s, e in zip(seen, extent, strict=True)), name


def test_the_whole_head_stays_in_view_when_three_rows_become_one_and_the_slice_stays(show, compare, views, volumes):
    show(PLANES)
    assert_all_in_view(compare, views, volumes["synthetic"])
    axial = compare.view_names("synthetic")[0]
    moved = views.node(axial).GetSliceOffset() + 6
    for column in compare.columns:
        views.node(compare.view_names(column)[0]).SetSliceOffset(moved)
    show(("Axial",))
    assert_all_in_view(compare, views, volumes["synthetic"])
    for name in names_of(compare):
        assert views.node(name).GetSliceOffset() == pytest.approx(moved)
    show(PLANES)
    assert_all_in_view(compare, views, volumes["synthetic"])
    assert views.node(axial).GetSliceOffset() == pytest.approx(moved)


def test_the_whole_head_stays_in_view_when_a_column_takes_room(show, compare, views, volumes):
    show(("Axial",))  # all views are fitted once
    show(PLANES, volumes={"acquired": None})
    show(("Axial",), volumes={"acquired": None}, narrower=1.33)
    show(("Axial",))
    assert_all_in_view(compare, views, volumes["synthetic"])


def test_the_zoom_of_the_user_stays_while_the_rows_do(show, compare, views):
    show(PLANES)
    for name in names_of(compare):
        views.node(name).SetFieldOfView(17, 17, 1)
    for options in ({}, {"volumes": {"acquired": None}}, {}):
        show(PLANES, **options)
        assert {views.node(name).GetFieldOfView()[1] for name in names_of(compare)} == {17}


def test_other_rows_need_no_new_difference_and_leave_the_windows_to_the_user(show, compare, volumes):
    show(PLANES)
    difference, display = compare.difference, volumes["synthetic"].GetDisplayNode()
    display.SetWindowLevelMinMax(10, 90)
    show(("Axial",), anew=False)
    assert compare.difference is difference and difference.GetScene()
    assert display.GetWindowLevelMin() == pytest.approx(10)
    show(("Axial",), anew=False, volumes={"acquired": None})
    assert compare.difference is not difference and difference.GetScene() is None
    kept = compare.difference
    show(("Axial",), volumes={"acquired": None})  # voxels may have changed
    assert compare.difference is not kept


@pytest.fixture
def modified():
    """Function: nodes -> a list that every change of them is added to."""

    def watch(nodes):
        told = []
        for node in nodes:
            node.AddObserver("ModifiedEvent", lambda node, event: told.append(node.GetName()))
        return told

    return watch


def test_views_and_outlines_that_stay_are_not_touched_by_other_rows(compare, views, volumes, application, modified):
    box = np.pad(np.ones((12, 12, 12), np.uint8), [(14, 14), (18, 18), (12, 12)])
    lesion = add_segmentation(application, "lesion", {"lesion": box})
    compare.show(**volumes, rows=PLANES, segmentations=[lesion])
    axial = [compare.view_names(column)[0] for column in compare.columns]
    composites = [views.composite(name) for name in axial]
    outlines = [lesion.GetNthDisplayNode(number) for number in range(1, lesion.GetNumberOfDisplayNodes())]
    hidden = [node for node in map(views.node, axial) if node.GetHideFromEditors()]
    own, removed = modified([lesion.GetDisplayNode(), *composites]), []
    views.scene.AddObserver(views.scene.NodeRemovedEvent, lambda *_: removed.append(1))
    for rows in (("Axial",), PLANES):
        compare.show(**volumes, rows=rows, segmentations=[lesion], anew=False)
        now = [lesion.GetNthDisplayNode(number) for number in range(1, lesion.GetNumberOfDisplayNodes())]
        assert now == outlines
        for column, outline in zip(compare.columns, outlines, strict=True):
            assert outline.GetViewNodeIDs() == tuple(views.node(name).GetID() for name in compare.view_names(column))
    assert hidden == [] and own == [] and removed == []


def test_views_that_are_left_are_empty_and_hidden_from_lists(compare, views, volumes):
    compare.show(**volumes, rows=PLANES)
    left = [name for column in compare.columns for name in compare.view_names(column)[1:]]
    compare.show(**volumes, rows=("Axial",), anew=False)
    for name in left:
        assert views.node(name).GetHideFromEditors()
        assert not views.composite(name).GetLinkedControl()
        assert views.composite(name).GetBackgroundVolumeID() is None
    assert not views.node(compare.view_names("source")[0]).GetHideFromEditors()


def test_the_users_own_display_comes_back_after_the_views_are_empty(compare, views, volumes, application):
    box = np.pad(np.ones((12, 12, 12), np.uint8), [(14, 14), (18, 18), (12, 12)])
    own = add_segmentation(application, "lesion", {"lesion": box}).GetDisplayNode()
    compare.show(**volumes, rows=PLANES)
    composites = [views.composite(name) for name in names_of(compare)]
    found = []
    own.AddObserver("ModifiedEvent", lambda *_: found.append([c.GetBackgroundVolumeID() for c in composites]))
    compare.hide()
    assert found and all(identifier is None for each in found for identifier in each)
    assert isinstance(own, slicer.vtkMRMLSegmentationDisplayNode) and own.GetNumberOfViewNodeIDs() == 0


def test_every_view_of_the_comparison_and_no_other_may_be_narrow(compare, views, volumes):
    compare.show(**volumes, rows=PLANES)
    assert views.narrow == set(names_of(compare))
