import gzip
import json
import os
import re
import struct
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from MissingModalitySynthLib.errors import GeometryError, InputError, OutputError
from MissingModalitySynthLib.volume import Geometry, Volume, to_sitk
from MissingModalitySynthLib.volume_io import read_header, read_provenance, read_volume, write_volume

SHAPE = (16, 18, 20)
FORMATS = (".nii", ".nii.gz", ".nrrd", ".mha")
OBLIQUE = Rotation.from_euler("xyz", (10, -20, 179.9), degrees=True).as_matrix()[:, [2, 0, 1]]
PROVENANCE = {"target": "FLAIR", "sources": {"T1": "Müller – T1.nii"}, "seed": 7, "notes": "x" * 5000}


GEOMETRY = Geometry(SHAPE, (0.9, 0.4297, 5.1), (123.456789, -98.7654321, 55.5), OBLIQUE)


def scan(geometry=GEOMETRY):
    array = np.random.default_rng(0).normal(500, 100, geometry.size).astype(np.float32)
    return Volume(array, geometry, "scan")


def write_plain(path, array=None, **changes):
    """A file as other programs write it, by SimpleITK, of an array [i, j, k]."""
    image = sitk.GetImageFromArray(np.ascontiguousarray((scan().array if array is None else array).T))
    for key, value in changes.items():
        getattr(image, f"Set{key}")(value)
    sitk.WriteImage(image, str(path))
    return path


def patch(path, offset, layout, *values):
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, offset, *values)
    path.write_bytes(data)
    return path


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


# --- what is written is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_written_volume_is_read_back_with_its_voxels_its_grid_and_its_provenance(tmp_path, suffix):
    path = tmp_path / f"case_FLAIR_synthetic{suffix}"
    write_volume(scan(), path, PROVENANCE)
    again = read_volume(path)
    np.testing.assert_array_equal(again.array, scan().array)
    assert again.name == "case_FLAIR_synthetic"
    assert again.geometry.matches(GEOMETRY, tol=1e-6)
    if suffix in (".nrrd", ".mha"):
        assert again.geometry.matches(GEOMETRY, tol=1e-14)
    assert read_header(path)[0] == again.geometry
    assert read_provenance(path) == PROVENANCE
    assert left_in(tmp_path) == sorted(["case_FLAIR_synthetic.json", path.name])


@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.tuples(*[st.floats(0.2, 8)] * 3),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.sampled_from([".nii", ".nrrd", ".mha"]),
)
@settings(max_examples=60, deadline=None)
def test_any_grid_survives_every_format(tmp_path_factory, angles, order, signs, spacing, origin, suffix):
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()[:, order] * signs
    volume = scan(geometry=Geometry((16, 16, 16), spacing, origin, direction))
    path = tmp_path_factory.mktemp("any") / f"x{suffix}"
    write_volume(volume, path)
    again = read_volume(path)
    np.testing.assert_allclose(again.geometry.corners, volume.geometry.corners, atol=2e-4)
    assert again.geometry.matches(volume.geometry, tol=1e-6)
    np.testing.assert_array_equal(again.array, volume.array)


def test_nibabel_finds_the_same_voxels_in_the_same_places(tmp_path):
    write_volume(scan(), tmp_path / "x.nii.gz", PROVENANCE)
    image = nibabel.load(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), scan().array)
    ras = np.diag((-1, -1, 1, 1)) @ GEOMETRY.affine
    for affine in (image.get_sform(), image.get_qform()):
        np.testing.assert_allclose(affine, ras, atol=2e-5)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "i8", "u8"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_scalar_type_becomes_float32(tmp_path, dtype, suffix):
    array = (np.arange(np.prod(SHAPE)) % 120).reshape(SHAPE).astype(dtype)
    volume = read_volume(write_plain(tmp_path / f"x{suffix}", array))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array)


