"""The command ``evaluate``, from packages and runs to the three files and the figures."""

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import training
from MissingModalitySynthLib.model_package import load_package
from training.__main__ import main
from training.evaluation import cases
from training.evaluation import run as evaluation_run

SMOKE = Path(training.__file__).parent / "configs" / "smoke.yaml"
JUDGE = """
import numpy as np
def scores(prediction, target, mask):
    return {"psnr": float(mask.sum()), "ssim": float(np.corrcoef(prediction[mask], target[mask])[0, 1])}
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _small_heads(monkeypatch):
    """Simulated heads are cut to the middle of the brain: the networks know nothing anyway."""
    monkeypatch.setattr(cases, "HEAD_MM", (48, 48, 48))


@pytest.fixture
def subjects(data_set):
    """A subject with a lesion, one without FLAIR, and one whose T2 is damaged."""
    files = {
        "a/a_t1.nii.gz": "T1",
        "a/a_t2.nii.gz": "T2",
        "a/a_flair.nii.gz": "FLAIR",
        "a/a_seg.nii.gz": "segmentation",
    }
    files |= {"b/b_t1.nii.gz": "T1", "b/b_t2.nii.gz": "T2", "c/c_t1.nii.gz": "T1", "c/c_t2.nii.gz": "T2"}
    folder = data_set(files)
    damaged = folder / "c" / "c_t2.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    return folder


def evaluated(output, *arguments):
    assert main(["evaluate", "--output", str(output), *map(str, arguments)]) == 0
    return json.loads((output / "evaluation.json").read_text())


def test_a_package_is_evaluated_on_every_pair_with_all_options(tiny_package, subjects, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation_run, "FIGURE_CASES", 1)
    (tmp_path / "judge.py").write_text(JUDGE)
    arguments = ["--package", tiny_package, "--subjects", subjects, "--judge", tmp_path / "judge.py"]
    arguments += ["--steps", "1,2", "--samples", "2", "--many-to-one", "--robustness"]
    found = evaluated(tmp_path / "out", *arguments)

    records = found["records"]
    assert {row["subject"] for row in records} == {"a", "b"}
    assert found["about"]["subjects"] == {"a": ["T1", "T2", "FLAIR"], "b": ["T1", "T2"]}
    assert "Subject 'c'" in found["about"]["skipped"]["c"]
    methods = {f"aldm bridge {steps}{mean}" for steps in ("1 step", "2 steps") for mean in ("", " mean of 2")}
    methods.add("regression")
    pairs = {(row["sources"], row["target"]) for row in records if row["method"] in methods}
    assert pairs == {("T1", "T2"), ("T1", "FLAIR"), ("T2", "FLAIR"), ("T1 + T2", "FLAIR")}
    for pair in pairs:
        assert methods <= {row["method"] for row in records if (row["sources"], row["target"]) == pair}
    assert {row["method"] for row in records} - methods == {
        "affine copy",
        "voxel-wise oracle",
        "tissue mean",
        "first stage",
    }
    steps = {row["method"]: (row["steps"], row["samples"]) for row in records if "steps" in row}
    assert steps["aldm bridge 2 steps mean of 2"] == (2, 2)
    assert steps["regression"] == (1, 1)

    row = next(row for row in found["summary"] if (row["sources"], row["target"]) == ("T1", "T2"))
    values = [each["psnr"] for each in records if all(each[key] == row[key] for key in ("sources", "target", "method"))]
    assert (row["n"], len(values)) == (2, 2)
    assert row["psnr"]["mean"] == pytest.approx(np.mean(values))
    assert row["psnr"]["sd"] == pytest.approx(np.std(values, ddof=1))
    copies = [each for each in records if each["method"] == "affine copy"]
    assert all(-1 <= each["judge_ssim"] <= 1 and each["judge_psnr"] > 1000 for each in copies)

    assert {row["method"] for row in found["calibration"]} == {m for m in methods if "mean of" in m}
    corruptions = {row["corruption"] for row in found["robustness"]}
    assert {"5 mm axial slices", "5 mm coronal slices", "5 mm sagittal slices", "noise", "bias field"} < corruptions
    assert {"acquired obliquely", "mask 2 mm tighter"} < corruptions
    assert {(row["sources"], row["target"]) for row in found["robustness"]} == pairs - {("T1 + T2", "FLAIR")}
    unmoved = [row["drop"] for row in found["robustness"] if row["corruption"] in ("header rotated", "axes permuted")]
    assert np.abs(unmoved).max() < 0.5

    page = (tmp_path / "out" / "evaluation.md").read_text()
    for heading in ("Protocol 1", "Protocol 2", "Lesions", "Uncertainty", "Robustness", "The paper's numbers", "Cost"):
        assert heading in page
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["psnr"]) for line in lines] == [row["psnr"] for row in records]
    figures = tmp_path / "out" / "figures"
    assert (figures / "calibration.png").exists()
    picture = np.asarray(Image.open(figures / "a-from-T1-regression.png"))
    assert np.any(np.all(picture == (255, 179, 0), axis=-1))  # the mark on what is synthetic
    assert not list(figures.glob("b-*"))
    printed = capsys.readouterr()
    assert "| T1 → T2 | 2 |" in printed.out
    assert "| T1 + T2 → FLAIR | regression |" in printed.out
    for header in ("| regression | a | b |", "| pair | method | MAE % lesion |", "| corruption of the source | n |"):
        assert header in printed.out
    assert "Skipped: Subject 'c'" in printed.err


def test_a_broken_subject_stops_the_evaluation_where_asked_to(tiny_package, subjects, tmp_path, capsys):
    arguments = ["--package", str(tiny_package), "--subjects", str(subjects), "--output", str(tmp_path / "out")]
    assert main(["evaluate", *arguments, "data.broken=stop"]) == 3
    assert "Subject 'c'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_package_that_can_make_none_of_the_contrasts_evaluates_nothing(tiny_package, data_set, tmp_path, capsys):
    folder = data_set({"a/a_t1ce.nii.gz": "T1ce", "a/a_pd.nii.gz": "PD"})
    arguments = ["--package", str(tiny_package), "--subjects", str(folder), "--output", str(tmp_path / "out")]
    assert main(["evaluate", *arguments]) == 3
    assert "from T1, T2 to T2, FLAIR" in capsys.readouterr().err


def test_a_subject_can_have_a_package_that_did_not_train_on_it(tiny_package, data_set, tmp_path, capsys):
    other = shutil.copytree(tiny_package, tmp_path / "fold")
    weights = other / "models" / "regression.safetensors"
    tensors = {name: tensor * 0.5 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights)
    sums = other / "SHA256SUMS"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    sums.write_text(re.sub(r"\w{64}(?=  models/regression)", digest, sums.read_text()))
    folder = data_set({f"{name}/{name}_{end}.nii.gz": c for name in "ab" for end, c in (("t1", "T1"), ("t2", "T2"))})
    arguments = ["--subjects", folder, "--pairs", "T1:T2", "--samples", 1, "--package", tiny_package]
    alone = evaluated(tmp_path / "alone", *arguments)
    folds = evaluated(tmp_path / "folds", *arguments, "--package", f"b={other}")

    def scores(found):
        return {row["subject"]: row["psnr"] for row in found["records"] if row["method"] == "regression"}

    assert scores(alone)["a"] == scores(folds)["a"]
    assert scores(alone)["b"] != scores(folds)["b"]
    assert list(folds["about"]["own"]) == ["b"]
    assert "- b is predicted by the package fold 0.0.1" in (tmp_path / "folds" / "evaluation.md").read_text()
    assert {(row["sources"], row["target"]) for row in folds["records"] if row["sources"]} == {("T1", "T2")}

    common = ["evaluate", "--output", str(tmp_path / "out"), "--subjects", str(folder)]
    for packages, sentence in (
        ([f"b={other}"], "without a subject as well"),
        ([str(tiny_package), f"c={other}"], "There is no subject 'c', only a, b"),
        ([str(tiny_package), f"b={other}", f"b={tiny_package}"], "are both given for b"),
    ):
        given = [part for package in packages for part in ("--package", package)]
        assert main([*common, *given]) == 3
        assert sentence in capsys.readouterr().err


def test_a_whole_head_with_a_known_brain_is_also_tried_skull_stripped(tiny_package, data_set, tmp_path):
    folder = data_set({"a/a_t1.nii.gz": "T1", "a/a_t2.nii.gz": "T2", "brain.nii.gz": "segmentation"})
    arguments = ["--package", tiny_package, "--subjects", folder, "--pairs", "T1:T2", "--samples", 1, "--robustness"]
    found = evaluated(tmp_path / "out", *arguments, "--brain", f"a={folder / 'brain.nii.gz'}")
    assert "skull-stripped" in {row["corruption"] for row in found["robustness"]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "--output", "o"], "evaluate needs --config, or --package and --subjects"),
        (["evaluate", "--config", SMOKE, "--output", "o"], "evaluate needs --run or --package"),
        (["evaluate", "--package", "p", "--subjects", "s"], "evaluate needs --output"),
        (["evaluate", "--package", "p", "--subjects", "s", "--output", "o", "--steps", "1,x"], "no list of numbers"),
        (["evaluate", "--package", "p", "--subjects", "s", "--output", "o", "--pairs", "T1-T2"], "is no pair such as"),
        (["evaluate", "--package", "p", "--subjects", "s", "--output", "o", "--pairs", "T1:X"], "not a known contrast"),
        (["spade", "--config", SMOKE, "--run", "r", "--robustness"], "--robustness belongs to evaluate"),
        (["spade", "--config", SMOKE, "--run", "r", "--evaluation", "e"], "--evaluation belongs to export"),
        (["spade", "--run", "r"], "spade needs --config"),
        (["evaluate", "--config", SMOKE, "--run", "r", "--output", "o", "--samples", "-1"], "--samples of 1 or more"),
        (["evaluate", "--package", "p", "--subjects", "s", "--output", "o", "--wobble"], "unrecognized arguments"),
    ],
)
def test_options_that_do_not_fit_are_named(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_an_unknown_package_and_missing_subjects_are_one_sentence(tiny_package, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    assert main(["evaluate", "--package", "nowhere", "--subjects", str(tmp_path), *output]) == 5
    assert main(["evaluate", "--package", str(tiny_package), "--subjects", str(tmp_path / "none"), *output]) == 3
    package = ["--package", str(tiny_package), "--subjects", str(tmp_path)]
    assert main(["evaluate", *package, "--split", "test", *output]) == 3
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A recipe with nothing to train in its first stage, and the run of its segmenter and regression."""
    folder = tmp_path_factory.mktemp("evaluated")
    recipe = yaml.safe_load(SMOKE.read_text())
    recipe["networks"]["first_stage"] = {"kind": "haar", "levels": 1}
    recipe["modalities"] = ["T1", "T2"]
    recipe["machine"]["tensorboard"] = False
    recipe["data"]["skull_strip"] = 0.0
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    settings = ["--config", str(folder / "recipe.yaml"), "--run", str(folder / "run")]
    for stage in ("segmenter", "regression"):
        assert main([stage, *settings]) == 0
    return settings


