"""What is left of results when a scene or a volume is saved and read again."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import slicer

from MissingModalitySynthLib.errors import InputError, OutputError
from MissingModalitySynthLib.scene.provenance import (
    deviation_of,
    is_synthetic,
    provenance_of,
    reference_of,
    restore_provenance,
    source_nodes_of,
    synthetic_results,
)
from MissingModalitySynthLib.scene.results import add_results, save_result
from MissingModalitySynthLib.scene.saving import SavedProvenance
from MissingModalitySynthLib.scene.volumes import grid_of, guess_of, volume_of
from MissingModalitySynthLib.volume import Volume
from MissingModalitySynthLib.volume_io import read_provenance, read_volume

PROVENANCE = {
    "synthetic": True,
    "target": "T2",
    "sources": {"T1": "Zoë's T1; 100 %: 'raw' | <x>", "FLAIR": "FLAIR"},
    "package_sha256": "0123456789abcdef",
    "seed": 7,
}


@pytest.fixture
def study(scene, hierarchy, add_scan, add_transform):
    """Two sources in a study under a non-linear transform, and the result with its standard deviation."""
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Zoë")
    day = hierarchy.CreateStudyItem(patient, "Day 1")
    warp = add_transform("warp")
    sources = {modality: add_scan(modality, parent=day) for modality in ("T1", "FLAIR")}
    for node in sources.values():
        node.SetAndObserveTransformNodeID(warp.GetID())
    scan = volume_of(sources["T1"])
    array = (scan.array * np.float32(0.7)).astype(np.float32)
    made = SimpleNamespace(
        volume=Volume(array, scan.geometry), std=Volume(array / 10, scan.geometry), provenance=PROVENANCE
    )
    (node,) = add_results(scene, sources, "T1", {"T2": made}, replace=False)
    return SimpleNamespace(sources=sources, node=node, deviation=deviation_of(node), array=array)


@pytest.mark.parametrize("suffix", ["mrb", "mrml"])
def test_a_saved_scene_keeps_everything_of_a_result(application, scene, study, tmp_path, suffix):
    node, deviation = study.node, study.deviation
    node.GetDisplayNode().SetWindowLevel(123, 45)
    grid, heat = grid_of(node), deviation.GetDisplayNode().GetWindow()
    if suffix == "mrb":
        path = tmp_path / "scene.mrb"
        assert scene.WriteToMRB(str(path))
    else:
        (tmp_path / "bundle").mkdir()
        assert scene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "bundle"))
        (path,) = (tmp_path / "bundle").glob("*.mrml")
    scene.Clear(False)
    assert synthetic_results(scene) == []
    if suffix == "mrb":
        assert scene.ReadFromMRB(str(path))
    else:
        scene.SetURL(str(path))
        assert scene.Connect()

    (again,) = synthetic_results(scene)
    assert again.GetName() == "T2 (synthetic from T1, FLAIR)"
    np.testing.assert_array_equal(volume_of(again).array, study.array)
    for read, written in zip(grid_of(again), grid, strict=True):
        np.testing.assert_allclose(read, written, atol=1e-12)
    assert provenance_of(again) == PROVENANCE
    assert guess_of(again) == "T2"
    sources = source_nodes_of(again)
    assert {modality: source.GetName() for modality, source in sources.items()} == {"T1": "T1", "FLAIR": "FLAIR"}
    assert reference_of(again) is sources["T1"]
    assert again.GetParentTransformNode() is sources["T1"].GetParentTransformNode()
    assert not again.GetParentTransformNode().IsLinear()
    display = again.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel(), display.GetAutoWindowLevel()) == (123, 45, 0)
    assert display.GetColorNode().GetName() == "Grey"
    again_deviation = deviation_of(again)
    np.testing.assert_array_equal(volume_of(again_deviation).array, study.array / 10)
    assert again_deviation.GetDisplayNode().GetWindow() == pytest.approx(heat)
    assert again_deviation.GetDisplayNode().GetColorNode().GetName() == "Iron"

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parents = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(each)) for each in (again, *sources.values())}
    assert [hierarchy.GetItemName(parent) for parent in parents] == ["Day 1"]
    item = hierarchy.GetItemByDataNode(again)
    assert "synthetic" in hierarchy.GetItemAttribute(item, "DICOM.SeriesDescription")


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".nii", ".mha"])
def test_a_saved_result_is_on_its_grid_and_carries_its_provenance(study, tmp_path, suffix):
    path = tmp_path / f"made{suffix}"
    save_result(study.node, path)
    assert read_provenance(path) == PROVENANCE
    saved = read_volume(path)
    assert saved.geometry.matches(volume_of(study.node).geometry, tol=1e-5)
    np.testing.assert_array_equal(saved.array, study.array)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    header = " ".join(reader.GetMetaData(key) for key in reader.GetMetaDataKeys())
    assert ("SYNTHETIC" if suffix.startswith(".nii") else "0123456789abcdef") in header
    path.with_name("made.json").unlink()
    assert read_provenance(path)["target"] == "T2"

    save_result(study.deviation, tmp_path / f"sd{suffix}")
    assert read_provenance(tmp_path / f"sd{suffix}")["quantity"] == "standard deviation over the samples"


def test_saving_leaves_node_and_scene_as_they_are(scene, study, tmp_path):
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName("/elsewhere/result.nrrd")
    study.node.SetAndObserveStorageNodeID(storage.GetID())
    before = (study.node.GetMTime(), storage.GetMTime(), scene.GetNumberOfNodes())
    save_result(study.node, tmp_path / "made.nrrd")
    save_result(study.deviation, tmp_path / "sd.nrrd")
    assert (study.node.GetMTime(), storage.GetMTime(), scene.GetNumberOfNodes()) == before
    assert storage.GetFileName() == "/elsewhere/result.nrrd"
    assert study.deviation.GetStorageNode() is None


def test_only_synthetic_volumes_are_saved_as_such_and_only_where_one_can_write(study, tmp_path):
    with pytest.raises(InputError, match="'T1' is not synthetic"):
        save_result(study.sources["T1"], tmp_path / "t1.nrrd")
    with pytest.raises(OutputError, match="folder does not exist"):
        save_result(study.node, tmp_path / "nowhere" / "made.nrrd")
    assert not list(tmp_path.glob("*.nrrd"))


@pytest.fixture
def watch(scene):
    watch = SavedProvenance(scene)
    watch.start()
    yield watch
    watch.stop()


def save_in_slicer(node, path):
    """Save a node as Slicer's own dialog does."""
    node.AddDefaultStorageNode()
    storage = node.GetStorageNode()
    storage.SetFileName(str(path))
    return storage.WriteData(node)


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
def test_a_file_that_slicer_itself_saves_has_the_provenance_beside_it(application, study, watch, tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    assert save_in_slicer(study.node, path)
    assert save_in_slicer(study.sources["T1"], tmp_path / "acquired.nrrd")
    assert read_provenance(path) == PROVENANCE
    assert [each.name for each in tmp_path.glob("*.json")] == ["scan.json"]
    loaded = application.volumes.AddArchetypeVolume(str(path), "scan")
    assert restore_provenance(loaded)
    assert provenance_of(loaded) == PROVENANCE


def test_what_else_is_in_the_file_beside_a_volume_is_kept(study, watch, tmp_path):
    (tmp_path / "bids.json").write_text('{"EchoTime": 0.1}')
    (tmp_path / "other.json").write_text("not ours")
    for name in ("bids", "other"):
        assert save_in_slicer(study.node, tmp_path / f"{name}.nii.gz")
    assert json.loads((tmp_path / "bids.json").read_text()) == {"EchoTime": 0.1, "MissingModalitySynth": PROVENANCE}
    assert (tmp_path / "other.json").read_text() == "not ours"


def test_choosing_the_name_of_an_acquired_file_does_not_yet_mark_it(study, watch, tmp_path):
    assert save_in_slicer(study.sources["T1"], tmp_path / "t1.nrrd")
    assert save_in_slicer(study.node, tmp_path / "made.nrrd")
    study.node.GetStorageNode().SetFileName(str(tmp_path / "t1.nrrd"))
    assert read_provenance(tmp_path / "t1.nrrd") is None
    assert save_in_slicer(study.node, tmp_path / "t1.nrrd")
    assert read_provenance(tmp_path / "t1.nrrd") == PROVENANCE


def test_nothing_is_written_beside_a_file_any_more_once_stopped(study, watch, tmp_path):
    assert save_in_slicer(study.node, tmp_path / "one.nrrd")
    watch.stop()
    assert save_in_slicer(study.node, tmp_path / "two.nrrd")
    assert [each.name for each in tmp_path.glob("*.json")] == ["one.json"]


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
def test_a_file_of_a_result_that_slicer_loads_is_synthetic_again(application, study, tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"  # a name that gives nothing away
    save_result(study.node, path)
    loaded = application.volumes.AddArchetypeVolume(str(path), "scan")
    assert not is_synthetic(loaded)
    assert restore_provenance(loaded)
    assert provenance_of(loaded) == PROVENANCE
    assert guess_of(loaded) == "T2"


def test_an_acquired_volume_stays_acquired(application, study, tmp_path):
    paths = [tmp_path / f"t1{suffix}" for suffix in (".nrrd", ".nii.gz", ".nii")]
    for path in paths:
        sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkFloat32), path)
    loaded = [application.volumes.AddArchetypeVolume(str(path), "t1") for path in paths]
    paths[1].write_bytes(b"torn")
    paths[2].unlink()
    for node in (study.sources["T1"], *loaded):
        assert not restore_provenance(node)
        assert not is_synthetic(node)


def test_a_damaged_record_is_named(study):
    study.node.SetAttribute("MissingModalitySynth.provenance", "{")
    with pytest.raises(InputError, match=r"The provenance of 'T2 \(synthetic from T1, FLAIR\)' is damaged"):
        provenance_of(study.node)
