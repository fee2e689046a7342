import nibabel
import nilearn.datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from MissingModalitySynthLib.canonical import (
    canonical_grid,
    check_overlap,
    from_canonical,
    mask_to_canonical,
    resample_to,
    to_canonical,
)
from MissingModalitySynthLib.errors import GeometryError
from MissingModalitySynthLib.intensity import head_mask
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import read_volume

LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0))
ANGLES = st.tuples(*[st.floats(-180, 180)] * 3)


def rotation(*degrees):
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


@st.composite
def directions(draw):
    """Any rotation, with permuted and flipped (also left-handed) axes."""
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    return rotation(*draw(ANGLES))[:, draw(st.permutations(range(3)))] * signs


def centred(size, spacing=(1.0, 1.0, 1.0), direction=((1, 0, 0), (0, 1, 0), (0, 0, 1)), centre=(0.0, 0.0, 0.0)):
    """A grid whose field of view has its middle at a world position."""
    middle = Geometry(size, spacing, (0, 0, 0), direction).index_to_world((np.array(size) - 1) / 2)
    return Geometry(size, spacing, np.asarray(centre) - middle, direction)


def field_of_view(mm, spacing, direction=((1, 0, 0), (0, 1, 0), (0, 0, 1))):
    return centred([int(np.ceil(mm / s)) for s in spacing], spacing, direction)


def positions(geometry):
    index = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.size), indexing="ij"), axis=-1)
    return geometry.index_to_world(index)


def random_volume(geometry, seed=0):
    return Volume(np.random.default_rng(seed).random(geometry.size, dtype=np.float32) + 1, geometry, "random")


def everywhere(volume):
    return np.ones(volume.array.shape, dtype=bool)


