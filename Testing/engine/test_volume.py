import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from MissingModalitySynthLib.errors import GeometryError, InputError
from MissingModalitySynthLib.volume import Geometry, Volume, check_usable, from_sitk, to_sitk

SIZES = st.integers(1, 6)
LENGTHS = st.floats(0.2, 8)
PLACES = st.floats(-300, 300)
ANGLES = st.tuples(*[st.floats(-180, 180)] * 3)


@st.composite
def geometries(draw):
    """Any grid: rotated, anisotropic, with flipped (left-handed) and permuted axes."""
    direction = Rotation.from_euler("xyz", draw(ANGLES), degrees=True).as_matrix()
    direction = direction[:, draw(st.permutations(range(3)))] * draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    size, spacing, origin = (draw(st.tuples(each, each, each)) for each in (SIZES, LENGTHS, PLACES))
    return Geometry(size, spacing, origin, direction)


def usable_array(shape=(16, 17, 18)):
    return np.random.default_rng(0).random(shape, dtype=np.float32)


@given(geometries())
@settings(max_examples=50, deadline=None)
def test_world_positions_are_those_of_itk(geometry):
    image = to_sitk(Volume(np.zeros(geometry.size, np.float32), geometry))
    index = (2.25, -1.5, 4.0)
    world = geometry.index_to_world(index)
    np.testing.assert_allclose(world, image.TransformContinuousIndexToPhysicalPoint(index), atol=1e-9)
    np.testing.assert_allclose(geometry.world_to_index(world), index, atol=1e-9)
    np.testing.assert_allclose(geometry.affine @ (*index, 1), (*world, 1), atol=1e-9)


@given(geometries(), st.sampled_from([np.int16, np.uint8, np.float32, np.float64, np.int32]))
@settings(max_examples=50, deadline=None)
def test_a_volume_survives_simpleitk_whatever_its_grid_and_type(geometry, dtype):
    array = np.random.default_rng(1).integers(0, 200, geometry.size).astype(dtype)
    again = from_sitk(to_sitk(Volume(array, geometry)), "again")
    assert again.geometry == geometry
    assert again.array.dtype == np.float32
    np.testing.assert_array_equal(again.array, array)


def test_the_first_array_axis_is_the_first_image_axis():
    image = sitk.Image(4, 5, 6, sitk.sitkInt16)
    image[3, 1, 2] = 7
    assert from_sitk(image).array[3, 1, 2] == 7


def test_the_affine_is_that_of_nifti_with_the_world_turned_from_lps_to_ras(tmp_path):
    geometry = Geometry((16, 17, 18), (1, 2, 3), (5, -6, 7), Rotation.from_euler("xyz", (10, 20, 30), True).as_matrix())
    sitk.WriteImage(to_sitk(Volume(usable_array(), geometry)), str(tmp_path / "x.nii"))
    ras = nibabel.load(tmp_path / "x.nii").affine
    np.testing.assert_allclose(np.diag((-1, -1, 1, 1)) @ geometry.affine, ras, atol=1e-5)


def test_cosines_that_are_zero_but_for_rounding_do_not_mislead_itk():
    tiny = [[-0.8910065241883678, 4e-311, -0.4539904997395469], [-3e-311, -1, -2e-311], [0, 0, 0]]
    tiny[2] = [0.4539904997395469, 9.9e-324, -0.8910065241883678]
    geometry = Geometry((16, 17, 18), (1, 1, 2), (0, 0, 0), tiny)
    image = to_sitk(Volume(usable_array(), geometry))
    np.testing.assert_allclose(
        image.TransformPhysicalPointToContinuousIndex((3, 4, 5)), geometry.world_to_index((3, 4, 5))
    )


def test_corners_are_the_outer_edges_of_the_field_of_view():
    corners = Geometry((10, 20, 30), (1, 2, 3), (0.5, 1, 1.5)).corners
    np.testing.assert_allclose(corners.min(axis=0), (0, 0, 0), atol=1e-12)
    np.testing.assert_allclose(corners.max(axis=0), (10, 40, 90), atol=1e-12)
    assert corners.shape == (8, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"size": (4, 5, 7)},
        {"spacing": (1, 1, 1.001)},
        {"origin": (0, 0, 0.001)},
        {"direction": Rotation.from_euler("x", 0.01, degrees=True).as_matrix()},
    ],
)
def test_grids_match_only_if_everything_agrees(change):
    plain = {"size": (4, 5, 6), "spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": np.eye(3)}
    assert Geometry(**plain).matches(Geometry(**plain))
    assert not Geometry(**plain).matches(Geometry(**(plain | change)))
    assert Geometry(**plain).matches(Geometry(**(plain | change)), tol=0.01) == ("size" not in change)


def test_float32_keeps_a_grid_that_matches():
    geometry = Geometry((4, 5, 6), (0.4297, 1.1, 5.2), (-123.456789, 98.7654321, 250.1))
    assert Geometry(geometry.size, np.float32(geometry.spacing), np.float32(geometry.origin)).matches(geometry)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1, float("nan")), (float("inf"), 1, 1)])
def test_a_spacing_that_is_not_positive_is_refused(spacing):
    with pytest.raises(GeometryError, match="not positive"):
        Geometry((4, 4, 4), spacing)


@pytest.mark.parametrize(
    "direction",
    [np.zeros((3, 3)), np.diag((1, 1, 2)), [[1, 0.1, 0], [0, 1, 0], [0, 0, 1]], np.full((3, 3), np.nan)],
)
def test_a_direction_that_is_not_orthonormal_is_refused(direction):
    with pytest.raises(GeometryError, match="not orthonormal"):
        Geometry((4, 4, 4), direction=direction)


def test_other_impossible_grids_are_refused():
    with pytest.raises(GeometryError, match="three axes"):
        Geometry((4, 4), (1, 1), (0, 0), np.eye(2))
    with pytest.raises(GeometryError, match="size"):
        Geometry((4, 4, 0))
    with pytest.raises(GeometryError, match="origin"):
        Geometry((4, 4, 4), origin=(0, 0, float("nan")))
    with pytest.raises(GeometryError, match=r"'x'.*\(4, 4, 4\).*\(4, 4, 5\)"):
        Volume(np.zeros((4, 4, 4)), Geometry((4, 4, 5)), "x")


def test_a_usable_volume_is_accepted_at_both_limits_of_size():
    check_usable(Volume(usable_array((16, 16, 512)), Geometry((16, 16, 512))))


@pytest.mark.parametrize("shape", [(15, 32, 32), (32, 513, 16), (1, 20, 20)])
def test_an_axis_that_is_too_short_or_too_long_is_refused(shape):
    with pytest.raises(GeometryError, match=r"'scan'.*outside 16 to 512"):
        check_usable(Volume(usable_array(shape), Geometry(shape), "scan"))


def test_voxels_that_are_not_finite_are_counted_and_refused():
    array = usable_array()
    array[3, 4, 5], array[6, 7, 8], array[0, 0, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(InputError, match="'scan' has 3 voxels that are NaN or infinite"):
        check_usable(Volume(array, Geometry(array.shape), "scan"))


def test_values_beyond_float32_count_as_infinite():
    array = np.zeros((16, 16, 16))
    array[1, 2, 3] = 1e300
    with pytest.raises(InputError, match="1 voxels"):
        check_usable(from_sitk(sitk.GetImageFromArray(array), "scan"))


def test_a_constant_volume_is_refused():
    with pytest.raises(InputError, match="'scan' is constant: every voxel is 42"):
        check_usable(Volume(np.full((16, 16, 16), 42, np.float32), Geometry((16, 16, 16)), "scan"))
