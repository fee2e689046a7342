"""Results as nodes: where they lie, what they say, and that they come all or not at all."""

from types import SimpleNamespace

import numpy as np
import pytest
import slicer

from MissingModalitySynthLib.errors import GeometryError, InputError
from MissingModalitySynthLib.modality import DISPLAY
from MissingModalitySynthLib.scene import results as results_module
from MissingModalitySynthLib.scene.provenance import (
    deviation_of,
    is_deviation,
    is_synthetic,
    mean_of,
    provenance_of,
    reference_of,
    source_nodes_of,
    synthetic_results,
    tissues_of,
)
from MissingModalitySynthLib.scene.results import add_results, remove_results
from MissingModalitySynthLib.scene.volumes import geometry_of, guess_of, volume_of, volumes_of
from MissingModalitySynthLib.volume import Geometry, Volume
from Testing.scene.conftest import ijk_to_ras, voxels_of
from Testing.scene.made import PROVENANCE, ids, result, segmented


def count_items(hierarchy):
    return hierarchy.GetNumberOfItemChildren(hierarchy.GetSceneItemID(), True)


def state(node):
    """All of a node that an update could change."""
    attributes = {name: node.GetAttribute(name) for name in node.GetAttributeNames()}
    return (
        voxels_of(node).tobytes(),
        ijk_to_ras(node).tolist(),
        attributes,
        node.GetTransformNodeID(),
        node.GetName(),
        node.GetDisplayNodeID(),
        {name: source.GetID() for name, source in source_nodes_of(node).items()},
    )


@pytest.mark.parametrize("transform", [None, "linear", "non-linear"])
@pytest.mark.parametrize("seed", range(3))
def test_a_result_has_the_exact_grid_and_the_parent_transform_of_the_reference(
    scene, add_scan, add_transform, transform, seed
):
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.standard_normal((3, 3)))
    t1 = add_scan("T1", (9, 10, 11), random.uniform(0.3, 3, 3), random.uniform(-99, 99, 3), axes)
    if transform:
        parent = add_transform(matrix=None if transform == "non-linear" else np.diag((1.0, -1.0, -1.0, 1.0)))
        t1.SetAndObserveTransformNodeID(parent.GetID())
    made = result(t1, "T2", std=True)
    (node,) = add_results(scene, {"T1": t1}, "T1", {"T2": made}, replace=False)
    for each, volume in ((node, made.volume), (deviation_of(node), made.std)):
        np.testing.assert_array_equal(ijk_to_ras(each), ijk_to_ras(t1))
        assert each.GetTransformNodeID() == t1.GetTransformNodeID()
        assert each.GetParentTransformNode() is t1.GetParentTransformNode()
        np.testing.assert_array_equal(volume_of(each).array, volume.array)
        assert each.GetClassName() == "vtkMRMLScalarVolumeNode"


def test_a_result_of_several_sources_has_the_grid_of_the_chosen_reference_and_refers_to_each(
    scene, add_scan, add_transform
):
    sources = {"T1": add_scan("T1"), "FLAIR": add_scan("FLAIR", (16, 17, 18), origin=(3.0, 2.0, 1.0))}
    shift = np.eye(4)
    shift[:3, 3] = 1, 2, 3
    sources["T1"].SetAndObserveTransformNodeID(add_transform(matrix=shift).GetID())
    made = result(sources["FLAIR"], "T2")
    assert volumes_of(sources, "FLAIR")["FLAIR"].geometry == made.volume.geometry
    (node,) = add_results(scene, sources, "FLAIR", {"T2": made}, replace=False)
    assert node.GetName() == "T2 (synthetic from T1, FLAIR)"
    np.testing.assert_array_equal(ijk_to_ras(node), ijk_to_ras(sources["FLAIR"]))
    assert node.GetTransformNodeID() is None
    assert source_nodes_of(node) == sources
    assert reference_of(node) is sources["FLAIR"]


def test_a_result_from_a_contrast_that_is_not_listed_says_so_and_knows_its_source(scene, add_scan):
    scan = add_scan("scan 7")
    made = {"T1": result(scan, "T1", std=True)}
    (node,) = add_results(scene, {"other": scan}, "other", made, replace=False)
    assert node.GetName() == "T1 (synthetic from unlisted contrast)"
    assert deviation_of(node).GetName() == "T1 SD (synthetic from unlisted contrast)"
    assert (source_nodes_of(node), reference_of(node), guess_of(node)) == ({"other": scan}, scan, "T1")
    assert add_results(scene, {"other": scan}, "other", made, replace=True) == [node]