def test_the_rescaling_of_a_nifti_is_applied(tmp_path):
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    path = write_plain(tmp_path / "x.nii", array)
    patch(path, 112, "<2f", 0.5, -10)
    np.testing.assert_allclose(read_volume(path).array, array * 0.5 - 10)


def test_a_big_endian_nifti_is_read_and_a_nifti_2_refused(tmp_path):
    affine = np.diag((-1, -1, 1, 1)) @ GEOMETRY.affine
    big = nibabel.Nifti1Image(scan().array, affine).header.as_byteswapped(">")
    nibabel.save(nibabel.Nifti1Image(scan().array, affine, big), tmp_path / "big.nii")
    volume = read_volume(tmp_path / "big.nii")
    np.testing.assert_array_equal(volume.array, scan().array)
    np.testing.assert_allclose(volume.geometry.affine, GEOMETRY.affine, atol=2e-5)
    nibabel.save(nibabel.Nifti2Image(scan().array, affine), tmp_path / "two.nii.gz")
    with pytest.raises(InputError, match="is a NIfTI-2 file"):
        read_volume(tmp_path / "two.nii.gz")


def test_a_series_of_one_time_point_is_a_3d_volume(tmp_path):
    image = sitk.JoinSeries([to_sitk(scan())])
    for suffix in (".nii", ".nrrd", ".mha"):
        sitk.WriteImage(image, str(tmp_path / f"x{suffix}"))
        volume = read_volume(tmp_path / f"x{suffix}")
        np.testing.assert_array_equal(volume.array, scan().array)
        assert volume.geometry.matches(GEOMETRY)
        assert read_header(tmp_path / f"x{suffix}")[0] == volume.geometry


def test_long_paths_with_spaces_and_letters_of_any_alphabet_work(tmp_path):
    folder = tmp_path / ("Größe und Ähnliches " * 6) / ("данные 数据 " * 8)
    folder.mkdir(parents=True)
    path = folder / "Ångström FLAIR (synthetic).nii.gz"
    assert len(str(path)) > 200
    write_volume(scan(), path, PROVENANCE)
    np.testing.assert_array_equal(read_volume(path).array, scan().array)
    assert read_provenance(path) == PROVENANCE


def test_nothing_reaches_the_console(tmp_path, capfd, write_dicom_series):
    for suffix in FORMATS:
        write_volume(scan(), tmp_path / f"x{suffix}", PROVENANCE)
        data = (tmp_path / f"x{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(data[: len(data) * 2 // 3])
        read_volume(tmp_path / f"x{suffix}")
        with pytest.raises(InputError):
            read_volume(tmp_path / f"cut{suffix}")
    with pytest.raises(InputError):
        read_volume(tmp_path)
    write_dicom_series(tmp_path / "dicom", np.arange(16 * 16 * 17).reshape(16, 16, 17) % 99)
    read_volume(tmp_path / "dicom")
    assert capfd.readouterr() == ("", "")


# --- provenance -----------------------------------------------------------------------------------------------------


def test_nifti_says_in_its_header_that_it_is_synthetic(tmp_path):
    write_volume(scan(), tmp_path / "x.nii.gz", PROVENANCE)
    description = bytes(nibabel.load(tmp_path / "x.nii.gz").header["descrip"]).decode()
    assert description.startswith("SYNTHETIC FLAIR by MissingModalitySynth")
    (tmp_path / "x.json").unlink()
    assert read_provenance(tmp_path / "x.nii.gz") == {"description": description.rstrip("\0"), "target": "FLAIR"}


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_the_header_keeps_the_provenance_when_the_sidecar_is_lost(tmp_path, suffix):
    write_volume(scan(), tmp_path / f"x{suffix}", PROVENANCE)
    (tmp_path / "x.json").unlink()
    assert read_provenance(tmp_path / f"x{suffix}") == PROVENANCE


def test_an_acquired_volume_has_no_provenance_though_it_has_a_bids_sidecar(tmp_path):
    path = write_plain(tmp_path / "sub-01_T1w.nii")
    assert read_provenance(path) is None
    (tmp_path / "sub-01_T1w.json").write_text('{"EchoTime": 0.003}')
    assert read_provenance(path) is None
    (tmp_path / "sub-01_T1w.json").write_text("{broken")  # not ours to judge
    assert read_provenance(path) is None


def test_a_damaged_provenance_in_the_header_is_refused(tmp_path):
    path = tmp_path / "x.nrrd"
    write_volume(scan(), path, {"target": "FLAIR"})
    path.write_bytes(path.read_bytes().replace(b'{"target"', b'["target"', 1))
    with pytest.raises(InputError, match=r"provenance of .*x\.nrrd' is damaged"):
        read_provenance(path)


def test_the_sidecar_is_readable_by_people(tmp_path):
    write_volume(scan(), tmp_path / "x.nrrd", PROVENANCE)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "Müller – T1.nii" in text and json.loads(text) == {"MissingModalitySynth": PROVENANCE}


def test_a_volume_without_provenance_gets_no_sidecar(tmp_path):
    write_volume(scan(), tmp_path / "x.mha")
    assert left_in(tmp_path) == ["x.mha"]
    assert read_provenance(tmp_path / "x.mha") is None


# --- bad files, each with its own sentence --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("packed", [True, False])
def test_a_truncated_file_is_refused(tmp_path, suffix, share, packed):
    path = tmp_path / f"x{suffix}"
    sitk.WriteImage(to_sitk(scan()), str(path), packed)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=re.escape(str(path))):
        read_volume(path)


