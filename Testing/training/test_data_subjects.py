"""Checks that name the broken subject, and splits by patient."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from MissingModalitySynthLib.errors import InputError, OutputError
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import write_volume
from training.data.readers import find_subjects
from training.data.splits import split_subjects
from training.data.subjects import Subject, check_subjects, usable_subjects

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}


@pytest.fixture
def three(data_set, said):
    """Three sound subjects in plain folders, T1 and T2 each, the first with a segmentation."""
    files = {f"{name}/{contrast}.nii.gz": contrast for name in "abc" for contrast in ("T1", "T2")}
    root = data_set(files | {"a/seg.nii.gz": "segmentation"})
    return root, find_subjects(root, report=said.report)


def test_sound_subjects_have_no_problems(three):
    assert check_subjects(three[1], required=["T1", "T2"], voxels=True) == {}


def test_every_broken_file_is_named_with_its_subject(three):
    root, subjects = three
    (root / "a/T2.nii.gz").unlink()
    whole = (root / "b/T1.nii.gz").read_bytes()
    (root / "b/T1.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "c/T2.nii.gz").write_bytes(b"")
    problems = check_subjects(subjects)
    assert list(problems) == ["a", "b", "c"]
    for name, file, what in (("a", "T2", "does not exist"), ("b", "T1", "truncated"), ("c", "T2", "truncated")):
        assert problems[name].startswith(f"Subject '{name}' can't be read: ")
        assert f"{file}.nii.gz" in problems[name]
        assert what in problems[name]


def test_constant_volumes_are_found_when_voxels_are_read(three, scan):
    root, subjects = three
    grid = scan().geometry
    write_volume(Volume(np.zeros(grid.size, np.float32), grid), root / "b/T2.nii.gz")
    assert check_subjects(subjects) == {}
    assert "'T2' is constant" in check_subjects(subjects, voxels=True)["b"]


def test_a_subject_without_a_required_contrast_or_without_a_pair_is_broken(three):
    subjects = [*three[1], Subject("lonely", {"T1": three[1][0].files["T1"]}), Subject("nothing", {})]
    problems = check_subjects(subjects)
    assert problems == {
        "lonely": "Subject 'lonely' has only T1: training needs two contrasts or more.",
        "nothing": "Subject 'nothing' has only no contrast at all: training needs two contrasts or more.",
    }
    assert check_subjects(three[1], required=["T1", "PD"])["c"] == "Subject 'c' has no PD."


def test_other_grids_are_broken_unless_they_will_be_registered(three, scan):
    root, subjects = three
    grid = scan().geometry
    shifted = Geometry(grid.size, grid.spacing, np.add(grid.origin, (0, 0, 1.5)))
    write_volume(scan("T2", shifted), root / "b/T2.nii.gz")
    problem = check_subjects(subjects)["b"]
    assert "its T2 on another grid than its T1" in problem
    assert "from (-28.0, -34.0, -27.5) against" in problem
    assert check_subjects(subjects, register=True) == {}


def test_a_segmentation_must_lie_on_the_grid_of_the_reference(three, scan):
    root, subjects = three
    write_volume(scan("T1", Geometry((24, 28, 20), (2.5, 2.5, 2.5))), root / "a/seg.nii.gz")
    assert "its segmentation on another grid than its T1" in check_subjects(subjects, register=True)["a"]


def test_a_contrast_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match="'x' has contrasts that are not known: ADC, t1"):
        Subject("x", {"t1": tmp_path, "ADC": tmp_path})


def test_usable_subjects_stop_at_a_broken_one_or_leave_it_out(three, said):
    root, subjects = three
    (root / "a/T2.nii.gz").unlink()
    (root / "b/T2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"Subject 'a' can't be read: .* 1 further subjects are broken"):
        usable_subjects(subjects, policy="stop")
    said.lines.clear()
    assert [subject.name for subject in usable_subjects(subjects, policy="skip", report=said.report)] == ["c"]
    assert [line.split(" can't")[0] for line in said.lines[:2]] == ["Skipped: Subject 'a'", "Skipped: Subject 'b'"]
    assert said.lines[2] == "Skipped 2 of 3 subjects."
    with pytest.raises(InputError, match="None of the 2 subjects can be used"):
        usable_subjects(subjects[:2], policy="skip", report=said.report)
    with pytest.raises(InputError, match="'ignore' is no policy"):
        usable_subjects(subjects, policy="ignore")


# --- splits ---------------------------------------------------------------------------------------------------------


def examinations(patients, times=2):
    return [
        Subject(f"BraTS-GLI-{patient:05d}-{time:03d}", {})
        for patient in range(patients)
        for time in range(1 + patient % times)
    ]


@given(patients=st.integers(5, 60), seed=st.integers(0, 2**40))
def test_no_patient_is_ever_in_two_splits_and_every_subject_is_in_one(tmp_path_factory, patients, seed):
    subjects = examinations(patients, times=3)
    splits = split_subjects(subjects, FRACTIONS, seed, tmp_path_factory.mktemp("splits") / "splits.json")
    where = [{subject.patient for subject in split} for split in splits.values()]
    assert sum(map(len, where)) == len(set.union(*where)) == patients
    assert sorted(subject.name for split in splits.values() for subject in split) == [s.name for s in subjects]
    for share, members in zip(FRACTIONS.values(), where, strict=True):
        assert abs(len(members) - share * patients) <= 1


def test_splits_depend_on_the_seed_alone_and_not_on_the_order(tmp_path):
    subjects = examinations(40)
    shuffled = random.Random(1).sample(subjects, len(subjects))
    one = split_subjects(subjects, FRACTIONS, 3, tmp_path / "one.json")
    assert split_subjects(shuffled, FRACTIONS, 3, tmp_path / "two.json") == one
    assert split_subjects(subjects, FRACTIONS, 4, tmp_path / "three.json") != one


def test_splits_are_read_back_from_the_file(tmp_path):
    subjects, path = examinations(10), tmp_path / "new" / "splits.json"
    first = split_subjects(subjects, FRACTIONS, 0, path)
    record = json.loads(path.read_text())
    assert list(record["splits"]["test"]) == [subject.name for subject in first["test"]]
    record["splits"]["train"] |= record["splits"].pop("validation")
    record["splits"]["validation"] = {}
    path.write_text(json.dumps(record))
    assert len(split_subjects(subjects, FRACTIONS, 0, path)["train"]) == len(first["train"]) + len(first["validation"])


def test_splits_for_other_subjects_fractions_or_seeds_are_refused(tmp_path):
    subjects, path = examinations(10, times=1), tmp_path / "splits.json"
    split_subjects(subjects, FRACTIONS, 0, path)
    before = path.read_bytes()
    changed = [*subjects[1:], Subject("new", {})]
    with pytest.raises(InputError, match=r"1 missing now \(BraTS-GLI-00000-000\); 1 new \(new\)"):
        split_subjects(changed, FRACTIONS, 0, path)
    with pytest.raises(InputError, match="1 of another patient now"):
        split_subjects([Subject(subjects[0].name, {}, patient="x"), *subjects[1:]], FRACTIONS, 0, path)
    with pytest.raises(InputError, match="made with seed 0"):
        split_subjects(subjects, FRACTIONS, 1, path)
    with pytest.raises(InputError, match="keep those, or name another file"):
        split_subjects(subjects, {"train": 0.5, "test": 0.5}, 0, path)
    assert path.read_bytes() == before


def test_a_file_with_a_patient_in_two_splits_is_refused(tmp_path):
    subjects, path = examinations(10), tmp_path / "splits.json"
    split_subjects(subjects, FRACTIONS, 0, path)
    record = json.loads(path.read_text())
    splits = record["splits"]
    moved = next(name for name in splits["train"] if name.endswith("-001"))
    splits["test"][moved] = splits["train"].pop(moved)
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="has a subject or patient in two splits"):
        split_subjects(subjects, FRACTIONS, 0, path)


def test_a_split_may_have_no_share_so_that_all_are_trained_on(tmp_path):
    splits = split_subjects(examinations(3, times=1), {"train": 1.0, "test": 0.0}, 0, tmp_path / "splits.json")
    assert [len(members) for members in splits.values()] == [3, 0]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"seed": 0, "fractions": {}, "splits": [1]}'])
def test_a_damaged_file_of_splits_is_refused(tmp_path, text):
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"splits\.json'"):
        split_subjects(examinations(10), FRACTIONS, 0, path)


def test_impossible_splits_are_refused_and_leave_no_file(tmp_path):
    path = tmp_path / "splits.json"
    for fractions in ({"train": 0.9, "test": 0.2}, {"train": 1.2, "test": -0.2}, {}):
        with pytest.raises(InputError, match="must be at least 0 and add up to 1"):
            split_subjects(examinations(10), fractions, 0, path)
    with pytest.raises(InputError, match="2 patients are too few"):
        split_subjects(examinations(2), FRACTIONS, 0, path)
    with pytest.raises(InputError, match="not unique"):
        split_subjects([Subject("a", {}), Subject("a", {})], FRACTIONS, 0, path)
    assert not list(tmp_path.iterdir())


def test_splits_that_can_not_be_written_say_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        split_subjects(examinations(10), FRACTIONS, 0, tmp_path / "file" / "splits.json")