def test_a_result_says_that_it_is_synthetic_and_how_it_was_made(scene, add_scan):
    t1 = add_scan("T1")
    (node,) = add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2", std=True)}, replace=False)
    assert node.GetName() == "T2 (synthetic from T1)"
    assert is_synthetic(node)
    assert not is_deviation(node)
    assert provenance_of(node) == PROVENANCE | {"target": "T2"}
    attributes = {"synthetic": "1", "target": "T2", "package_sha256": "0123456789abcdef", "seed": "7", "steps": "1"}
    for name, value in attributes.items():
        assert node.GetAttribute(f"MissingModalitySynth.{name}") == value
    assert guess_of(node) == "T2"
    assert (source_nodes_of(node), reference_of(node)) == ({"T1": t1}, t1)

    deviation = deviation_of(node)
    assert deviation.GetName() == "T2 SD (synthetic from T1)"
    assert is_synthetic(deviation)
    assert mean_of(deviation) is node
    assert source_nodes_of(deviation) == {"T1": t1}
    assert provenance_of(deviation)["quantity"] == "standard deviation over the samples"
    assert guess_of(deviation) is None
    assert synthetic_results(scene) == [node]
    assert (provenance_of(t1), is_synthetic(t1)) == ({}, False)


def test_black_and_white_lie_at_the_percentiles_of_the_contrast_within_the_head(scene, add_scan):
    t1 = add_scan("T1", (20, 24, 18))
    made = {target: result(t1, target, std=True) for target in ("T2", "FLAIR")}
    for node, target in zip(add_results(scene, {"T1": t1}, "T1", made, replace=False), made, strict=True):
        array, display = made[target].volume.array, node.GetDisplayNode()
        expected = np.percentile(array[array > 0], DISPLAY[target].window_percentiles)
        np.testing.assert_allclose((display.GetWindowLevelMin(), display.GetWindowLevelMax()), expected, rtol=1e-6)
        assert display.GetColorNode().GetName() == "Grey"
        assert (display.GetAutoWindowLevel(), display.GetInterpolate()) == (0, 1)
        heat = deviation_of(node).GetDisplayNode()
        assert heat.GetColorNode() not in (None, display.GetColorNode())
        assert (heat.GetWindowLevelMin(), heat.GetAutoWindowLevel()) == (0, 0)
        assert 0 < heat.GetWindowLevelMax() <= made[target].std.array.max()


def test_an_empty_result_can_be_shown(scene, add_scan):
    t1 = add_scan("T1")
    made = result(t1, "T2", std=True)
    made.volume.array[:] = 0
    made.std.array[:] = 0
    (node,) = add_results(scene, {"T1": t1}, "T1", {"T2": made}, replace=False)
    assert node.GetDisplayNode().GetWindow() > 0


def test_results_lie_in_the_study_of_the_reference_without_its_dicom_identity(scene, hierarchy, add_scan):
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Zoë")
    study = hierarchy.CreateStudyItem(patient, "Day 1")
    t1 = add_scan("T1", parent=study)
    t1.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    hierarchy.SetItemUID(hierarchy.GetItemByDataNode(t1), "DICOM", "1.2")
    (node,) = add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2", std=True)}, replace=False)
    for each in (node, deviation_of(node)):
        item = hierarchy.GetItemByDataNode(each)
        assert hierarchy.GetItemParent(item) == study
        assert hierarchy.GetItemOwnerPluginName(item) == "Volumes"
        assert hierarchy.GetItemUID(item, "DICOM") == ""
        assert not any(name.startswith("DICOM") for name in each.GetAttributeNames())
        # Slicer's DICOM export takes the tags of a series from here
        assert "synthetic" in hierarchy.GetItemAttribute(item, "DICOM.SeriesDescription")
        assert len(hierarchy.GetItemAttribute(item, "DICOM.SeriesDescription")) <= 64
        assert hierarchy.GetItemAttribute(item, "DICOM.Modality") == "MR"


def test_a_reference_outside_the_subject_hierarchy_is_no_obstacle(scene, hierarchy, add_scan):
    t1 = add_scan("T1")
    hierarchy.RemoveItem(hierarchy.GetItemByDataNode(t1), False)
    (node,) = add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2")}, replace=False)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == hierarchy.GetSceneItemID()


