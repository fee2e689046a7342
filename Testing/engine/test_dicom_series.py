import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from MissingModalitySynthLib.errors import GeometryError, InputError
from MissingModalitySynthLib.modality import guess_modality
from MissingModalitySynthLib.volume import Geometry
from MissingModalitySynthLib.volume_io import read_header, read_volume

ARRAY = (np.arange(20 * 22 * 17) * 7 % 1009).reshape(20, 22, 17)
OBLIQUE = Rotation.from_euler("xyz", (10, -20, 179.9), degrees=True).as_matrix()[:, [2, 0, 1]]
ROW_COLUMN = tuple(OBLIQUE[:, :2].T.ravel().round(8))


def test_a_dicom_series_is_read_in_the_order_of_space_with_every_slices_rescaling(tmp_path, write_dicom_series):
    slopes = [0.5 + 0.1 * k for k in range(17)]
    write_dicom_series(
        tmp_path / "MR 1",
        ARRAY,
        spacing=(0.8, 1.1, 2.5),
        origin=(10, -20, 30),
        axes=ROW_COLUMN,
        RescaleSlope=slopes,
        RescaleIntercept=-3.0,
        SeriesDescription="t1_mprage_sag",
        EchoTime=2.9,
    )
    volume = read_volume(tmp_path / "MR 1")
    np.testing.assert_allclose(volume.array, ARRAY * np.array(slopes) - 3, rtol=1e-5, atol=1e-4)
    normal = np.cross(ROW_COLUMN[:3], ROW_COLUMN[3:])
    direction = np.column_stack([ROW_COLUMN[:3], ROW_COLUMN[3:], normal])
    assert volume.geometry.matches(Geometry(ARRAY.shape, (0.8, 1.1, 2.5), (10, -20, 30), direction))
    assert read_header(tmp_path / "MR 1")[0] == volume.geometry
    assert volume.name == "MR 1"
    assert volume.metadata["EchoTime"] == "2.9"
    assert guess_modality(dicom=volume.metadata) == "T1"
    assert not {"Nobody^Known", "secret"} & set(volume.metadata.values())  # no patient's name or number


def test_a_description_in_latin_1_is_understood(tmp_path, write_dicom_series):
    write_dicom_series(tmp_path / "d", ARRAY, SpecificCharacterSet="ISO_IR 100", SeriesDescription="Schädel T1 KM")
    assert read_header(tmp_path / "d")[1]["SeriesDescription"] == "Schädel T1 KM"


def test_several_series_in_a_folder_are_listed_and_one_can_be_chosen(tmp_path, write_dicom_series):
    first = write_dicom_series(tmp_path / "d", ARRAY, SeriesDescription="T1")
    second = write_dicom_series(tmp_path / "d", ARRAY[::-1], SeriesDescription="FLAIR")
    with pytest.raises(InputError, match=r"2 DICOM series") as refused:
        read_volume(tmp_path / "d")
    assert f"{first} (T1)" in str(refused.value) and f"{second} (FLAIR)" in str(refused.value)
    np.testing.assert_array_equal(read_volume(tmp_path / "d", series_uid=second).array, ARRAY[::-1])
    with pytest.raises(InputError, match=r"no DICOM series 1\.2\.9"):
        read_volume(tmp_path / "d", series_uid="1.2.9")


@pytest.mark.parametrize(
    ("depths", "sentence"),
    [
        ([*range(10), *range(11, 18)], "uneven slice distances"),
        ([*range(9), *range(8)], "several slices at one position"),
    ],
    ids=["a slice is missing", "two echoes"],
)
def test_slices_that_are_no_regular_stack_are_refused(tmp_path, write_dicom_series, depths, sentence):
    write_dicom_series(tmp_path / "d", ARRAY, depths=depths)
    with pytest.raises(GeometryError, match=sentence):
        read_volume(tmp_path / "d")


def test_tilted_slices_and_mixed_orientations_are_refused(tmp_path, write_dicom_series):
    tilted = [[0.0, 0.3 * k, 2.0 * k] for k in range(17)]
    write_dicom_series(tmp_path / "tilted", ARRAY, ImagePositionPatient=tilted)
    with pytest.raises(GeometryError, match="sheared"):
        read_volume(tmp_path / "tilted")
    turned = [[1, 0, 0, 0, 1, 0]] * 16 + [[1, 0, 0, 0, 0, 1]]
    write_dicom_series(tmp_path / "turned", ARRAY, ImageOrientationPatient=turned)
    with pytest.raises(GeometryError, match="different orientations"):
        read_volume(tmp_path / "turned")


def test_folders_without_a_volume_and_single_slices_are_refused(tmp_path, write_dicom_series):
    with pytest.raises(InputError, match="no DICOM series"):
        read_volume(tmp_path)
    write_dicom_series(tmp_path / "d", ARRAY[:, :, :1])
    with pytest.raises(InputError, match="single 2D slice"):
        read_volume(tmp_path / "d")
    file = next((tmp_path / "d").iterdir())
    with pytest.raises(InputError, match="name the folder of the series"):
        read_volume(file)


def test_a_series_with_a_truncated_slice_is_refused(tmp_path, write_dicom_series):
    write_dicom_series(tmp_path / "d", ARRAY)
    file = sorted((tmp_path / "d").iterdir())[5]
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "d"))):
        read_volume(tmp_path / "d")
