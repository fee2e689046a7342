"""Running again: which earlier results give way, and what of them stays."""

import numpy as np
import pytest

from MissingModalitySynthLib.scene import results as results_module
from MissingModalitySynthLib.scene.provenance import (
    deviation_of,
    provenance_of,
    synthetic_results,
    tissues_of,
)
from MissingModalitySynthLib.scene.results import add_results
from MissingModalitySynthLib.scene.volumes import guess_of, volume_of
from Testing.scene.conftest import voxels_of
from Testing.scene.made import PROVENANCE, ids, result, segmented


def test_running_again_adds_results_with_names_of_their_own(scene, add_scan):
    t1 = add_scan("T1")
    for seed in range(3):
        add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2", seed, std=True)}, replace=False)
    nodes = synthetic_results(scene)
    everything = nodes + [deviation_of(node) for node in nodes]
    assert len(nodes) == 3
    assert len({node.GetName() for node in everything}) == 6
    assert [guess_of(node) for node in nodes] == ["T2"] * 3
    for seed, node in enumerate(nodes):
        np.testing.assert_array_equal(volume_of(node).array, result(t1, "T2", seed).volume.array)


def test_running_again_replaces_the_voxels_and_keeps_name_and_display_of_the_user(scene, add_scan, add_transform):
    t1 = add_scan("T1")
    (node,) = add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2", 0, std=True)}, replace=True)
    deviation = deviation_of(node)
    node.SetName("my T2")
    node.GetDisplayNode().SetWindowLevel(11, 22)
    deviation.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeOcean")
    before = ids(scene)
    t1.SetAndObserveTransformNodeID((moved := add_transform(matrix=np.diag((-1.0, -1.0, 1.0, 1.0)))).GetID())
    again = result(t1, "T2", 1, std=True)
    again.provenance = again.provenance | {"seed": 8}
    del again.provenance["steps"]
    assert add_results(scene, {"T1": t1}, "T1", {"T2": again}, replace=True) == [node]
    assert set(ids(scene)) == {*before, moved.GetID()}
    assert node.GetName() == "my T2"
    assert (node.GetDisplayNode().GetWindow(), node.GetDisplayNode().GetLevel()) == (11, 22)
    assert deviation.GetDisplayNode().GetColorNode().GetName() == "Ocean"
    assert node.GetParentTransformNode() is moved
    assert provenance_of(node) == again.provenance
    assert node.GetAttribute("MissingModalitySynth.steps") is None
    np.testing.assert_array_equal(volume_of(node).array, again.volume.array)
    np.testing.assert_array_equal(volume_of(deviation).array, again.std.array)


def test_a_standard_deviation_of_the_run_before_does_not_outlive_its_mean(scene, add_scan):
    t1 = add_scan("T1")
    before = len(ids(scene))
    (node,) = add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2", std=True)}, replace=True)
    assert add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2")}, replace=True) == [node]
    assert deviation_of(node) is None
    assert len(ids(scene)) == before + 2  # the volume and its display
    (node,) = add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2", std=True)}, replace=True)
    assert deviation_of(node) is not None


def test_the_tissues_of_voxels_that_are_replaced_are_dropped_and_no_others(scene, add_scan, monkeypatch):
    t1 = add_scan("T1")
    made = {target: result(t1, target) for target in ("T2", "PD")}
    t2, pd = add_results(scene, {"T1": t1}, "T1", made, replace=True)
    tissues = {node: segmented(scene, node) for node in (t1, t2, pd)}
    add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2", 1)}, replace=False)
    assert tissues_of(t2) == [tissues[t2]]
    add_results(scene, {"T1": t1}, "T1", {"PD": result(t1, "PD", 1)}, replace=True)
    assert [tissues_of(node) for node in (t1, t2, pd)] == [[tissues[t1]], [tissues[t2]], []]
    monkeypatch.setattr(results_module, "mark", lambda node, provenance: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        add_results(scene, {"T1": t1}, "T1", {"T2": result(t1, "T2", 1)}, replace=True)
    assert tissues_of(t2) == [tissues[t2]]  # its voxels stay


def test_a_result_of_another_method_is_kept(scene, add_scan):
    t2 = add_scan("T2")
    paired, zero_shot = (result(t2, "T1", seed) for seed in (0, 1))
    zero_shot.provenance = PROVENANCE | {"target": "T1", "method": "midiffusion"}
    runs = [{"T1": paired}, {"T1": zero_shot}]
    nodes = [add_results(scene, {"T2": t2}, "T2", made, replace=True)[0] for made in runs]
    for node, made in zip(nodes, (paired, zero_shot), strict=True):
        np.testing.assert_array_equal(voxels_of(node), made.volume.array)
    assert nodes[0].GetName() != nodes[1].GetName()
    assert [add_results(scene, {"T2": t2}, "T2", made, replace=True)[0] for made in runs] == nodes


def test_only_a_result_of_the_same_target_sources_and_reference_is_replaced(scene, add_scan):
    t1, flair, other_t1 = add_scan("T1"), add_scan("FLAIR"), add_scan("T1")
    runs = [
        ({"T1": t1}, "T1", "T2"),
        ({"T1": t1}, "T1", "PD"),
        ({"T1": t1, "FLAIR": flair}, "T1", "T2"),
        ({"T1": t1, "FLAIR": flair}, "FLAIR", "T2"),
        ({"T1": other_t1}, "T1", "T2"),
    ]
    first = [
        add_results(scene, sources, reference, {target: result(sources[reference], target)}, replace=True)
        for sources, reference, target in runs
    ]
    assert len(synthetic_results(scene)) == len(runs)
    for (sources, reference, target), nodes in zip(runs, first, strict=True):
        again = {target: result(sources[reference], target, 1)}
        assert add_results(scene, sources, reference, again, replace=True) == nodes