def test_the_sources_are_not_modified(scene, add_scan, add_transform):
    sources = {"T1": add_scan("T1"), "FLAIR": add_scan("FLAIR")}
    sources["FLAIR"].SetAndObserveTransformNodeID(add_transform(matrix=np.diag((-1.0, -1.0, 1.0, 1.0))).GetID())

    def all_of():
        times = [
            (node.GetMTime(), node.GetImageData().GetMTime(), node.GetDisplayNode().GetMTime())
            for node in sources.values()
        ]
        return [state(node) for node in sources.values()], times

    all_of()  # the first GetTransformNodeID of a node counts as a modification of it
    before = all_of()
    for replace in (False, True):
        add_results(scene, sources, "T1", {"T2": result(sources["T1"], "T2", std=True)}, replace=replace)
    assert all_of() == before


def test_a_result_of_another_spacing_lies_on_its_own_grid_over_the_same_field_of_view(scene, add_scan):
    t1 = add_scan("T1", (20, 24, 18), (1.0, 1.25, 1.5))
    grid = geometry_of(t1)
    size, spacing = (10, 15, 27), (2.0, 2.0, 1.0)
    first = [(wanted / own - 1) / 2 for own, wanted in zip(grid.spacing, spacing, strict=True)]
    geometry = Geometry(size, spacing, grid.index_to_world(first), grid.direction)
    made = SimpleNamespace(
        volume=Volume(np.ones(size, np.float32), geometry), std=None, provenance=PROVENANCE | {"target": "T2"}
    )
    (node,) = add_results(scene, {"T1": t1}, "T1", {"T2": made}, replace=False)
    assert geometry_of(node).matches(geometry, tol=1e-12)


def test_a_source_that_is_gone_leaves_the_scene_as_it_was(scene, add_scan):
    sources = {"T1": add_scan("T1"), "FLAIR": add_scan("Zoë's FLAIR")}
    made = {"T2": result(sources["T1"], "T2")}
    scene.RemoveNode(sources["FLAIR"])
    before = ids(scene)
    with pytest.raises(InputError, match=r"The FLAIR 'Zoë's FLAIR' was removed or the scene closed.*nothing was added"):
        add_results(scene, sources, "T1", made, replace=False)
    assert ids(scene) == before


def test_nothing_is_added_to_a_scene_that_was_closed_even_if_another_was_opened(scene, add_scan):
    t1 = add_scan("T1")
    made = {"T2": result(t1, "T2")}
    scene.Clear(False)
    other = add_scan("T1")
    assert other.GetID() == t1.GetID()
    before = ids(scene)
    with pytest.raises(InputError, match="scene closed"):
        add_results(scene, {"T1": t1}, "T1", made, replace=True)
    assert ids(scene) == before


@pytest.mark.parametrize("change", ["moved", "cropped", "turned", "resampled elsewhere", "emptied"])
def test_a_reference_whose_grid_was_changed_during_the_run_gets_no_result(scene, add_scan, change):
    t1 = add_scan("T1", (20, 24, 18))
    made = {"T2": result(t1, "T2")}
    match change:
        case "moved":
            t1.SetOrigin(*np.add(t1.GetOrigin(), (0, 0, 0.01)))
        case "cropped":
            t1.SetAndObserveImageData(add_scan("small", (18, 24, 18)).GetImageData())
        case "turned":
            t1.SetIJKToRASDirections(1, 0, 0, 0, 1, 0, 0, 0, 1)
        case "resampled elsewhere":
            t1.SetSpacing(2, 2, 2)
        case "emptied":
            t1.SetAndObserveImageData(None)
    before = ids(scene)
    sentence = "'T1' is empty" if change == "emptied" else "grid of 'T1' was changed during the run"
    with pytest.raises(InputError, match=sentence):
        add_results(scene, {"T1": t1}, "T1", made, replace=False)
    assert ids(scene) == before


def test_the_error_of_a_changed_grid_is_one_of_geometry(scene, add_scan):
    t1 = add_scan("T1")
    made = {"T2": result(t1, "T2")}
    t1.SetOrigin(0, 0, 0)
    with pytest.raises(GeometryError):
        add_results(scene, {"T1": t1}, "T1", made, replace=False)


