import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.modality import (
    DISPLAY,
    MODALITIES,
    OTHER,
    canonical_name,
    guess_modality,
    shown_name,
    source_name,
)

NAMES = {
    "T1": [
        "BraTS-GLI-00001-000-t1n.nii.gz",
        "BraTS2021_00000_t1.nii.gz",
        "IXI002-Guys-0828-T1.nii.gz",
        "sub-01_ses-02_run-1_T1w.nii.gz",
        "sub-PD012_T1w.nii",
        "sub-01_space-FLAIR_T1w.nii.gz",
        "t1_mprage_sag_p2_iso",
        "SAG 3D T1 BRAVO",
        "AX T1 pre-contrast",
        "T1 w/o contrast",
        "T1 without gadolinium",
        "T1 C-",
        "T1_noGd",
        "3DT1",
        "brainT1.nrrd",
        "avg152T1.nii",
        "AX T1 FLAIR",
        "T1 post-op",
        "ms07-t1-mni-brain.nii.gz",
    ],
    "T1ce": [
        "BraTS-GLI-00001-000-t1c.nii.gz",
        "BraTS2021_00000_t1ce.nii.gz",
        "sub-01_ce-gadolinium_T1w.nii.gz",
        "ms07-t1ce-mni-brain.nii.gz",
        "T1 post contrast",
        "T1 + C",
        "T1+",
        "t1w+c",
        "patient_T1KS.nii.gz",
        "T1-Gd",
        "t1_mprage_sag_p2_iso_KM",
        "Sag T1 MPRAGE +C",
        "T1 post-op with contrast",
        "T1wPost",
    ],
    "T2": [
        "BraTS-GLI-00001-000-t2w.nii.gz",
        "t2_tse_tra_512",
        "Ax T2 FRFSE",
        "sub-01_T2w.nii.gz",
        "IXI002-Guys-0828-T2.nii.gz",
    ],
    "FLAIR": [
        "BraTS-GLI-00001-000-t2f.nii.gz",
        "t2_tirm_tra_dark-fluid",
        "AX T2 FLAIR FS",
        "t2_spc_da-fl_sag",
        "sub-01_FLAIR.nii.gz",
        "FLAIR post gd",
        "T2-FLAIR.mha",
        "Fluid Attenuated Inversion Recovery",
    ],
    "PD": ["IXI002-Guys-0828-PD.nii.gz", "sub-01_PDw.nii.gz", "proton density", "pd_tse_tra", "canonical_avg152PD.nii"],
    None: [
        "T1 and T2",
        "FLAIR and T2",
        "T1_T2.nii.gz",
        "PD_T2_dual",
        "sub-01_T2starw.nii.gz",
        "T2*",
        "t2_fl2d_tra_hemo",
        "sub-01_T1map.nii.gz",
        "T1 map",
        "T1rho",
        "SWI",
        "DWI_T2",
        "task-rest_bold",
        "TOF MRA",
        "t1_seg.nii.gz",
        "T1_brain_mask.nii.gz",
        "T1_brainmask2.nii.gz",
        "ms07-lesions-t2.nii.gz",
        "flair-labels.nrrd",
        "T1_synthseg.nii.gz",
        "AX T1 W/WO contrast",
        "T1 pre and post gd",
        "STIR",
        "post contrast",
        "scan.nii.gz",
        "t100.nii",
        "",
    ],
}


def test_a_source_may_be_of_another_contrast_and_a_target_may_not():
    assert source_name("Other ") == OTHER
    assert source_name("t2f") == "FLAIR"
    with pytest.raises(InputError, match=r"'SWI' is not a known contrast: use one of T1, .*, or 'other'"):
        source_name("SWI")
    with pytest.raises(InputError, match="'other' is not a known contrast"):
        canonical_name(OTHER)
    assert [shown_name(name) for name in ("PD", OTHER)] == ["PD", "unlisted contrast"]


def test_a_result_from_an_unlisted_contrast_is_known_by_its_own():
    assert guess_modality("T1 (synthetic from unlisted contrast)") == "T1"


@pytest.mark.parametrize(("name", "modality"), [(name, m) for m, names in NAMES.items() for name in names])
def test_names_of_public_data_sets_and_scanners_are_understood(name, modality):
    assert guess_modality(name) == modality


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("patient7_t1_FLAIR_synthetic.nii.gz", "FLAIR"),
        ("T2 (synthetic from T1 + FLAIR)", "T2"),
        ("t1_T1ce_synthetic", "T1ce"),
        ("t1_FLAIR_synthetic_sd.nii.gz", None),
        ("FLAIR standard deviation (synthetic from T1)", None),
    ],
)
def test_a_synthetic_volume_shows_what_was_made_and_not_what_it_was_made_from(name, modality):
    assert guess_modality(name) == modality


