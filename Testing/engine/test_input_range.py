"""Sources that are unlike the training: what is said of them, where it is said, and of what nothing is said."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from MissingModalitySynthLib.errors import ModelPackageError
from MissingModalitySynthLib.input_range import (
    QUANTILES,
    contrast_warning,
    grid_warnings,
    head_quantiles,
    range_warnings,
)
from MissingModalitySynthLib.modality import MODALITIES
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.networks.classifier import (
    DEPTHS,
    DETAILS,
    FEATURES,
    LEVELS,
    ContrastClassifier,
    coarse,
    describe,
)
from MissingModalitySynthLib.package_store import write_package
from MissingModalitySynthLib.request import Request
from MissingModalitySynthLib.synthesis import synthesize
from MissingModalitySynthLib.volume import Geometry, Volume

# of the smooth head of the fixtures, which is 44 x 60 x 52 mm
TRAINED = {
    "slice_mm": 5.0,
    "pixel_mm": 2.0,
    "extent_mm": [[40.0, 60.0], [50.0, 70.0], [45.0, 65.0]],
    "quantiles": {name: [[-0.9, 1.0]] * 5 for name in MODALITIES},
}
SURE = dict.fromkeys((*MODALITIES, ""), 0.002)
RAS = np.diag((-1.0, -1.0, 1.0))  # directions of image axes that run to the right, to the front and upwards


def centred(size, spacing, direction=RAS):
    direction = np.asarray(direction)
    return Geometry(size, spacing, -direction @ ((np.array(size) - 1) / 2 * spacing), direction)


def grid_of(smooth_head, size=(64, 80, 72), spacing=(1.0, 1.0, 1.0), direction=RAS, name="scan.nii.gz"):
    return grid_warnings(smooth_head(centred(size, spacing, direction), name), TRAINED)


def test_quantiles_of_the_head_are_those_of_a_uniform_distribution_without_its_air():
    ramp = np.concatenate([np.full(5000, -1.0), np.linspace(-0.8, 1, 1001)])
    np.testing.assert_allclose(head_quantiles(ramp), [-0.8 + 1.8 * q for q in QUANTILES], atol=1e-9)
    assert head_quantiles(np.full(100, -1.0)) == [-1.0] * 5


def said_of(modality, probabilities, image=None, trained=TRAINED):
    return contrast_warning(
        "scan.nii.gz", modality, np.zeros((4, 4, 4)) if image is None else image, probabilities, trained
    )


def test_a_source_that_looks_like_another_contrast_is_named_with_both():
    assert said_of("T1", SURE | {"FLAIR": 0.99}) == (
        "'scan.nii.gz' does not look like a T1 (it looks like a FLAIR); check the contrast you chose."
    )


def test_a_source_that_looks_like_none_of_them_is_said_to():
    sentence = said_of("T2", SURE | {"": 0.99})
    assert "neither like a T2 nor like another contrast" in sentence


@pytest.mark.parametrize("modality", MODALITIES)
def test_nothing_is_said_of_the_right_contrast_nor_where_the_classifier_is_undecided(modality):
    assert said_of(modality, SURE | {modality: 0.99}) is None
    assert said_of(modality, dict.fromkeys(SURE, 1 / 6)) is None


def test_nothing_is_said_of_contrasts_that_the_classifier_does_not_know():
    assert said_of("other", SURE | {"": 0.99}) is None


@given(st.lists(st.floats(0.001, 1), min_size=6, max_size=6))
def test_whatever_a_source_looks_like_a_t1_and_a_t1ce_are_doubted_alike(shares):
    probabilities = dict(zip(SURE, np.divide(shares, sum(shares)), strict=True))
    sentences = [said_of(name, probabilities) for name in ("T1", "T1ce")]
    assert (sentences[0] is None) == (sentences[1] is None)
    assert sentences[0] is None or not re.search(r"looks like a T1(ce)?\)", sentences[0])


@given(st.floats(-0.89, 1), st.floats(-0.8, 0.8))
def test_intensities_beyond_the_range_of_the_training_are_named_and_others_are_not(value, middle):
    low, high = middle - 0.1, middle + 0.1
    trained = TRAINED | {"quantiles": {"T1": [[low, high]] * 5}}
    sentence = said_of("T1", SURE | {"T1": 0.99}, np.full((3, 3, 3), value), trained)
    if abs(value - middle) < 0.1:
        assert sentence is None
    if abs(value - middle) > 0.3:
        assert f"are below {round(50 * (value + 1))} % of the range" in sentence
        assert f"there below {round(50 * (low + 1))} to {round(50 * (high + 1))} %" in sentence


def test_a_head_like_those_of_the_training_is_passed_over_in_silence(smooth_head):
    assert grid_of(smooth_head) == []
    assert grid_of(smooth_head, (64, 80, 16), (1.0, 1.0, 4.5)) == []


def test_slices_thicker_than_in_the_training_are_named_with_both_thicknesses(smooth_head):
    (sentence,) = grid_of(smooth_head, (64, 80, 11), (1.0, 1.0, 6.5))
    assert sentence.startswith("'scan.nii.gz' has slices 6.5 mm apart, the model was trained on up to 5 mm")


def test_coarse_voxels_within_the_slices_are_named(smooth_head):
    (sentence,) = grid_of(smooth_head, (24, 28, 25), (3.0, 3.0, 3.0))
    assert "has voxels of 3 x 3 x 3 mm" in sentence
    assert "up to 2 mm within a slice" in sentence


def test_a_slab_is_named_with_its_thickness_and_direction(smooth_head):
    (sentence,) = grid_of(smooth_head, (64, 80, 20))
    assert "shows only 20 mm of the head from below to above" in sentence
    assert "trained on 45 mm or more" in sentence


def test_a_field_of_view_that_shows_more_than_a_head_is_named(smooth_head):
    head = smooth_head(centred((64, 80, 72), (1.0, 1.0, 1.0)))
    body = np.concatenate([head.array[:, :, 30:40].repeat(8, axis=2), head.array[:, :, 30:]], axis=2)
    (sentence,) = grid_warnings(Volume(body, Geometry(body.shape, direction=RAS), "body"), TRAINED)
    assert "'body' shows" in sentence
    assert "more than the 65 mm of a head" in sentence


@pytest.mark.parametrize("direction", [RAS, np.eye(3), RAS[:, [2, 0, 1]], RAS[:, [1, 2, 0]] * (1, -1, 1)])
def test_the_side_on_which_a_head_is_cut_is_named_in_every_orientation(smooth_head, direction):
    size, shift = [], np.array([0.0, 0.0, -7.0])  # in LPS: the upper end of the field of view lies within the head
    for axis in np.asarray(direction).T:
        size.append(int(np.abs(axis) @ (64, 80, 48)))
    geometry = centred(size, (1.0, 1.0, 1.0), direction)
    moved = Geometry(geometry.size, geometry.spacing, np.add(geometry.origin, shift), geometry.direction)
    (sentence,) = grid_warnings(smooth_head(moved), TRAINED)
    assert "ends within the head (above)" in sentence


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 0.9, 3.0)])
@pytest.mark.parametrize(("litres", "doubted"), [(1.9, False), (3.5, True)])
def test_that_a_source_of_zero_shot_synthesis_is_more_than_a_brain_is_said_with_its_volume(spacing, litres, doubted):
    """Ellipsoids of known volume; to other methods a skull is nothing out of range."""
    axes = np.array([0.9, 1.15, 0.97]) * (litres * 1e6 * 3 / 4 / np.pi / (0.9 * 1.15 * 0.97)) ** (1 / 3)
    size = np.ceil((2 * axes + 30) / spacing).astype(int)
    index = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"), axis=-1)
    inside = (np.square(index * spacing / axes).sum(axis=-1) < 1).astype(np.float32)
    package = SimpleNamespace(trained_on=TRAINED | {"extent_mm": [[50.0, 300.0]] * 3})
    volume = Volume(inside * (1 + index[..., 0] / size[0]).astype(np.float32), centred(tuple(size), spacing), "scan")
    said = range_warnings(package, {"other": volume}, {}, (1.0, 1.0, 1.0), named=False)
    assert len(said) == doubted
    if doubted:
        assert "'scan' shows more than a brain" in said[0] and said[0].endswith("strip it first.")
        assert float(re.search(r"\(([\d.]+) litres", said[0])[1]) == pytest.approx(litres, abs=0.11)
    assert not grid_warnings(volume, package.trained_on)


def test_a_head_cut_at_the_neck_is_as_all_heads_are(smooth_head):
    geometry = centred((64, 80, 48), (1.0, 1.0, 1.0))
    moved = Geometry(geometry.size, geometry.spacing, np.add(geometry.origin, (0, 0, 7.0)), geometry.direction)
    assert grid_warnings(smooth_head(moved), TRAINED) == []


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 2, 2), (1, 2, 4), (6, 6, 6)])
def test_the_coarse_grid_has_the_mean_of_the_image_and_voxels_of_about_4_mm(spacing):
    size = [24 // mm for mm in spacing]
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    small = coarse(image, spacing)
    assert small.shape[2:] == tuple(n // max(1, round(4 / mm)) for n, mm in zip(size, spacing, strict=True))
    assert small.mean().item() == pytest.approx(image.mean().item(), abs=1e-6)


def test_descriptions_are_roots_of_shares_and_do_not_mind_how_the_head_lies():
    image = torch.rand(2, 1, 20, 24, 22, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image[:, :, :4] = -1
    found = describe(image)
    assert found.shape == (2, FEATURES)
    layers = found[:, : DEPTHS * LEVELS].square().unflatten(1, (DEPTHS, LEVELS)).sum(dim=2)
    torch.testing.assert_close(layers, torch.ones(2, DEPTHS))
    for axis in (2, 3, 4):
        torch.testing.assert_close(describe(image.flip(axis)), found)
    torch.testing.assert_close(describe(image.permute(0, 1, 4, 2, 3)), found)


def test_a_ball_of_one_signal_has_no_details_and_one_intensity_in_every_layer():
    x, y, z = (torch.arange(30.0) - 14.5 for _ in range(3))
    inside = x[:, None, None] ** 2 + y[:, None] ** 2 + z**2 < 14**2
    found = describe(torch.where(inside, 0.5, -1.0)[None, None])[0].square()
    layers = found[: DEPTHS * LEVELS].reshape(DEPTHS, LEVELS)
    assert layers[:, int(0.75 * LEVELS)].tolist() == [1.0] * DEPTHS
    details = found[DEPTHS * LEVELS :].reshape(-1, DETAILS)
    assert (details.argmax(dim=1)[details.sum(dim=1) > 0] == DETAILS // 2).all()


# --- in a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def doubting(tiny_package, tmp_path):
    """Function: name of a contrast -> the tiny package with a classifier that takes everything for it."""

    def write(seen, trained=TRAINED, **options):
        package = load_package(tiny_package)
        classes, names = ["T1", "T2", "FLAIR"], ("format_version", "monai_version", "pytorch_version", "numpy_version")
        classifier = ContrastClassifier(classes, 4)
        torch.nn.init.zeros_(classifier.decide[-1].weight)
        with torch.no_grad():
            classifier.decide[-1].bias.copy_(10.0 * torch.tensor([name == seen for name in (*classes, "")]))
        metadata = {key: value for key, value in package.metadata.items() if key not in names}
        networks = {"methods": {name: package.configuration(name) for name in package.methods}}
        return write_package(
            tmp_path / "doubting",
            metadata=metadata | {"trained_on": trained},
            networks=networks | {"default_method": "regression", "classifier": {"classes": classes, "width": 4}},
            tensors={name: package.weights(name) for name in package.methods} | {"classifier": classifier.state_dict()},
            model_card="# Doubting\n",
            licence="Apache-2.0\n",
            replace=True,
        )

    return write


@pytest.fixture
def head(smooth_head):
    return smooth_head(centred((32, 40, 36), (2.0, 2.0, 2.0)), "scan.nii.gz")


DOUBT = "'scan.nii.gz' does not look like a T1 (it looks like a FLAIR); check the contrast you chose."


def test_a_doubt_is_told_before_the_synthesis_and_is_in_notices_and_provenance(doubting, head):
    events = []
    result = synthesize(
        Request({"T1": head}, ["T2", "FLAIR"], doubting("FLAIR"), device="cpu"),
        progress=lambda progress: events.append(progress.stage),
        warn=events.append,
    )
    assert events.index("prepare") < events.index(DOUBT) < events.index("encode")
    assert result.notices == (DOUBT,)
    for target in ("T2", "FLAIR"):
        assert result.provenance[target]["warnings"] == [DOUBT]
        assert result.volumes[target].array.max() > 0


def test_each_source_is_judged_by_its_own_contrast(doubting, head):
    other = Volume(head.array, head.geometry, "other.nii.gz")
    result = synthesize(Request({"T1": head, "T2": other}, ["FLAIR"], doubting("T2"), device="cpu"))
    assert result.notices == (DOUBT.replace("FLAIR", "T2"),)


def test_nothing_is_said_where_all_is_as_in_the_training(doubting, head):
    result = synthesize(Request({"T1": head}, ["T2"], doubting("T1"), device="cpu"))
    assert result.notices == ()
    assert "warnings" not in result.provenance["T2"]


def test_a_package_without_a_classifier_says_nothing(tiny_package, smooth_head):
    thick = smooth_head(centred((64, 80, 16), (1.0, 1.0, 30.0)))
    assert range_warnings(load_package(tiny_package), {"T1": thick}, {}, (1, 1, 1)) == []


def test_the_command_line_says_a_doubt_once_and_keeps_it_in_file_and_report(doubting, scans, run, tmp_path):
    package, out = doubting("FLAIR").path, tmp_path / "out"
    done = run("synthesize", "--source", f"T1={scans.t1}", "--target", "T2", "--package", package, "--report",
               "--device", "cpu", "--output-dir", out)  # fmt: skip
    assert done.code == 0
    doubt = DOUBT.replace("scan.nii.gz", "patient7_t1")
    assert done.err.count(doubt) == 1
    provenance = json.loads((out / "patient7_t1_T2_synthetic.json").read_text())
    assert doubt in json.dumps(provenance, ensure_ascii=False)
    page = (out / "patient7_t1_synthetic_report.html").read_text()
    assert "does not look like a T1 (it looks like a FLAIR)" in page


@pytest.mark.parametrize(
    "trained",
    [
        {},
        TRAINED | {"slice_mm": "5"},
        TRAINED | {"pixel_mm": 0.0},
        TRAINED | {"extent_mm": [[60.0, 40.0]] * 3},
        TRAINED | {"quantiles": {"T1": [[0.0, 1.0]] * 4}},
        TRAINED | {"quantiles": {"T9": [[0.0, 1.0]] * 5}},
    ],
)
def test_a_package_whose_ranges_cannot_be_used_is_refused(doubting, trained):
    with pytest.raises(ModelPackageError, match="trained_on"):
        doubting("T1", trained)


def test_a_classifier_that_does_not_fit_its_weights_is_refused_by_name(doubting, head):
    package = doubting("T1")
    package.networks["classifier"]["width"] = 8
    with pytest.raises(ModelPackageError, match="classifier of the package 'doubting' does not fit"):
        synthesize(Request({"T1": head}, ["T2"], package, device="cpu"))


def test_importing_the_check_does_not_import_torch():
    code = "import sys, MissingModalitySynthLib.input_range; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