def test_a_run_is_evaluated_on_simulated_heads_and_its_numbers_reach_the_model_card(trained, tmp_path):
    found = evaluated(tmp_path / "out", *trained, "--cases", 1, "--robustness")
    made = [row for row in found["records"] if row["method"] == "regression"]
    assert len(made) == 2
    assert all({"dice_white_matter", "mae_grey_matter"} <= row.keys() for row in made)
    assert "skull-stripped" in {row["corruption"] for row in found["robustness"]}
    assert "simulated heads with their skulls" in found["about"]["data"]

    arguments = [*trained, "--output", str(tmp_path / "packed")]
    assert main(["export", *arguments, "--evaluation", str(tmp_path / "out" / "evaluation.json")]) == 0
    card = (load_package(tmp_path / "packed").path / "docs" / "README.md").read_text()
    row = next(row for row in found["summary"] if (row["sources"], row["method"]) == ("T1", "regression"))
    assert f"{row['psnr']['mean']:.2f} / {row['ssim']['mean']:.3f}" in card


def test_a_run_is_evaluated_on_the_test_split_of_its_scans(trained, data_set, tmp_path):
    folder = data_set({f"{name}/{name}_{end}.nii.gz": c for name in "abc" for end, c in (("t1", "T1"), ("t2", "T2"))})
    splits = "data.splits={train: 0.34, validation: 0.33, test: 0.33}"
    found = evaluated(tmp_path / "out", *trained, f"data.real={folder}", splits)
    dealt = json.loads((Path(trained[-1]) / "splits.json").read_text())["splits"]
    assert list(found["about"]["subjects"]) == list(dealt["test"])


def test_an_evaluation_that_is_none_is_refused_by_export(trained, tmp_path, capsys):
    (tmp_path / "evaluation.json").write_text('{"about": 1}')
    arguments = ["--output", str(tmp_path / "packed"), "--evaluation", str(tmp_path / "evaluation.json")]
    assert main(["export", *trained, *arguments]) == 3
    assert "is no evaluation.json" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()


def test_an_ablated_run_can_be_evaluated_though_it_is_no_package(tmp_path):
    settings = ["--config", str(SMOKE), "--run", str(tmp_path / "run"), "--ablation", "c", "data.shapes=[[32,32,32]]"]
    settings += ["machine.tensorboard=false", "autoencoder.perceptual_weight=0", "modalities=[T1,T2]"]
    for stage in ("autoencoder", "spade"):
        assert main([stage, *settings]) == 0
    found = evaluated(tmp_path / "out", *settings, "--cases", 1, "--samples", 1)
    assert {row["method"] for row in found["records"] if "steps" in row} == {"ablation paper 2 steps"}