def test_only_the_last_part_of_a_path_counts():
    assert guess_modality("/data/T1/patient/flair.nii.gz") == "FLAIR"
    assert guess_modality(Path("T2") / "scan.nii.gz") is None
    assert guess_modality(r"C:\data\T1\x_t2.nii") == "T2"
    assert guess_modality(Path("study") / "T1") == "T1"


MPRAGE = {"ScanningSequence": r"GR\IR", "RepetitionTime": "2300", "EchoTime": "2.98", "InversionTime": "900"}
DARK_FLUID = {"ScanningSequence": r"SE\IR", "RepetitionTime": "9000", "EchoTime": "81", "InversionTime": "2500"}
SPIN_ECHO = {"ScanningSequence": "SE"}


@pytest.mark.parametrize(
    ("dicom", "modality"),
    [
        (MPRAGE, "T1"),
        (MPRAGE | {"ContrastBolusAgent": "Gadovist"}, "T1ce"),
        (MPRAGE | {"ContrastBolusAgent": "NO"}, "T1"),
        (DARK_FLUID, "FLAIR"),
        (DARK_FLUID | {"ContrastBolusAgent": "Gadovist"}, "FLAIR"),
        (DARK_FLUID | {"SeriesDescription": "t2_tirm_tra"}, "FLAIR"),
        (DARK_FLUID | {"SeriesDescription": "T1 axial"}, None),
        (SPIN_ECHO | {"RepetitionTime": "550", "EchoTime": "12"}, "T1"),
        (SPIN_ECHO | {"RepetitionTime": "4500", "EchoTime": "100"}, "T2"),
        (SPIN_ECHO | {"RepetitionTime": "3000", "EchoTime": "15"}, "PD"),
        (SPIN_ECHO | {"RepetitionTime": "1200", "EchoTime": "50"}, None),
        ({"ScanningSequence": "EP", "RepetitionTime": "5000", "EchoTime": "90"}, None),
        ({"ScanningSequence": "GR", "RepetitionTime": "22", "EchoTime": "4"}, None),
        ({"SeriesDescription": "ADC"} | SPIN_ECHO | {"RepetitionTime": "4500", "EchoTime": "100"}, None),
        ({"SeriesDescription": "brain", "ProtocolName": "t2_tse_tra"}, "T2"),
        ({"SeriesDescription": "T1 pre", "ContrastBolusAgent": "Dotarem"}, None),
        ({"SeriesDescription": "T1", "Modality": "CT"}, None),
        ({"SeriesDescription": "T1", "EchoTime": None, "RepetitionTime": "n/a"}, "T1"),
        ({}, None),
    ],
)
def test_dicom_attributes_are_understood(dicom, modality):
    assert guess_modality(dicom=dicom) == modality


def test_name_and_dicom_must_not_contradict_each_other():
    assert guess_modality("scan.dcm", MPRAGE) == "T1"
    assert guess_modality("x_T1.nii", MPRAGE) == "T1"
    assert guess_modality("x_T2.nii", MPRAGE) is None


@pytest.mark.parametrize(
    ("alias", "modality"),
    [
        *((name, name) for name in MODALITIES),
        ("t1", "T1"),
        ("T1W", "T1"),
        ("T1-Gd", "T1ce"),
        ("t1+c", "T1ce"),
        ("T1+", "T1ce"),
        ("T1KS", "T1ce"),
        ("t2f", "FLAIR"),
        ("T2 FLAIR", "FLAIR"),
        ("PDw", "PD"),
        ("proton density", "PD"),
    ],
)
def test_aliases_become_canonical_names(alias, modality):
    assert canonical_name(alias) == modality


@pytest.mark.parametrize("alias", ["", "banana", "T3", "my T2 scan", "CT", "T1 T2", "T2*"])
def test_an_unknown_contrast_is_refused_with_the_known_ones_listed(alias):
    with pytest.raises(InputError, match="T1, T1ce, T2, FLAIR, PD"):
        canonical_name(alias)


@given(st.text(max_size=60))
def test_any_text_gives_a_known_contrast_or_none(text):
    assert guess_modality(text) in (*MODALITIES, None)


@given(st.lists(st.sampled_from(["t1", "t2", "pd", "x", "sag"]), max_size=5))
def test_a_guess_never_chooses_between_two_contrasts(words):
    named = {word.upper() for word in words} & set(MODALITIES)
    assert guess_modality("_".join(words)) == (named.pop() if len(named) == 1 else None)


def test_every_contrast_has_display_defaults():
    assert set(DISPLAY) == {*MODALITIES, OTHER}
    for display in DISPLAY.values():
        low, high = display.window_percentiles
        assert 0 <= low < high <= 100


def test_the_vocabulary_loads_without_numpy():
    code = "import sys, MissingModalitySynthLib.modality; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
