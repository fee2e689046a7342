import numpy as np
import pytest
import slicer
import vtk

from MissingModalitySynthLib.errors import GeometryError, InputError
from MissingModalitySynthLib.scene.compare import CompareView
from MissingModalitySynthLib.scene.provenance import mark
from Testing.scene.conftest import OBLIQUE, array_of, head, voxels_of
from Testing.scene.offscreen import OffscreenViews
from Testing.scene.segmenting import add_segmentation

SIZE = (40, 48, 36)
COLUMNS = ("source", "synthetic", "acquired", "difference")
PLANES = ("Axial", "Sagittal", "Coronal")
CONVENTIONAL, RED_ALONE = 2, 6  # vtkMRMLLayoutNode


@pytest.fixture
def views(application):
    views = OffscreenViews(application.application)
    views.layout_node.SetViewArrangement(CONVENTIONAL)
    return views


@pytest.fixture
def ended():
    return []


@pytest.fixture
def compare(views, ended):
    return CompareView(views.scene, views.layout_node, views, on_hidden=lambda: ended.append("ended"))


@pytest.fixture
def make(add_scan):
    """Function: how all three are placed -> source, synthetic and acquired volume nodes."""

    def make(**place):
        nodes = {
            "source": add_scan("T1", head(SIZE, seed=0), **place),
            "synthetic": add_scan("T2 (synthetic from T1)", 2.5 * head(SIZE, seed=1), **place),
            "acquired": add_scan("T2", head(SIZE, seed=1) + 20, **place),
        }
        mark(nodes["synthetic"], {"target": "T2"})
        return nodes

    return make


@pytest.fixture
def close(scene, complaints):
    """Function: closes the scene. The subject hierarchy of slicer-core, which lacks the application's part that tidies
    it, then takes a new node at an old node's address for that one, and complains."""
    yield lambda: scene.Clear(False)
    complaints[:] = [complaint for complaint in complaints if "DataNodeCache inconsistency" not in complaint]


@pytest.fixture
def volumes(make):
    return make()


@pytest.fixture
def segmentation(application):
    box = np.pad(np.ones((12, 12, 12), np.uint8), [(14, 14), (18, 18), (12, 12)])
    return add_segmentation(application, "lesion", {"lesion": box})


def ids_of(scene):
    return {scene.GetNthNode(number).GetID() for number in range(scene.GetNumberOfNodes())}


def shown(views, name):
    """The volumes in the back and in front in a view."""
    composite = views.composite(name)
    return tuple(
        views.scene.GetNodeByID(identifier or "")
        for identifier in (composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID())
    )


def place_of(views, name):
    """Where a view is: slice to RAS, pan and field of view, as one array."""
    node = views.node(name)
    return np.array([*array_of(node.GetSliceToRAS()).ravel(), *node.GetXYZOrigin(), *node.GetFieldOfView()])


def interact(views, name, flag, change):
    """Change a slice node as a user does with the mouse."""
    logic = views.slice_logic(name)
    logic.StartSliceNodeInteraction(flag)
    change(views.node(name))
    logic.EndSliceNodeInteraction()


@pytest.mark.parametrize("rows", [("Axial",), ("Coronal",), ("Coronal", "Sagittal", "Axial")])
@pytest.mark.parametrize("with_acquired", [True, False])
def test_every_plane_is_a_row_and_every_volume_a_column(compare, views, make, rows, with_acquired):
    volumes = make(directions=np.eye(3))
    if not with_acquired:
        volumes["acquired"] = None
    compare.show(**volumes, rows=rows)
    assert compare.columns == tuple(column for column in COLUMNS if column != "acquired" or with_acquired)
    for column in compare.columns:
        names = compare.view_names(column)
        assert [views.node(name).GetOrientation() for name in names] == [row for row in PLANES if row in rows]
        assert {shown(views, name)[0] for name in names} == {volumes.get(column, compare.difference)}
    # The layout fills row by row.
    by_row = zip(*(compare.view_names(column) for column in compare.columns), strict=True)
    assert views.mapped == [name for row in by_row for name in row]


def test_the_layout_is_none_of_slicers_and_differs_with_rows_and_columns(compare, views, volumes):
    numbers = set()
    for rows in (("Axial",), ("Sagittal",), PLANES):
        for acquired in (volumes["acquired"], None):
            compare.show(volumes["source"], volumes["synthetic"], acquired=acquired, rows=rows)
            numbers.add(views.layout_node.GetViewArrangement())
    assert len(numbers) == 6
    assert min(numbers) > 10_000


