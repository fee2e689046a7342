"""Finding subjects in the layouts of the field."""

import pytest

from MissingModalitySynthLib.errors import InputError
from training.data.readers import find_subjects
from training.data.subjects import patient_of

CONTRASTS_2023 = {"t1n": "T1", "t1c": "T1ce", "t2w": "T2", "t2f": "FLAIR", "seg": "segmentation"}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(files, root):
    return {contrast: path.relative_to(root).as_posix() for contrast, path in files.items()}


def test_brats_2021_is_found_with_all_contrasts_and_the_segmentation(tmp_path, said):
    for subject in ("BraTS2021_00000", "BraTS2021_00002"):
        touch(tmp_path, *(f"{subject}/{subject}_{end}.nii.gz" for end in ("t1", "t1ce", "t2", "flair", "seg")))
    touch(tmp_path, "BraTS2021_00000/._BraTS2021_00000_t1.nii.gz", "BraTS2021_00000/.DS_Store")
    (tmp_path / "BraTS2021_00000" / "unpacked_t1.nii").mkdir()
    first, second = find_subjects(tmp_path, report=said.report)
    assert (first.name, second.name) == ("BraTS2021_00000", "BraTS2021_00002")
    folder = "BraTS2021_00000/BraTS2021_00000"
    assert names(first.files, tmp_path) == {
        "T1": f"{folder}_t1.nii.gz",
        "T1ce": f"{folder}_t1ce.nii.gz",
        "T2": f"{folder}_t2.nii.gz",
        "FLAIR": f"{folder}_flair.nii.gz",
    }
    assert first.segmentation == tmp_path / f"{folder}_seg.nii.gz"
    assert "layout brats, 2 subjects of 2 patients" in said.lines[0]


def test_brats_2023_time_points_are_subjects_of_one_patient(tmp_path, said):
    root = tmp_path / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"
    for subject in ("BraTS-GLI-00008-000", "BraTS-GLI-00008-001", "BraTS-GLI-00009-000"):
        touch(root, *(f"{subject}/{subject}-{end}.nii.gz" for end in CONTRASTS_2023))
    subjects = find_subjects(tmp_path, report=said.report)
    assert [subject.patient for subject in subjects] == ["BraTS-GLI-00008", "BraTS-GLI-00008", "BraTS-GLI-00009"]
    found = {"segmentation": subjects[1].segmentation, **subjects[1].files}
    assert {contrast: path.name for contrast, path in found.items()} == {
        contrast: f"BraTS-GLI-00008-001-{end}.nii.gz" for end, contrast in CONTRASTS_2023.items()
    }
    assert "layout brats, 3 subjects of 2 patients" in said.lines[0]


def test_ixi_is_found_across_its_folders_without_angiography_and_diffusion(tmp_path, said):
    for end in ("T1", "T2", "PD", "MRA"):
        touch(tmp_path / f"IXI-{end}", f"IXI002-Guys-0828-{end}.nii.gz", f"IXI012-HH-1211-{end}.nii.gz")
    touch(tmp_path / "IXI-DTI", "IXI002-Guys-0828-DTI-00.nii.gz")
    (tmp_path / "IXI-PD/IXI012-HH-1211-PD.nii.gz").unlink()
    first, second = find_subjects(tmp_path, report=said.report)
    assert (first.name, first.patient) == ("IXI002-Guys-0828", "IXI002")
    assert names(first.files, tmp_path)["PD"] == "IXI-PD/IXI002-Guys-0828-PD.nii.gz"
    assert (list(first.files), list(second.files)) == (["T1", "T2", "PD"], ["T1", "T2"])
    assert "layout ixi" in said.lines[0]


def test_bids_sessions_runs_contrast_agent_and_lesion_masks_are_understood(tmp_path, said):
    touch(
        tmp_path,
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_ce-gadolinium_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_run-02_FLAIR.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_run-01_FLAIR.nii.gz",
        "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_PDw.nii.gz",
        "derivatives/lesions/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz",
        "derivatives/fmriprep/sub-02/anat/sub-02_desc-preproc_T1w.nii.gz",
        "derivatives/fmriprep/sub-03/anat/sub-03_desc-preproc_T1w.nii.gz",
    )
    one, two, other = find_subjects(tmp_path, report=said.report)
    assert (one.name, two.name, other.name) == ("sub-01_ses-1", "sub-01_ses-2", "sub-02")
    assert (one.patient, two.patient, other.patient) == ("sub-01", "sub-01", "sub-02")
    assert {contrast: path.name for contrast, path in one.files.items()} == {
        "T1": "sub-01_ses-1_T1w.nii.gz",
        "T1ce": "sub-01_ses-1_ce-gadolinium_T1w.nii.gz",
        "FLAIR": "sub-01_ses-1_run-01_FLAIR.nii.gz",
    }
    assert one.segmentation.name == "sub-01_ses-1_label-lesion_mask.nii.gz"
    assert two.segmentation is None
    assert names(other.files, tmp_path) == {
        "T1": "sub-02/anat/sub-02_T1w.nii.gz",
        "PD": "sub-02/anat/sub-02_PDw.nii.gz",
    }
    assert "layout bids" in said.lines[0]