@pytest.mark.parametrize("step", ["image_of", "mark", "place_beside", "show_contrast", "show_deviation"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_failure_in_the_middle_takes_everything_back(scene, add_scan, hierarchy, monkeypatch, step, replace):
    t1 = add_scan("T1")
    old = add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2", std=True)}, replace=False)
    kept = [*old, deviation_of(old[0]), t1]
    before, states, items = ids(scene), [state(node) for node in kept], count_items(hierarchy)
    real, calls = getattr(results_module, step), []

    def fail_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(results_module, step, fail_at_the_second)
    made = {target: result(t1, target, 5, std=True) for target in ("T2", "FLAIR", "PD")}
    with pytest.raises(MemoryError):
        add_results(scene, {"T1": t1}, "T1", made, replace=replace)
    assert ids(scene) == before
    assert [state(node) for node in kept] == states
    assert count_items(hierarchy) == items
    assert not scene.IsBatchProcessing()


def test_viewers_wait_until_all_results_are_there(scene, add_scan):
    t1 = add_scan("T1")
    made = {target: result(t1, target, std=True) for target in ("T2", "FLAIR")}
    events = []
    observers = [
        scene.AddObserver(code, lambda caller, event, code=code: events.append((code, len(synthetic_results(caller)))))
        for code in (slicer.vtkMRMLScene.StartBatchProcessEvent, slicer.vtkMRMLScene.EndBatchProcessEvent)
    ]
    add_results(scene, {"T1": t1}, "T1", made, replace=False)
    for observer in observers:
        scene.RemoveObserver(observer)
    assert [count for _, count in events] == [0, 2]


def test_removing_a_result_leaves_nothing_of_it(scene, add_scan, hierarchy):
    t1 = add_scan("T1")
    before, items = ids(scene), count_items(hierarchy)
    made = {target: result(t1, target, std=True) for target in ("T2", "FLAIR")}
    t2, flair = add_results(scene, {"T1": t1}, "T1", made, replace=False)
    flair.AddDefaultStorageNode()
    remove_results(scene, [flair])
    assert synthetic_results(scene) == [t2]
    assert deviation_of(t2) is not None
    remove_results(scene, [t2])
    assert ids(scene) == before
    assert count_items(hierarchy) == items


def test_removing_a_result_removes_its_tissues_and_no_others(scene, add_scan, hierarchy):
    t1 = add_scan("T1")
    kept = segmented(scene, t1)
    before, items = ids(scene), count_items(hierarchy)
    (t2,) = add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2")}, replace=False)
    segmented(scene, t2)
    segmented(scene, t2)
    remove_results(scene, [t2])
    assert tissues_of(t1) == [kept]
    assert (ids(scene), count_items(hierarchy)) == (before, items)


def test_a_name_that_is_free_again_is_used_again(scene, add_scan):
    t1 = add_scan("T1")

    def again():
        (node,) = add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2")}, replace=False)
        return node, node.GetName(), segmented(scene, node).GetName()

    plain = ("T2 (synthetic from T1)", "T2 (synthetic from T1) (tissues)")
    first, *names = again()
    assert tuple(names) == plain
    _second, *names = again()
    assert set(names).isdisjoint(plain)
    remove_results(scene, [first])
    _third, *names = again()
    assert tuple(names) == plain


@pytest.fixture
def undoable(scene, add_scan):
    """A T1 in a scene where volumes and their displays can be undone."""
    scene.SetUndoOn()
    t1 = add_scan("T1")
    t1.SetUndoEnabled(True)
    t1.GetDisplayNode().SetUndoEnabled(True)
    return t1


def test_undo_takes_back_the_whole_run_and_redo_brings_it_again(scene, undoable):
    before, unchanged = ids(scene), state(undoable)
    made = {target: result(undoable, target, std=True) for target in ("T2", "FLAIR")}
    add_results(scene, {"T1": undoable}, "T1", made, replace=False)
    after = ids(scene)
    scene.Undo()
    assert ids(scene) == before
    assert state(undoable) == unchanged
    scene.Redo()
    assert set(ids(scene)) == set(after)
    for node, target in zip(synthetic_results(scene), made, strict=True):
        np.testing.assert_array_equal(volume_of(node).array, made[target].volume.array)
        assert source_nodes_of(node) == {"T1": undoable}
        assert node.GetDisplayNode() is not None


def test_undo_brings_back_what_a_run_replaced_and_what_was_removed(scene, undoable):
    (node,) = add_results(scene, {"T1": undoable}, "T1", {"T2": result(undoable, "T2", 0)}, replace=True)
    first = state(node)
    add_results(scene, {"T1": undoable}, "T1", {"T2": result(undoable, "T2", 1)}, replace=True)
    assert state(node) != first
    scene.Undo()
    assert state(node) == first
    remove_results(scene, [node])
    assert synthetic_results(scene) == []
    scene.Undo()
    (again,) = synthetic_results(scene)
    assert state(again) == first