def test_a_damaged_gzip_is_refused(tmp_path):
    path = write_plain(tmp_path / "x.nii.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_volume(path)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.nrrd", "x.mha"])
@pytest.mark.parametrize(
    "content", [b"hello" * 500, b"\x1f\x8b" + bytes(600), gzip.compress(b"hello" * 500), bytes(900)]
)
def test_what_is_no_image_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(name)):
        read_volume(tmp_path / name)


@given(position=st.integers(0, 351), value=st.integers(0, 255), suffix=st.sampled_from([".nii", ".nrrd", ".mha"]))
@settings(max_examples=150, deadline=None)
def test_a_header_with_any_byte_changed_is_read_or_refused_by_a_named_error(tmp_path_factory, position, value, suffix):
    path = write_plain(tmp_path_factory.mktemp("byte") / f"x{suffix}")
    try:
        read_volume(patch(path, position, "B", value))
    except InputError as error:
        assert path.stem in str(error)


def test_a_missing_file_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"gone\.nii' does not exist"):
        read_volume(tmp_path / "gone.nii")
    (tmp_path / "x.jpg").write_bytes(b"jpg")
    with pytest.raises(InputError, match=r"x\.jpg' is in no supported format \(\.nii\.gz"):
        read_volume(tmp_path / "x.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = write_plain(tmp_path / "x.nii")
    path.chmod(0)
    with pytest.raises(InputError, match="can't be read"):
        read_volume(path)


def vector(components, dtype):
    array = np.random.default_rng(0).integers(0, 255, (16, 17, 18, components)).astype(dtype)
    return sitk.GetImageFromArray(array, isVector=True)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (vector(3, np.uint8), r"colour \(RGB\) image"),
        (vector(2, np.float32), "vector image with 2 components"),
        (sitk.JoinSeries([to_sitk(scan())] * 3), "4D image with 3 volumes"),
        (to_sitk(scan())[:, :, 3], "2D image"),
        (to_sitk(scan())[:, :, 3:4], "2D image"),
    ],
    ids=["colour", "vector", "4D", "2D", "one slice"],
)
def test_what_is_no_scalar_3d_image_is_refused_by_its_own_sentence(tmp_path, image, sentence, suffix):
    sitk.WriteImage(image, str(tmp_path / f"x{suffix}"))
    with pytest.raises(InputError, match=rf"x\{suffix}' is a {sentence}"):
        read_volume(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("suffix", [".nii", ".nrrd"])
def test_a_complex_image_is_refused(tmp_path, suffix):
    sitk.WriteImage(sitk.GetImageFromArray(np.ones(SHAPE, np.complex64)), str(tmp_path / f"x{suffix}"))
    with pytest.raises(InputError, match="complex voxels"):
        read_volume(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_spacing_that_is_not_positive_is_refused(tmp_path, suffix, spacing):
    path = write_plain(tmp_path / f"x{suffix}")
    if suffix == ".nii":
        patch(path, 80, "<f", spacing)
    elif suffix == ".nii.gz":
        data = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into("<f", data, 80, spacing)
        path.write_bytes(gzip.compress(data))
    elif suffix == ".nrrd":
        header = re.sub(rb"space( directions| origin)?: .*\n", b"", path.read_bytes())
        path.write_bytes(header.replace(b"sizes:", b"spacings: %g 1 1\nsizes:" % spacing))
    else:
        path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 %g 1" % spacing))
    with pytest.raises(GeometryError, match=r"spacing .* positive"):
        read_volume(path)


def test_a_sheared_or_scaled_direction_is_refused(tmp_path):
    nifti = patch(write_plain(tmp_path / "x.nii"), 280, "<4f", -1, 0.3, 0, 0)
    nrrd = write_plain(tmp_path / "x.nrrd")
    nrrd.write_bytes(nrrd.read_bytes().replace(b"(1,0,0) (0,1,0)", b"(1,0.3,0) (0,1,0)"))
    mha = write_plain(tmp_path / "x.mha")
    mha.write_bytes(mha.read_bytes().replace(b"TransformMatrix = 1 0 0", b"TransformMatrix = 1 0.3 0"))
    for path in (nifti, nrrd, mha):
        with pytest.raises(GeometryError, match=rf"x\{path.suffix}'.*not orthonormal"):
            read_volume(path)


@pytest.mark.parametrize("shift", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (1, 2)])
def test_a_nifti_is_refused_where_its_two_places_differ_and_else_lies_where_nibabel_places_it(tmp_path, codes, shift):
    place = np.diag((-1.0, -1.0, 1.0, 1.0)) @ GEOMETRY.affine
    image = nibabel.Nifti1Image(scan().array, None)
    image.set_sform(place, codes[0])
    image.set_qform(place + shift * np.eye(4, k=3), codes[1])
    nibabel.save(image, tmp_path / "x.nii.gz")
    if shift > 1:
        with pytest.raises(GeometryError, match=r"x\.nii\.gz' states two places"):
            read_volume(tmp_path / "x.nii.gz")
    else:
        found = np.diag((-1, -1, 1, 1)) @ read_volume(tmp_path / "x.nii.gz").geometry.affine
        np.testing.assert_allclose(found, place, atol=shift + 1e-4)


def test_a_nifti_whose_spacing_is_not_that_of_its_sform_is_refused(tmp_path):
    with pytest.raises(GeometryError, match="states two places"):
        read_volume(patch(write_plain(tmp_path / "x.nii"), 80, "<f", 2.0))


def test_a_nifti_whose_place_is_not_finite_is_refused_in_silence(tmp_path, capfd):
    for offset in (268, 292):  # of qform and sform
        with pytest.raises(GeometryError, match="not finite"):
            read_volume(patch(write_plain(tmp_path / "x.nii"), offset, "<f", float("nan")))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("offset", "layout", "value"), [(40, "<h", 9), (42, "<h", -16), (72, "<h", 0), (108, "<f", -9)]
)
def test_a_nifti_with_an_impossible_header_is_refused_in_silence(tmp_path, capfd, offset, layout, value):
    with pytest.raises(InputError, match="truncated or damaged"):
        read_volume(patch(write_plain(tmp_path / "x.nii"), offset, layout, value))
    assert capfd.readouterr() == ("", "")