def test_plain_folders_are_subjects_and_contrasts_are_guessed(tmp_path, said):
    touch(tmp_path, "anna/nifti/ax_t2_tse.nii.gz", "anna/T1 post Gd.nrrd", "anna/tumor_seg.nii.gz", "anna/adc.nii.gz")
    touch(tmp_path, "tumor07/tumor07_t1.mha", "tumor07/tumor07_flair.mha", "T1_alone.nii.gz")
    anna, other = find_subjects(tmp_path, report=said.report)
    assert names(anna.files, tmp_path) == {"T1ce": "anna/T1 post Gd.nrrd", "T2": "anna/nifti/ax_t2_tse.nii.gz"}
    assert anna.segmentation == tmp_path / "anna/tumor_seg.nii.gz"
    assert names(other.files, tmp_path) == {"T1": "tumor07/tumor07_t1.mha", "FLAIR": "tumor07/tumor07_flair.mha"}
    assert "layout folders, 2 subjects" in said.lines[0]


def test_linked_folders_are_followed_once_and_not_in_circles(tmp_path, said):
    touch(tmp_path, "archive/anna/t1.nii.gz", "archive/anna/flair.nii.gz", "archive/bert/t1.nii.gz")
    (tmp_path / "chosen").mkdir()
    for name in ("anna", "anna-again"):
        (tmp_path / "chosen" / name).symlink_to(tmp_path / "archive/anna", target_is_directory=True)
    (tmp_path / "archive/anna/up").symlink_to(tmp_path / "chosen", target_is_directory=True)
    (found,) = find_subjects(tmp_path / "chosen", report=said.report)
    assert (found.name, set(found.files)) == ("anna", {"T1", "FLAIR"})


def test_csv_names_columns_by_any_alias_and_paths_from_its_own_folder(tmp_path, said):
    table = tmp_path / "table.csv"
    table.write_text(
        "subject,t1w,T1-Gd,segmentation,patient\nb,b/1.nii,,,P\na,x.nii, y.nii ,s.nii,P\n", encoding="utf-8-sig"
    )
    a, b = find_subjects(table, report=said.report)
    assert a.files == {"T1": tmp_path / "x.nii", "T1ce": tmp_path / "y.nii"}
    assert a.segmentation == tmp_path / "s.nii"
    assert b.files == {"T1": tmp_path / "b/1.nii"}
    assert (b.segmentation, a.patient, b.patient) == (None, "P", "P")
    assert "layout csv, 2 subjects of 1 patients (T1 2, T1ce 1, segmentation 1)" in said.lines[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no subjects"),
        ("subject,T1\n", "holds no subjects"),
        ("name,T1\na,b.nii\n", "no column 'subject'"),
        ("subject,T1,age\na,b.nii,40\n", "'age' is not a known contrast"),
        ("subject,T1,t1w\na,b.nii,c.nii\n", "two columns for T1"),
        ("subject,T1\na,b.nii\na,c.nii\n", "two rows for subject 'a'"),
        ("subject,T1\n,b.nii\n", "a row without subject"),
        ("subject,T1\na,b.nii,c.nii\n", "more cells than columns"),
    ],
)
def test_a_wrong_table_is_named_with_what_is_wrong(tmp_path, text, message):
    table = tmp_path / "table.csv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        find_subjects(table)
    assert "table.csv" in str(caught.value) or "age" in text


def test_a_folder_without_subjects_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "T1.nii.gz", "notes.txt", "sub/readme.md")
    with pytest.raises(InputError, match=r"No subjects were found in .*brats: .*ixi: IXI002.*bids: sub-01.*folders: "):
        find_subjects(tmp_path)
    with pytest.raises(InputError, match="looked for ixi: ") as caught:
        find_subjects(tmp_path, layout="ixi")
    assert "bids" not in str(caught.value)


def test_unknown_layouts_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(
        InputError, match="'nnunet' is no layout of data: use one of auto, brats, ixi, bids, folders, csv"
    ):
        find_subjects(tmp_path, layout="nnunet")
    with pytest.raises(InputError, match="nowhere' does not exist"):
        find_subjects(tmp_path / "nowhere")


def test_two_files_for_one_contrast_are_refused_by_name(tmp_path):
    touch(tmp_path, "anna/t1_raw.nii.gz", "anna/t1_brain.nii.gz", "anna/t2.nii.gz")
    with pytest.raises(InputError, match=r"'anna' has two files for its T1, .*t1_brain.* and .*t1_raw"):
        find_subjects(tmp_path)
    touch(tmp_path / "bids", "sub-1/anat/sub-1_acq-a_T2w.nii.gz", "sub-1/anat/sub-1_acq-b_T2w.nii.gz")
    with pytest.raises(InputError, match="'sub-1' has two files for its T2"):
        find_subjects(tmp_path / "bids")


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("BraTS-GLI-00008-001", "BraTS-GLI-00008"),
        ("BraTS-MEN-RT-0012-1", "BraTS-MEN-RT-0012"),
        ("BraTS2021_00008", "BraTS2021_00008"),
        ("IXI002-Guys-0828", "IXI002"),
        ("sub-01_ses-2", "sub-01"),
        ("sub-01", "sub-01"),
        ("anna-02", "anna-02"),
    ],
)
def test_patients_are_told_from_names(name, patient):
    assert patient_of(name) == patient


def test_real_scans_of_three_namings_are_found_as_plain_folders(real_data, said):
    subjects = find_subjects(real_data / "subjects", report=said.report)
    assert [subject.name for subject in subjects] == ["brats-gli-00001", "open-ms-07", "open-ms-26", "tcga-du-7294"]
    assert all(list(subject.files) == ["T1", "T1ce", "T2", "FLAIR"] for subject in subjects)
    assert [subject.segmentation is not None for subject in subjects] == [False, True, True, True]