@given(directions(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_at_the_models_spacing_the_whole_volume_becomes_what_nibabel_calls_closest_canonical(direction, seed):
    reference = random_volume(Geometry((16, 18, 20), (1, 1, 1), (5, -7, 11), direction), seed)
    grid = canonical_grid(reference, multiple=1, margin_mm=0, mask=everywhere(reference))
    ras = np.diag((-1, -1, 1, 1)) @ reference.geometry.affine
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(reference.array, ras))
    np.testing.assert_array_equal(to_canonical(reference, grid), expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(np.diag((-1, -1, 1, 1)) @ grid.geometry.affine, expected.affine, atol=1e-9)


@given(directions(), st.sampled_from([1, 8, 16]), st.floats(0, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_round_trip_at_the_models_spacing_is_exact(direction, multiple, margin, seed):
    rng = np.random.default_rng(seed)
    reference = random_volume(Geometry((20, 17, 24), (1.0005, 1, 1), (5, -7, 11), direction), seed)
    mask = np.zeros(reference.array.shape, dtype=bool)
    mask[tuple(rng.integers(0, reference.array.shape, (4, 3)).T)] = True
    grid = canonical_grid(reference, multiple=multiple, margin_mm=margin, mask=mask)
    again = from_canonical(to_canonical(reference, grid), grid)
    assert again.geometry == reference.geometry
    kept = again.array != 0
    assert kept[mask].all()
    np.testing.assert_array_equal(again.array[kept], reference.array[kept])


@given(directions(), st.tuples(*[st.floats(0.4, 6)] * 3), st.sampled_from([1, 4, 16]))
@settings(max_examples=60, deadline=None)
def test_any_grid_gives_canonical_axes_a_multiple_and_exactly_its_own_geometry_back(direction, spacing, multiple):
    reference = random_volume(centred((16, 17, 18), spacing, direction, (3, 4, 5)))
    mask = np.zeros(reference.array.shape, dtype=bool)
    mask[4:12, 5:11, 6:15] = True
    grid = canonical_grid(reference, (2, 2, 2.5), multiple, margin_mm=3, mask=mask)
    assert all(n % multiple == 0 for n in grid.geometry.size)
    np.testing.assert_allclose(grid.geometry.spacing, (2, 2, 2.5), rtol=1e-3)

    cosines = LPS_TO_RAS @ np.asarray(grid.geometry.direction)
    assert np.trace(cosines) > 0 and (np.diag(cosines) > 0).all()
    # the same three lines in space as the reference's axes
    lines = np.abs(np.asarray(grid.geometry.direction).T @ np.asarray(direction))
    np.testing.assert_allclose(np.sort(lines, axis=1), [[0, 0, 1]] * 3, atol=1e-6)

    # the box of the mask and its margin lie inside
    inside = grid.geometry.world_to_index(positions(reference.geometry)[mask])
    edge = inside.min(axis=0) - 3 / np.array(grid.geometry.spacing), inside.max(axis=0)
    assert (edge[0] > -0.51).all() and (edge[1] < np.array(grid.geometry.size) - 0.49).all()

    again = from_canonical(to_canonical(reference, grid), grid)
    assert again.geometry.matches(reference.geometry, tol=1e-6)
    assert again.array.dtype == np.float32 and np.isfinite(again.array).all()


@given(directions(), st.tuples(*[st.floats(0.5, 2.5)] * 3), st.tuples(*[st.floats(-3, 3)] * 3))
@settings(max_examples=40, deadline=None)
def test_a_linear_ramp_in_the_world_is_reproduced_wherever_the_canonical_voxels_lie(direction, spacing, gradient):
    geometry = centred((24, 24, 24), spacing, direction)
    ramp = positions(geometry) @ np.array(gradient) + 100
    reference = Volume(ramp.astype(np.float32), geometry)
    grid = canonical_grid(reference, multiple=1, margin_mm=0, mask=everywhere(reference))
    canonical = to_canonical(reference, grid)
    world = positions(grid.geometry)
    # Splines and Gaussians keep straight lines; near the border both see its mirror or its continuation.
    index = geometry.world_to_index(world)
    interior = ((index > 7) & (index < 16)).all(axis=-1)
    assert interior.any()
    np.testing.assert_allclose(canonical[interior], (world @ np.array(gradient) + 100)[interior], atol=0.05)


# Spacing (mm) and the largest root-mean-square and maximal error inside the head, as fractions of its brightest voxel.
ROUND_TRIPS = [
    ((1.0, 1.0, 1.0), 0, 0),
    ((0.9, 0.9, 1.2), 0.0001, 0.0005),
    ((2.0, 2.0, 2.0), 0.005, 0.02),
    ((0.5, 0.5, 5.0), 0.015, 0.06),
]


@pytest.mark.parametrize("direction", [np.eye(3), rotation(20, -15, 30)[:, [2, 0, 1]]], ids=["straight", "oblique"])
@pytest.mark.parametrize(("spacing", "rms", "worst"), ROUND_TRIPS, ids=["1", "0.9x0.9x1.2", "2", "0.5x0.5x5"])
def test_the_round_trip_of_a_smooth_head_stays_within_the_stated_error(smooth_head, spacing, rms, worst, direction):
    head = smooth_head(field_of_view(80, spacing, direction))
    grid = canonical_grid(head)
    again = from_canonical(to_canonical(head, grid), grid)
    assert again.geometry == head.geometry
    error = (again.array - head.array)[head_mask(head.array)] / head.array.max()
    assert np.sqrt(np.mean(error**2)) <= rms
    assert np.abs(error).max() <= worst


@pytest.mark.parametrize("spacing", [(0.9, 0.9, 1.2), (2.0, 2.0, 2.0), (0.6, 0.6, 3.0)])
def test_the_canonical_head_is_the_head_in_closed_form(smooth_head, head_signal, spacing):
    head = smooth_head(field_of_view(80, spacing, rotation(5, 10, -20)))
    grid = canonical_grid(head)
    truth = head_signal(positions(grid.geometry))
    error = to_canonical(head, grid) - truth
    assert np.sqrt(np.mean(error**2)) < 0.005 * truth.max()


def test_sources_on_other_grids_meet_on_the_canonical_grid_of_the_reference(smooth_head, head_signal):
    reference = smooth_head(field_of_view(80, (1, 1, 4), rotation(0, 0, 10)))
    fine = smooth_head(field_of_view(90, (1.2, 0.8, 0.8), rotation(15, -5, 0)[:, [1, 2, 0]]))
    grid = canonical_grid(reference)
    truth = head_signal(positions(grid.geometry))
    direct = to_canonical(fine, grid) - truth
    detour = to_canonical(resample_to(fine, reference.geometry), grid) - truth
    assert np.sqrt(np.mean(direct**2)) < 0.005 * truth.max()
    assert np.abs(direct).max() < 0.5 * np.abs(detour).max()  # by way of thick slices, detail is lost


def test_interpolation_never_leaves_the_range_of_the_volume():
    geometry = field_of_view(40, (1.7, 1.7, 1.7), rotation(3, 4, 5))
    sharp = Volume(np.where(random_volume(geometry).array > 1.5, 900, -20).astype(np.float32), geometry)
    result = resample_to(sharp, field_of_view(60, (1, 1, 1)))
    assert result.array.min() == -20 and result.array.max() == 900


def test_fine_stripes_do_not_alias_on_a_coarser_grid():
    geometry = field_of_view(64, (0.5, 1, 1))
    stripes = np.broadcast_to((np.arange(128) % 2 * 100.0)[:, None, None], geometry.size)
    coarse = resample_to(Volume(stripes.astype(np.float32), geometry), field_of_view(64, (2, 1, 1)))
    np.testing.assert_allclose(coarse.array[4:-4], 50, atol=2)


@pytest.mark.parametrize("background", [0.0, -1000.0])
def test_outside_the_volume_lies_its_background(smooth_head, background):
    head = smooth_head(field_of_view(70, (1, 1, 1)))
    stripped = Volume(np.where(head.array > 300, head.array, np.float32(background)), head.geometry)
    around = resample_to(stripped, field_of_view(110, (1.3, 1.3, 1.3)))
    corner = around.array[:8, :8, :8]
    np.testing.assert_array_equal(corner, background)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 1.1, 1.3)], ids=["copied", "interpolated"])
def test_a_mask_that_reaches_all_borders_ends_there(spacing):
    geometry = Geometry((20, 24, 17), spacing)
    mask = np.ones(geometry.size, bool)
    grid = canonical_grid(Volume(mask.astype(np.float32), geometry), (1.0, 1.0, 1.0), 32, mask=mask)
    found = mask_to_canonical(mask, geometry, grid)
    index = np.moveaxis(np.indices(found.shape), 0, -1)
    beyond = np.abs(geometry.world_to_index(grid.geometry.index_to_world(index)) - (np.asarray(geometry.size) - 1) / 2)
    beyond = (beyond - np.asarray(geometry.size) / 2).max(axis=-1)  # voxels outside of the outer edge
    assert found[beyond < -0.5].all() and not found[beyond > 0.5].any()
    assert 0.8 < found.sum() / (mask.sum() * np.prod(spacing)) < 1.2


def test_a_large_field_of_view_costs_only_the_head_in_it(smooth_head):
    head = smooth_head(field_of_view(200, (2, 2, 2)))
    grid = canonical_grid(head, margin_mm=5)
    extent = np.array(grid.geometry.size) * grid.geometry.spacing
    assert (extent <= np.array([80, 96, 96])).all()  # the head's soft edge and the margin, to the next 16


def test_resampling_a_part_equals_the_same_part_of_resampling_everything(smooth_head):
    head = smooth_head(field_of_view(100, (0.9, 1.1, 1.0), rotation(5, 6, 7)))
    whole = field_of_view(60, (1.5, 1.5, 1.5))
    part = Geometry((10, 10, 10), whole.spacing, whole.index_to_world((12, 13, 14)))
    expected = resample_to(head, whole).array[12:22, 13:23, 14:24]
    np.testing.assert_allclose(resample_to(head, part).array, expected, atol=0.5)


def test_overlapping_sources_on_other_grids_are_accepted(smooth_head):
    reference = smooth_head(field_of_view(80, (1, 1, 1)))
    oblique = smooth_head(field_of_view(90, (1.5, 1.5, 1.5), rotation(30, 20, 10)))
    slab = smooth_head(centred((60, 60, 16), centre=(0, 0, 8)))
    check_overlap([reference, oblique, slab], reference)
    check_overlap([reference], slab)


def test_sources_that_show_another_place_are_refused_by_name(smooth_head):
    reference = smooth_head(field_of_view(80, (1, 1, 1)), "patient T1")
    far = Volume(reference.array, centred(reference.geometry.size, centre=(0, 0, 300)), "other FLAIR")
    with pytest.raises(GeometryError, match="'other FLAIR' and the reference 'patient T1' share only 0 %"):
        check_overlap([reference, far], reference)


def test_heads_apart_are_refused_though_their_fields_of_view_overlap(smooth_head):
    wide = smooth_head(field_of_view(160, (2, 2, 2)), "T1")
    displaced = Volume(wide.array, centred(wide.geometry.size, wide.geometry.spacing, centre=(0, 45, 0)), "T2")
    with pytest.raises(GeometryError, match="register"):
        check_overlap([displaced], wide)


def test_the_mni_template_makes_the_round_trip_without_any_change():
    image = nilearn.datasets.load_mni152_template(resolution=1)
    affine = LPS_TO_RAS @ image.affine[:3, :3]
    array = image.get_fdata(dtype=np.float32)
    mni = Volume(array, Geometry(array.shape, (1, 1, 1), LPS_TO_RAS @ image.affine[:3, 3], affine), "MNI152")
    grid = canonical_grid(mni)
    assert all(n % 16 == 0 for n in grid.geometry.size) and np.prod(grid.geometry.size) < 160 * 208 * 177
    again = from_canonical(to_canonical(mni, grid), grid)
    assert again.geometry == mni.geometry
    mask = head_mask(array)
    np.testing.assert_array_equal(again.array[mask], array[mask])


@pytest.mark.parametrize("name", ["brats-gli-00001/BraTS-GLI-00001-000-t1n", "open-ms-07/ms07-flair-mni-brain"])
def test_real_patients_at_1_mm_make_the_round_trip_without_any_change(real_data, name):
    volume = read_volume(real_data / "subjects" / f"{name}.nii.gz")
    grid = canonical_grid(volume)
    again = from_canonical(to_canonical(volume, grid), grid)
    assert again.geometry == volume.geometry
    mask = head_mask(volume.array)
    np.testing.assert_array_equal(again.array[mask], volume.array[mask])
