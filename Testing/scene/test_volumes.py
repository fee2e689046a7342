"""Volume nodes as Volumes: the grid, the voxels and the frame that several volumes share."""

import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from hypothesis import given, settings
from hypothesis import strategies as st
from vtk.util.numpy_support import vtk_to_numpy

from MissingModalitySynthLib.errors import GeometryError, InputError
from MissingModalitySynthLib.scene.volumes import (
    dicom_tags_of,
    geometry_of,
    grid_from,
    grid_of,
    guess_of,
    image_of,
    set_grid,
    volume_of,
    volumes_of,
)
from Testing.scene.conftest import array_of, ijk_to_ras

FLIP = np.array((-1.0, -1.0, 1.0))  # RAS <-> LPS


def rotation(angles):
    """A rotation about x, y and z by angles in degrees, as a 4x4 matrix."""
    transform = vtk.vtkTransform()
    for angle, turn in zip(angles, (transform.RotateX, transform.RotateY, transform.RotateZ), strict=True):
        turn(angle)
    return array_of(transform.GetMatrix())


def moved(angles, shift):
    matrix = rotation(angles)
    matrix[:3, 3] = shift
    return matrix


def world_of(node, index):
    """World position (RAS) of a voxel, by MRML itself."""
    local = ijk_to_ras(node) @ (*index, 1.0)
    world = [0.0, 0.0, 0.0]
    node.TransformPointToWorld(local[:3], world)
    return np.array(world)


def test_a_node_has_the_grid_and_voxels_that_simpleitk_reads_from_the_file_that_mrml_writes(add_scan, tmp_path, scene):
    node = add_scan("T1", np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6))
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(tmp_path / "t1.nrrd"))
    assert storage.WriteData(node)
    image = sitk.ReadImage(tmp_path / "t1.nrrd")
    volume = volume_of(node)
    assert volume.name == "T1"
    assert volume.geometry.size == image.GetSize()
    np.testing.assert_allclose(volume.geometry.spacing, image.GetSpacing(), rtol=1e-12)
    np.testing.assert_allclose(volume.geometry.origin, image.GetOrigin(), rtol=1e-12)
    np.testing.assert_allclose(np.ravel(volume.geometry.direction), image.GetDirection(), atol=1e-12)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image).T)


def test_float32_voxels_are_not_copied_and_cannot_be_written_to(add_scan):
    node = add_scan()
    volume = volume_of(node)
    assert np.shares_memory(volume.array, vtk_to_numpy(node.GetImageData().GetPointData().GetScalars()))
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = 1
    assert vtk_to_numpy(node.GetImageData().GetPointData().GetScalars()).flags.writeable


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.float64])
def test_other_voxels_become_float32_with_the_same_values(add_scan, dtype):
    values = np.random.default_rng(0).integers(0, 200, (3, 4, 5)).astype(dtype)
    array = volume_of(add_scan("T1", values)).array
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_image_of_an_array_holds_its_voxels_at_their_indices(order):
    array = np.array(np.random.default_rng(0).random((70, 5, 6), dtype=np.float32), order=order)
    image = image_of(array)
    assert image.GetDimensions() == (70, 5, 6)
    for index in ((0, 0, 0), (69, 4, 5), (33, 2, 1)):
        assert image.GetScalarComponentAsFloat(*index, 0) == array[index]


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*3 * [st.floats(-180, 180)]),
    spacing=st.tuples(*3 * [st.floats(0.1, 8)]),
    origin=st.tuples(*3 * [st.floats(-500, 500)]),
    left_handed=st.booleans(),
)
def test_any_oblique_grid_survives_the_way_to_another_node(angles, spacing, origin, left_handed):
    node, exact, through_volume = (slicer.vtkMRMLScalarVolumeNode() for _ in range(3))
    image = vtk.vtkImageData()
    image.SetDimensions(3, 4, 5)
    image.AllocateScalars(vtk.VTK_FLOAT, 1)
    node.SetAndObserveImageData(image)
    node.SetSpacing(spacing)
    node.SetOrigin(origin)
    node.SetIJKToRASDirections(*(rotation(angles)[:3, :3] * (-1 if left_handed else 1)).ravel())
    set_grid(exact, grid_of(node))
    np.testing.assert_array_equal(ijk_to_ras(exact), ijk_to_ras(node))
    set_grid(through_volume, grid_from(geometry_of(node)))
    np.testing.assert_allclose(ijk_to_ras(through_volume), ijk_to_ras(node), rtol=0, atol=1e-12)


def test_a_sheared_grid_is_refused_by_name(add_scan):
    node = add_scan("skewed", directions=((1, 0.1, 0), (0, 1, 0), (0, 0, 1)))
    with pytest.raises(GeometryError, match=r"'skewed'.*not orthonormal"):
        volume_of(node)


def test_what_has_no_single_grey_value_per_voxel_is_refused_by_name(scene, add_scan, add_transform):
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "hollow")
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "lesions")
    vector = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colours")
    image = vtk.vtkImageData()
    image.SetDimensions(3, 4, 5)
    image.AllocateScalars(vtk.VTK_FLOAT, 3)
    vector.SetAndObserveImageData(image)
    labels.SetAndObserveImageData(add_scan("T1").GetImageData())
    refused = {empty: "'hollow' is empty", labels: "'lesions' is a label map", vector: "'colours' has several values"}
    refused[add_transform("shift", np.eye(4))] = "'shift' is no volume"
    for node, sentence in refused.items():
        with pytest.raises(InputError, match=sentence):
            volume_of(node)