def test_a_zero_in_the_directions_of_an_nrrd_is_a_spacing_that_is_not_positive(tmp_path):
    path = write_plain(tmp_path / "x.nrrd")
    path.write_bytes(path.read_bytes().replace(b"(1,0,0)", b"(0,0,0)", 1))
    with pytest.raises(GeometryError, match=r"x\.nrrd' states a voxel spacing of 0"):
        read_volume(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", FORMATS)
def test_voxels_that_are_not_finite_are_counted_and_refused(tmp_path, suffix, dtype):
    array = np.pad(scan().array, ((0, 1), (0, 1), (0, 1)), "edge").astype(dtype)  # an odd number of voxels
    array[3, 4, 5], array[0, 0, 0], array[-1, -1, -1] = np.nan, np.inf, -np.inf
    with pytest.raises(InputError, match="3 voxels that are NaN or infinite"):
        read_volume(write_plain(tmp_path / f"x{suffix}", array))


def test_constant_and_tiny_volumes_are_refused_on_reading(tmp_path):
    with pytest.raises(InputError, match="constant"):
        read_volume(write_plain(tmp_path / "x.nii", np.ones(SHAPE, np.int16)))
    with pytest.raises(GeometryError, match="15 voxels along axis i"):
        read_volume(write_plain(tmp_path / "x.nii", scan().array[:15]))


# --- writing: all or nothing ----------------------------------------------------------------------------------------


def test_an_existing_file_is_replaced_and_nothing_else_is_left(tmp_path):
    for provenance in (PROVENANCE, PROVENANCE | {"seed": 8}):
        write_volume(scan(), tmp_path / "x.nii.gz", provenance)
    assert read_provenance(tmp_path / "x.nii.gz")["seed"] == 8
    assert left_in(tmp_path) == ["x.json", "x.nii.gz"]


def test_impossible_places_are_refused(tmp_path):
    with pytest.raises(OutputError, match="folder does not exist"):
        write_volume(scan(), tmp_path / "gone" / "x.nii", PROVENANCE)
    with pytest.raises(OutputError, match="use one of the formats"):
        write_volume(scan(), tmp_path / "x.png", PROVENANCE)
    (tmp_path / "x.nii").mkdir()
    with pytest.raises(OutputError, match="folder itself"):
        write_volume(scan(), tmp_path / "x.nii", PROVENANCE)
    assert left_in(tmp_path) == ["x.nii"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder where even root can't write")
def test_a_folder_that_is_not_writable_is_refused():
    with pytest.raises(OutputError, match=r"/proc/x\.nii\.gz' can't be written"):
        write_volume(scan(), "/proc/x.nii.gz", PROVENANCE)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_leaves_nothing_behind(tmp_path, suffix):
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    old = {"target": "T2"}
    write_volume(scan(), tmp_path / f"x{suffix}", old)
    before = (tmp_path / f"x{suffix}").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))  # files end here, as on a full disk
    try:
        with pytest.raises(OutputError, match="can't be written"):
            write_volume(scan(), tmp_path / f"x{suffix}", PROVENANCE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left_in(tmp_path) == ["x.json", f"x{suffix}"]
    assert (tmp_path / f"x{suffix}").read_bytes() == before
    assert read_provenance(tmp_path / f"x{suffix}") == old


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_volume(scan(), tmp_path / "x.nii.gz", PROVENANCE)
    assert left_in(tmp_path) == []


# --- real scans -----------------------------------------------------------------------------------------------------


def test_real_scans_are_placed_where_nibabel_places_them(real_data):
    paths = [
        "subjects/brats-gli-00001/BraTS-GLI-00001-000-t2f.nii.gz",
        "subjects/open-ms-26/ms26-t1-mni-brain.nii.gz",
        "templates/spm12/canonical_avg152T1.nii.gz",
    ]
    for path in (real_data / path for path in paths):
        volume, image = read_volume(path), nibabel.load(path)
        np.testing.assert_allclose(np.diag((-1, -1, 1, 1)) @ volume.geometry.affine, image.affine, atol=1e-4)
        np.testing.assert_allclose(volume.array, image.get_fdata(dtype=np.float32), rtol=1e-6)