def test_zoom_is_linked_everywhere_and_pan_and_scroll_in_every_row(compare, views, volumes):
    compare.show(**volumes, rows=PLANES)
    flags = slicer.vtkMRMLSliceNode
    names = [name for column in compare.columns for name in compare.view_names(column)]
    first = compare.view_names("source")[0]
    red = place_of(views, "Red")

    def scroll(node):
        node.SetSliceOffset(node.GetSliceOffset() + 7)

    interact(views, first, flags.SliceToRASFlag, scroll)
    interact(views, first, flags.XYZOriginFlag, lambda node: node.SetXYZOrigin(3, -2, 0))
    interact(views, first, flags.FieldOfViewFlag, lambda node: node.SetFieldOfView(40, 40, 1.5))
    for column in compare.columns:
        axial, sagittal, coronal = compare.view_names(column)
        assert place_of(views, axial) == pytest.approx(place_of(views, first))
        assert views.node(sagittal).GetXYZOrigin() == (0, 0, 0)
        assert views.node(coronal).GetXYZOrigin() == (0, 0, 0)
    assert {round(views.node(name).GetFieldOfView()[0], 6) for name in names} == {40}
    assert place_of(views, "Red") == pytest.approx(red)  # a view of another group


def test_a_click_jumps_to_one_point_in_all_views(compare, views, volumes, scene):
    compare.show(**volumes, rows=PLANES)
    node = views.node(compare.view_names("difference")[1])
    middle = np.mean(np.reshape(bounds(volumes["source"]), (3, 2)), axis=1)
    point = np.append(middle, 1.0) + np.array([4, -5, 6, 0])
    jump = slicer.vtkMRMLSliceNode.OffsetJumpSlice
    slicer.vtkMRMLSliceNode.JumpAllSlices(scene, *point[:3], jump, node.GetViewGroup())
    for name in (name for column in compare.columns for name in compare.view_names(column)):
        in_view = np.linalg.inv(array_of(views.node(name).GetSliceToRAS())) @ point
        assert in_view[2] == pytest.approx(0, abs=1e-6)


def bounds(volume):
    result = [0.0] * 6
    volume.GetRASBounds(result)
    return result


