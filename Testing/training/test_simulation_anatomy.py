"""Anatomies: made-up heads, nilearn's maps and label files."""

import nibabel
import numpy as np
import pytest

from MissingModalitySynthLib.errors import InputError
from training.simulation.anatomy import DISTANCE_STEP, mni_anatomy, procedural_head, synthseg_anatomy
from training.simulation.tissues import CLASS


def shares(anatomy):
    counts = np.bincount(anatomy.labels.numpy().ravel(), minlength=len(CLASS))
    return {name: counts[index] for name, index in CLASS.items()}


def write_labels(path, array, affine):
    nibabel.save(nibabel.Nifti1Image(array.astype(np.int32), affine), path)
    return path


def small_head():
    """A block of a left and a right half in RAS order: skin, bone, fluid, cortex and white matter."""
    head = np.zeros((60, 64, 56), int)
    for margin, number in ((6, 511), (9, 507), (14, 515), (16, 24)):
        head[margin:-margin, margin:-margin, margin:-margin] = number
    for margin, left, right in ((18, 3, 42), (21, 2, 41)):
        head[margin:30, margin:-margin, margin:-margin] = left
        head[30:-margin, margin:-margin, margin:-margin] = right
    head[26:34, 26:36, 24:32] = 4
    head[22:26, 28:34, 24:28] = 10  # a thalamus on the left side alone, marks the orientation
    return head


def test_a_made_up_head_holds_the_main_tissues():
    found = shares(procedural_head((96, 112, 96), seed=1))
    for tissue in ("white matter", "cortex", "ventricular CSF", "subarachnoid CSF", "thalamus", "cortical bone", "fat"):
        assert found[tissue] > 100, tissue
    assert found["cortex"] < 3 * found["white matter"]


@pytest.fixture(scope="module")
def average():
    return mni_anatomy()


def test_nilearns_average_has_the_volumes_of_an_adult_brain(average):
    found = shares(average)
    assert 350_000 < found["white matter"] < 900_000  # in mm^3
    assert 600_000 < found["cortex"] < 1_300_000
    assert 5_000 < found["ventricular CSF"] < 80_000
    for nucleus, low, high in (("thalamus", 6, 20), ("caudate", 4, 14), ("putamen", 5, 16), ("pallidum", 1, 5)):
        assert low * 1000 < found[nucleus] < high * 1000, nucleus


def test_the_average_keeps_fluid_in_its_sulci(average):
    brain = average.brain_distance < 128 - 2 * DISTANCE_STEP
    fluid = (average.labels == CLASS["subarachnoid CSF"]) & brain
    assert 0.01 < fluid.sum() / brain.sum() < 0.15


def test_lesions_beside_the_cortex_start_in_white_matter_that_touches_it():
    anatomy = procedural_head((96, 112, 96), seed=1)
    labels = np.pad(anatomy.labels.numpy(), 1)
    for i, j, k in anatomy.juxtacortical.numpy()[::40].astype(int) + 1:
        assert labels[i, j, k] == CLASS["white matter"]
        assert (labels[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] == CLASS["cortex"]).any()


@pytest.mark.parametrize("axes", ["RAS", "LIA", "SPL"])
def test_label_files_are_brought_to_ras_whatever_their_orientation(tmp_path, axes):
    head = small_head()
    image = nibabel.Nifti1Image(head.astype(np.int32), np.eye(4))
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
        )
    )
    nibabel.save(turned, tmp_path / "head.nii.gz")
    labels = synthseg_anatomy(tmp_path / "head.nii.gz").labels.numpy()
    expected = np.argwhere(head == 10).mean(0) - (np.argwhere(head > 0).min(0) - 2)
    np.testing.assert_allclose(np.argwhere(labels == CLASS["thalamus"]).mean(0), expected)


def test_specks_outside_the_head_are_removed(tmp_path):
    head = small_head()
    head[1:3, 1:3, 1:3] = 24
    labels = synthseg_anatomy(write_labels(tmp_path / "head.nii", head, np.eye(4))).labels
    assert labels.shape == tuple(n - 12 + 4 for n in head.shape)


def test_the_brain_distance_is_negative_inside_and_grows_outwards(tmp_path):
    anatomy = synthseg_anatomy(write_labels(tmp_path / "head.nii", small_head(), np.eye(4)))
    distance = (anatomy.brain_distance.numpy().astype(float) - 128) / DISTANCE_STEP
    middle = [n // 2 for n in distance.shape]
    profile = distance[:, middle[1], middle[2]]
    assert profile[middle[0]] < -4
    brain = np.flatnonzero(np.isin(anatomy.labels[:, middle[1], middle[2]], (CLASS["cortex"], CLASS["white matter"])))
    for step in range(5):
        assert profile[brain[0] - step] == pytest.approx(step, abs=2)  # the hull is smoothed at 2 mm


def test_unusable_label_files_are_named(tmp_path):
    (tmp_path / "broken.nii").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.nii"):
        synthseg_anatomy(tmp_path / "broken.nii")
    with pytest.raises(InputError, match="1 mm"):
        synthseg_anatomy(write_labels(tmp_path / "coarse.nii", small_head(), np.diag([2, 2, 2, 1.0])))
    with pytest.raises(InputError, match="no brain"):
        synthseg_anatomy(write_labels(tmp_path / "empty.nii", np.full((20, 20, 20), 511), np.eye(4)))
    with pytest.raises(InputError, match=r"missing\.nii"):
        synthseg_anatomy(tmp_path / "missing.nii")
