"""Rigid registration recovers known motion, and what it moves stays the same voxels."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from MissingModalitySynthLib.canonical import resample_to
from MissingModalitySynthLib.errors import GeometryError, InputError
from MissingModalitySynthLib.volume import Geometry, Volume, to_sitk
from training.data.registration import cached_transform, moved, rigid_transform

FIXED = Geometry((32, 40, 36), (1.8, 1.8, 1.8), (-29.0, -36.0, -32.0))
MOVING = Geometry((36, 30, 40), (1.7, 2.4, 1.6), (-30.0, 36.0, -31.0), ((1, 0, 0), (0, -1, 0), (0, 0, 1)))
ROTATION = Rotation.from_euler("xyz", (4.0, -3.0, 5.0), degrees=True).as_matrix()
SHIFT = np.array((4.0, -3.0, 5.0))


@pytest.fixture(scope="module")
def fixed(scan):
    return scan("T1", FIXED)


@pytest.fixture(scope="module")
def moving(scan):
    return scan("T2", MOVING, ROTATION, SHIFT)


@pytest.fixture(scope="module")
def transform(fixed, moving):
    return rigid_transform(fixed, moving, iterations=80)


def deviation(transform, rotation, shift):
    """Angle in degrees and displacement of the head's centre in mm between a transform and the true motion."""
    found = np.reshape(transform.GetMatrix(), (3, 3))
    angle = np.rad2deg(Rotation.from_matrix(found @ rotation.T).magnitude())
    return angle, np.linalg.norm(np.array(transform.TransformPoint((0.0, 0.0, 0.0))) - shift)


def test_a_known_motion_between_contrasts_is_recovered(transform):
    angle, distance = deviation(transform, ROTATION, SHIFT)
    assert angle < 0.5
    assert distance < 0.5


def test_a_moved_volume_is_where_the_head_was_without_the_motion(scan, moving):
    """With the true motion: against the closed form, sampled at the world positions of the moved grid."""
    true = sitk.Euler3DTransform()
    true.SetMatrix(ROTATION.ravel().tolist())
    true.SetTranslation(SHIFT.tolist())
    back = moved(moving, true)
    np.testing.assert_array_equal(back.array, moving.array)
    np.testing.assert_allclose(scan("T2", back.geometry).array, moving.array, atol=0.5)


def test_moving_the_grid_equals_resampling_through_the_transform(fixed, moving, transform):
    through = sitk.Resample(to_sitk(moving), to_sitk(fixed), transform, sitk.sitkBSpline, 0.0)
    ours = resample_to(moved(moving, transform), fixed.geometry, background=0.0)
    np.testing.assert_allclose(ours.array, np.clip(sitk.GetArrayFromImage(through).T, 0, moving.array.max()), atol=2.0)


def test_heads_far_apart_are_brought_together_from_their_centres(scan, fixed):
    away = np.array((150.0, 40.0, -60.0))
    geometry = Geometry(MOVING.size, MOVING.spacing, np.add(MOVING.origin, away), MOVING.direction)
    transform = rigid_transform(fixed, scan("T2", geometry, np.eye(3), away), iterations=60)
    angle, distance = deviation(transform, np.eye(3), away)
    assert angle < 0.5
    assert distance < 0.5


def test_the_same_seed_gives_the_same_transform(fixed, moving):
    one, two = (rigid_transform(fixed, moving, iterations=5, seed=7) for _ in range(2))
    np.testing.assert_allclose(one.GetParameters(), two.GetParameters(), atol=1e-6)


def test_transforms_are_kept_as_text_and_not_computed_again(tmp_path, fixed, moving, monkeypatch):
    path = tmp_path / "transforms" / "a.tfm"
    first = cached_transform(fixed, moving, path, iterations=5)
    assert path.read_text().startswith("#Insight Transform File")
    assert [file.name for file in path.parent.iterdir()] == ["a.tfm"]
    monkeypatch.setattr("training.data.registration.rigid_transform", None)
    again = cached_transform(fixed, moving, path)
    assert again.GetParameters() == first.GetParameters()
    assert again.GetFixedParameters() == first.GetFixedParameters()
    path.write_text("nonsense")
    with pytest.raises(InputError, match=r"a\.tfm' is no rigid transform any more: delete it"):
        cached_transform(fixed, moving, path)


def test_volumes_that_do_not_show_one_head_are_refused_by_name(fixed):
    noise = np.random.default_rng(0).random((20, 20, 20), dtype=np.float32)
    small = Volume(noise, Geometry((20, 20, 20), (0.1, 0.1, 0.1), (900.0, 0, 0)), "IXI-T2")
    with pytest.raises(GeometryError, match="IXI-T2"):
        rigid_transform(fixed, small, iterations=3)