def test_views_follow_the_axes_of_an_oblique_volume_under_a_transform(compare, views, make, add_transform):
    volumes = make(directions=OBLIQUE)
    turned = np.eye(4)
    turned[:3, :3] = [[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]
    turned[:3, 3] = 5, -3, 9
    transform = add_transform("turned", turned)
    for volume in volumes.values():
        volume.SetAndObserveTransformNodeID(transform.GetID())
    compare.show(**volumes, rows=PLANES)
    axes = turned[:3, :3] @ np.array(OBLIQUE)
    for row, axis in enumerate((2, 0, 1)):
        normal = array_of(views.node(compare.view_names("synthetic")[row]).GetSliceToRAS())[:3, 2]
        assert abs(normal @ axes[:, axis]) == pytest.approx(1, abs=1e-6)
    assert compare.difference.GetParentTransformNode() is transform

    compare.hide()
    fresh = CompareView(views.scene, views.layout_node, views)
    fresh.show(**volumes, rotate=False)
    assert array_of(views.node(fresh.view_names("source")[0]).GetSliceToRAS())[:3, :3] == pytest.approx(
        np.diag([-1.0, 1.0, 1.0])
    )


def test_all_columns_show_the_same_place_at_the_same_scale_although_grids_differ(compare, views, make, add_scan):
    volumes = make()
    volumes["acquired"] = add_scan("T2", head((40, 48, 12), seed=1), spacing=(1.0, 1.25, 4.5))
    compare.show(**volumes, rows=PLANES)
    for row in range(3):
        expected = place_of(views, compare.view_names("source")[row])
        for column in compare.columns:
            assert place_of(views, compare.view_names(column)[row]) == pytest.approx(expected)
    pixels = {
        round(views.node(name).GetFieldOfView()[0] / views.node(name).GetDimensions()[0], 9)
        for name in compare.view_names("source")
    }
    assert len(pixels) == 1


def test_the_whole_volume_is_in_view_at_first_and_the_users_zoom_stays_later(compare, views, volumes, add_scan):
    compare.show(**volumes)
    name = compare.view_names("synthetic")[0]
    node = views.node(name)
    extent = np.array(voxels_of(volumes["source"]).shape) * volumes["source"].GetSpacing()
    assert max(extent[:2]) <= max(node.GetFieldOfView()[:2]) < 1.6 * max(extent[:2])
    node.SetFieldOfView(17, 17, 1)
    compare.show(volumes["source"], volumes["synthetic"], rows=("Axial",))
    assert node.GetFieldOfView()[0] == 17
    compare.hide()
    compare.show(**volumes)
    assert node.GetFieldOfView()[0] == 17
    other = {key: add_scan(key, head(SIZE), origin=(50.0, 0.0, 0.0)) for key in volumes}
    compare.show(**other)
    assert node.GetFieldOfView()[0] > 17


def test_views_are_fitted_again_after_the_scene_was_closed(compare, views, make, close):
    compare.show(**make())
    node = views.node(compare.view_names("source")[0])
    fitted = node.GetFieldOfView()
    compare.hide()
    assert node.GetHideFromEditors()
    close()
    node.SetFieldOfView(9, 9, 1)
    compare.show(**make())
    assert node.GetFieldOfView() == pytest.approx(fitted)
    assert not node.GetHideFromEditors()


def test_views_are_fitted_again_when_the_main_window_has_given_them_their_size(compare, views, volumes):
    compare.show(**volumes)
    name = compare.view_names("acquired")[0]
    for each in (name for column in compare.columns for name in compare.view_names(column)):
        views.slice_logic(each).ResizeSliceNode(300, 100)
    (laid_out,) = views.callbacks
    laid_out()
    width, height, _ = views.node(name).GetFieldOfView()
    assert width == pytest.approx(3 * height)
    assert height > 48  # mm of the volume, which a fit to the former width would cut
    compare.hide()
    views.node(name).SetFieldOfView(1, 1, 1)
    laid_out()  # too late
    assert views.node(name).GetFieldOfView()[0] == 1


def test_fading_and_flickering_change_the_synthetic_column_alone(compare, views, volumes):
    compare.show(**volumes)
    names = {column: compare.view_names(column)[0] for column in COLUMNS}
    before = {column: views.picture(name) for column, name in names.items()}
    assert shown(views, names["synthetic"]) == (volumes["synthetic"], volumes["acquired"])
    assert compare.fade_volume is volumes["acquired"]
    assert compare.fade == 0
    compare.flicker()
    assert compare.fade == 1
    assert np.abs(views.picture(names["synthetic"]).astype(int) - before["acquired"]).max() <= 1
    compare.flicker()
    assert (views.picture(names["synthetic"]) == before["synthetic"]).all()
    for asked, fade in ((0.25, 0.25), (7, 1), (-1, 0)):
        compare.set_fade(asked)
        assert compare.fade == fade
    for column in ("source", "acquired", "difference"):
        assert (views.picture(names[column]) == before[column]).all()


def test_without_an_acquired_volume_the_source_fades_in(compare, views, volumes):
    compare.show(volumes["source"], volumes["synthetic"])
    assert compare.fade_volume is volumes["source"]
    assert shown(views, compare.view_names("synthetic")[0])[1] is volumes["source"]


def test_hiding_restores_layout_crosshair_windows_and_scene(compare, views, volumes, segmentation, scene, ended):
    layout = views.layout_node
    maximized = scene.GetSingletonNode("Yellow", "vtkMRMLSliceNode")
    layout.AddMaximizedViewNode(maximized)
    crosshair = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode") or scene.AddNewNodeByClass("vtkMRMLCrosshairNode")
    displays = {key: node.GetDisplayNode() for key, node in volumes.items()}
    displays["acquired"].SetAutoWindowLevel(False)
    displays["acquired"].SetWindowLevel(321, 123)
    own = segmentation.GetDisplayNode()

    def state():
        windows = [(d.GetAutoWindowLevel(), d.GetWindow(), d.GetLevel()) for d in displays.values()]
        outlines = (own.GetViewNodeIDs(), own.GetVisibility2DFill(), segmentation.GetNumberOfDisplayNodes())
        return windows, outlines, crosshair.GetCrosshairMode(), layout.GetSaveWithScene(), place_of(views, "Red")

    before, nodes = state(), ids_of(scene)
    for rows in (PLANES, ("Axial",)):
        compare.show(**volumes, rows=rows, segmentations=[segmentation])
        assert layout.GetNumberOfMaximizedViewNodes() == 0
        assert crosshair.GetCrosshairMode() == crosshair.ShowBasic
    compare.set_fade(0.5)
    compare.hide()
    after = state()
    assert after[:4] == before[:4]
    assert (after[4] == before[4]).all()
    assert layout.GetViewArrangement() == CONVENTIONAL
    assert layout.IsMaximizedViewNode(maximized)
    assert ids_of(scene) - views.own_nodes == nodes - views.own_nodes
    assert all(shown(views, name) == (None, None) for name in list(views._logics) if name != "Red")
    assert ended == ["ended"]
    assert not compare.visible
    compare.hide()  # nothing more to do
    assert ended == ["ended"]


def test_choosing_another_layout_ends_the_comparison_and_keeps_that_layout(compare, views, volumes, scene, ended):
    nodes = ids_of(scene)
    compare.show(**volumes)
    views.layout_node.SetViewArrangement(RED_ALONE)
    assert ended == ["ended"]
    assert not compare.visible
    assert views.layout_node.GetViewArrangement() == RED_ALONE
    assert views.layout_node.GetSaveWithScene()
    assert ids_of(scene) - views.own_nodes == nodes - views.own_nodes
    compare.show(**volumes)
    compare.hide()
    assert views.layout_node.GetViewArrangement() == RED_ALONE


@pytest.mark.parametrize("which", ["source", "synthetic", "acquired", "difference"])
def test_deleting_a_volume_ends_the_comparison(compare, views, volumes, segmentation, scene, ended, which):
    nodes = ids_of(scene)
    compare.show(**volumes, segmentations=[segmentation])
    gone = volumes.get(which, compare.difference)
    scene.RemoveNode(gone)
    assert ended == ["ended"]
    assert views.layout_node.GetViewArrangement() == CONVENTIONAL
    assert nodes - ids_of(scene) <= {gone.GetID()}
    assert ids_of(scene) - views.own_nodes <= nodes


def test_deleting_the_segmentation_ends_its_outlines_alone(compare, volumes, segmentation, scene, ended):
    compare.show(**volumes, segmentations=[segmentation])
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationDisplayNode") == 1 + 4
    scene.RemoveNode(segmentation)
    assert compare.visible
    assert not ended
    count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationDisplayNode")
    left = [scene.GetNthNodeByClass(number, "vtkMRMLSegmentationDisplayNode") for number in range(count)]
    assert not any(display.GetSingletonTag() for display in left)


def test_closing_the_scene_leaves_nothing_and_the_next_case_can_be_compared(
    compare, views, volumes, segmentation, scene, ended, make, close
):
    compare.show(**volumes, rows=PLANES, segmentations=[segmentation])
    close()
    assert ended == ["ended"]
    assert views.layout_node.GetViewArrangement() == CONVENTIONAL
    for kind in ("vtkMRMLVolumeNode", "vtkMRMLSegmentationDisplayNode", "vtkMRMLScalarVolumeDisplayNode"):
        assert scene.GetNumberOfNodesByClass(kind) == 0
    compare.show(**make())
    assert shown(views, compare.view_names("source")[0])[0].GetName() == "T1"
    assert views.node(compare.view_names("source")[0]).GetViewGroup() != 0


@pytest.mark.parametrize("suffix", ["mrml", "mrb"])
def test_a_scene_saved_meanwhile_holds_nothing_of_the_comparison(
    compare, application, volumes, segmentation, scene, tmp_path, suffix
):
    compare.show(**volumes, rows=PLANES, segmentations=[segmentation])
    path = tmp_path / f"case.{suffix}"
    loaded = slicer.vtkMRMLScene()
    loaded.SetCacheManager(application.io.GetCacheManager())
    loaded.SetDataIOManager(application.io)
    if suffix == "mrb":
        assert scene.WriteToMRB(str(path))
        (tmp_path / "unpacked").mkdir()
        assert loaded.ReadFromMRB(str(path))
    else:
        assert scene.Commit(str(path))
        loaded.SetURL(str(path))
        assert loaded.Import()
    for kind in ("vtkMRMLLayoutNode", "vtkMRMLColorTableNode"):
        assert loaded.GetNumberOfNodesByClass(kind) == 0
    names = {loaded.GetNthNode(number).GetName() for number in range(loaded.GetNumberOfNodes())}
    assert not any("MissingModalitySynth" in (name or "") for name in names)
    assert {"T1", "T2", "T2 (synthetic from T1)", "lesion"} <= names
    again = loaded.GetFirstNodeByName("lesion")
    displays = [again.GetNthDisplayNode(number) for number in range(again.GetNumberOfDisplayNodes())]
    assert [display is None for display in displays] == [False]
    loaded.Clear(True)


def test_what_cannot_be_compared_changes_nothing(compare, views, volumes, scene, add_transform, ended):
    stretched = add_transform("stretched", np.eye(4) + 0.3 * np.eye(4, k=1))
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    bad = [
        ({"rows": ("Axial", "Oblique")}, "Oblique"),
        ({"rows": ()}, "Axial"),
        ({"source": empty}, "'empty' is empty"),
        ({"acquired": empty}, "'empty' is empty"),
    ]
    nodes = ids_of(scene)
    for change, sentence in bad:
        with pytest.raises(InputError, match=sentence):
            compare.show(**{**volumes, **change})
    volumes["acquired"].SetAndObserveTransformNodeID(stretched.GetID())
    with pytest.raises(GeometryError):
        compare.show(**volumes)
    assert ids_of(scene) == nodes
    assert views.layout_node.GetViewArrangement() == CONVENTIONAL
    assert not compare.visible
    assert not ended


def test_without_a_main_window_there_is_one_sentence_and_no_change(volumes, views, scene, monkeypatch):
    monkeypatch.setattr(views, "slice_logic", lambda name: None)
    compare = CompareView(scene, views.layout_node, views)
    nodes = ids_of(scene)
    with pytest.raises(InputError, match="main window"):
        compare.show(**volumes)
    assert views.layout_node.GetViewArrangement() == CONVENTIONAL
    assert {node for node in ids_of(scene) - nodes if "SliceNode" not in node} == set()


def test_the_difference_has_grid_and_nonlinear_transform_of_the_synthetic_volume(compare, volumes, add_transform):
    bent = add_transform("bent")
    for volume in volumes.values():
        volume.SetAndObserveTransformNodeID(bent.GetID())
    compare.show(**volumes, rows=PLANES)
    assert compare.difference.GetParentTransformNode() is bent
    ours, theirs = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    compare.difference.GetIJKToRASMatrix(ours)
    volumes["synthetic"].GetIJKToRASMatrix(theirs)
    assert (array_of(ours) == array_of(theirs)).all()
    assert voxels_of(compare.difference).shape == SIZE


def test_making_the_comparison_object_and_loading_volumes_touches_no_view(compare, views, make, application):
    arrangement, red = views.layout_node.GetViewArrangement(), place_of(views, "Red")
    volumes = make()
    assert views.layout_node.GetViewArrangement() == arrangement
    compare.show(**volumes)
    assert shown(views, "Red") == (None, None)
    names = [name for column in compare.columns for name in compare.view_names(column)]
    before = [shown(views, name) for name in names]
    selection = application.application.GetSelectionNode()
    selection.SetActiveVolumeID(volumes["source"].GetID())
    application.application.PropagateVolumeSelection(0)  # as Slicer does with every volume that is loaded
    assert [shown(views, name) for name in names] == before
    assert shown(views, "Red")[0] is volumes["source"]
    assert place_of(views, "Red") == pytest.approx(red)


def test_equal_grey_means_no_difference_and_windows_move_together(compare, views, volumes):
    compare.show(**volumes)
    synthetic, acquired = (views.picture(compare.view_names(column)[0]).astype(int) for column in COLUMNS[1:3])
    assert acquired.max() == 255
    assert np.percentile(np.abs(synthetic - acquired), 90) <= 8
    displays = [volumes[column].GetDisplayNode() for column in COLUMNS[1:3]]
    ratio = displays[0].GetWindow() / displays[1].GetWindow()
    assert ratio == pytest.approx(2.5, rel=0.1)
    displays[0].SetWindowLevel(300, 700)
    assert displays[1].GetWindow() == pytest.approx(300 / ratio)
    displays[1].SetWindowLevel(90, 400)
    assert displays[0].GetWindow() == pytest.approx(90 * ratio)