@pytest.mark.parametrize("common", ["none", "linear", "non-linear"])
def test_volumes_under_other_linear_transforms_meet_in_the_frame_of_the_reference(
    add_scan, add_transform, common, hierarchy
):
    above = {"none": None, "linear": add_transform("l", moved((5, 0, 9), (3, 2, 1))), "non-linear": add_transform("n")}
    t1, t2, flair = add_scan("T1"), add_scan("T2", (16, 17, 18), origin=(1.0, 2.0, 3.0)), add_scan("FLAIR")
    of_t1 = add_transform("of T1", moved((10, 20, 30), (4, -5, 6)))
    of_t2 = add_transform("of T2", moved((-15, 0, 3), (0, 7, -8)))
    inner = add_transform("inner", moved((0, 45, 0), (1, 1, 1)))
    t1.SetAndObserveTransformNodeID(of_t1.GetID())
    t2.SetAndObserveTransformNodeID(inner.GetID())
    inner.SetAndObserveTransformNodeID(of_t2.GetID())
    if above[common] is not None:
        for node in (of_t1, of_t2, flair):
            node.SetAndObserveTransformNodeID(above[common].GetID())
    volumes = volumes_of({"T1": t1, "T2": t2, "FLAIR": flair}, "T1")
    assert volumes["T1"].geometry == geometry_of(t1)
    for modality, node in {"T2": t2, "FLAIR": flair}.items():
        for index in ((0, 0, 0), (5, 9, 3)):
            in_frame = volumes[modality].geometry.index_to_world(index) * FLIP
            world = [0.0, 0.0, 0.0]
            t1.TransformPointToWorld(in_frame, world)  # the frame is T1's own
            np.testing.assert_allclose(world, world_of(node, index), atol=1e-9)


def test_volumes_under_the_same_transform_keep_their_own_grids_even_if_it_is_not_linear(add_scan, add_transform):
    t1, t2 = add_scan("T1"), add_scan("T2", origin=(1.0, 2.0, 3.0))
    warp = add_transform()
    for node in (t1, t2):
        node.SetAndObserveTransformNodeID(warp.GetID())
    volumes = volumes_of({"T1": t1, "T2": t2}, "T1")
    assert volumes["T1"].geometry == geometry_of(t1)
    assert volumes["T2"].geometry == geometry_of(t2)


def test_volumes_that_differ_by_a_non_linear_transform_are_refused(add_scan, add_transform):
    t1, t2 = add_scan("T1"), add_scan("T2")
    t2.SetAndObserveTransformNodeID(add_transform("warped").GetID())
    for reference in ("T1", "T2"):
        with pytest.raises(GeometryError, match="non-linear transform 'warped': harden the transform first"):
            volumes_of({"T1": t1, "T2": t2}, reference)


def test_volumes_that_differ_by_a_shear_are_refused(add_scan, add_transform):
    t1, t2 = add_scan("T1"), add_scan("T2")
    shear = np.eye(4)
    shear[0, 1] = 0.2
    t2.SetAndObserveTransformNodeID(add_transform("sheared", shear).GetID())
    with pytest.raises(GeometryError, match=r"'T2' and 'T1' differ by more than a rigid movement.*resample 'T2'"):
        volumes_of({"T1": t1, "T2": t2}, "T1")


def test_reading_modifies_no_node(add_scan, add_transform):
    nodes = {"T1": add_scan("T1"), "T2": add_scan("T2")}
    nodes["T2"].SetAndObserveTransformNodeID(add_transform("shift", moved((0, 0, 0), (1, 2, 3))).GetID())
    before = {name: (node.GetMTime(), node.GetImageData().GetMTime()) for name, node in nodes.items()}
    volumes_of(nodes, "T1")
    assert {name: (node.GetMTime(), node.GetImageData().GetMTime()) for name, node in nodes.items()} == before


def test_the_contrast_is_guessed_from_name_and_dicom(add_scan):
    tags = {
        "0008,0060": "MR",
        "0008,103e": "Sag 3D",
        "0018,0020": "SE\\IR",
        "0018,0080": "5000",
        "0018,0081": "120",
        "0018,0082": "1800",
    }

    class Database:
        def instanceValue(self, uid, tag):
            return tags.get(tag, "") if uid == "1.2.3" else ""

    def tags_of(node):
        return dicom_tags_of(node, Database())

    scan = add_scan("5: Sag 3D")
    assert guess_of(scan, tags_of) is None
    scan.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    assert tags_of(scan)["InversionTime"] == "1800"
    assert guess_of(scan, tags_of) == "FLAIR"
    assert guess_of(scan) is None
    assert guess_of(add_scan("sub-01_T1w"), tags_of) == "T1"
    assert dicom_tags_of(scan, None) == {}


def test_slicers_process_loads_neither_torch_nor_simpleitk_with_the_scene():
    code = (
        "import sys; from MissingModalitySynthLib.scene import volumes, results, provenance, display, segmentations; "
        "print(sorted({'torch', 'monai', 'SimpleITK', 'scipy', 'skimage'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
