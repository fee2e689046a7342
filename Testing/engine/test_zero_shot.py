"""Zero-shot synthesis through the engine and the command line: sources of any contrast, and what is refused."""

import json
import math
import shutil

import numpy as np
import pytest
from scipy import ndimage

from MissingModalitySynthLib import synthesis
from MissingModalitySynthLib.cli import build_parser
from MissingModalitySynthLib.errors import DivergenceError, InputError, ModelPackageError
from MissingModalitySynthLib.intensity import head_mask, neighbour_information
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.request import Request, checked
from MissingModalitySynthLib.synthesis import synthesize
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import read_provenance, read_volume, write_volume

GRID = Geometry((30, 34, 32), (2.0, 2.0, 2.1), (-30.0, -34.0, -33.0))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def both(zero_shot_packages):
    return load_package(zero_shot_packages.both)


@pytest.fixture(scope="module")
def alone(zero_shot_packages):
    return load_package(zero_shot_packages.alone)


@pytest.fixture(scope="module")
def head(smooth_head):
    return smooth_head(GRID, "scan 7")


# --- what may be asked ------------------------------------------------------------------------------------------------


def test_the_method_is_the_paired_one_where_the_contrast_is_listed_and_the_zero_shot_one_where_it_is_not(both, head):
    chosen = {name: checked(Request({name: head}, [target], both)).method for name, target in
              (("T1", "T2"), ("other", "T1"), ("PD", "T1"))}  # fmt: skip
    assert chosen == {"T1": "regression", "other": "midiffusion", "PD": "midiffusion"}
    assert checked(Request({"T2": head}, ["T1"], both, method="midiffusion")).method == "midiffusion"


@pytest.mark.parametrize(
    ("package", "sources", "target", "method", "error", "sentence"),
    [
        ("alone", ["T2"], "T1", "regression", ModelPackageError, "trained on its targets alone; choose that"),
        (
            "paired",
            ["T1"],
            "T2",
            "midiffusion",
            ModelPackageError,
            "no method 'midiffusion', only aldm, regression: .*T2",
        ),
        ("paired", ["other"], "T2", None, InputError, "cannot start from unlisted contrast.*'midiffusion' starts from"),
        ("both", ["other"], "T2", "regression", InputError, "unlisted contrast, only from T1, T2 by the method 'regre"),
        ("both", ["T1"], "PD", None, InputError, "cannot make PD, only T2, FLAIR by .*the method 'midiffusion' can"),
        ("both", ["other"], "T2", None, InputError, "cannot make T2 from an unlisted contrast, only T1, PD\\."),
        ("both", ["T1", "T2"], "PD", None, InputError, "cannot make PD, only T2, FLAIR\\."),
        ("alone", ["other"], "PD", None, InputError, "cannot make PD, only T1\\."),
        ("alone", ["T1"], "T1", None, InputError, "T1 is both a source and a target"),
        ("both", ["T1", "other"], "PD", None, InputError, "one source, not from T1, unlisted contrast: choose one"),
        ("both", ["T1", "T2"], "PD", "midiffusion", InputError, "starts from one source, not from T1, T2"),
        ("both", ["other"], "other", None, InputError, "'other' is not a known contrast"),
        ("both", ["SWI"], "T1", None, InputError, "'SWI' is not a known contrast.*or 'other'"),
    ],
)
def test_what_a_package_cannot_do_is_one_sentence_that_says_what_can(
    both, alone, tiny_package, head, package, sources, target, method, error, sentence
):
    packages = {"both": both, "alone": alone, "paired": load_package(tiny_package)}
    request = Request(dict.fromkeys(sources, head), [target], packages[package], method=method)
    with pytest.raises(error, match=sentence):
        checked(request)


# --- sources that show nothing ----------------------------------------------------------------------------------------


def autoregressive(step, size=(64, 60, 62)):
    """Gaussian noise whose neighbours correlate by ``step`` along every axis."""
    field = np.random.default_rng(2).normal(size=size)
    for axis in range(3):
        rows = np.moveaxis(field, axis, 0)
        for k in range(1, len(rows)):
            rows[k] = step * rows[k - 1] + (1 - step**2) ** 0.5 * rows[k]
    return field


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8])
def test_the_information_of_neighbours_is_that_of_the_gaussians_they_are(correlation):
    field = autoregressive(correlation**0.5)  # neighbours are two voxels of 2 mm apart
    found = neighbour_information(field, np.ones(field.shape, bool), (2.0, 2.0, 2.0))
    pairs = [(rows[2:].ravel(), rows[:-2].ravel()) for rows in (np.moveaxis(field, axis, 0) for axis in range(3))]
    known = [np.corrcoef(*pair)[0, 1] for pair in pairs]
    assert min(known) == pytest.approx(correlation, abs=0.08)
    assert found == pytest.approx(min(-math.log(1 - each**2) / 2 for each in known), rel=0.1, abs=2e-3)


def test_the_information_of_neighbours_does_not_depend_on_the_direction_of_the_contrast(head):
    mask = head_mask(head.array)
    found = [neighbour_information(array, mask, GRID.spacing) for array in (head.array, -2 * head.array)]
    assert found[0] == pytest.approx(found[1], rel=0.05)
    assert found[0] > 0.3


def test_noise_that_was_smeared_across_thick_slices_is_noise():
    field = np.repeat(autoregressive(0.0, (60, 60, 10)), 6, axis=2)
    assert neighbour_information(field, np.ones(field.shape, bool), (1.0, 1.0, 1.0)) < 0.01


def nothing(kind):
    """A volume that has a head's outline, or none, and nothing in it."""
    noise = np.random.default_rng(0).normal(size=(60, 66, 62))
    index = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in noise.shape), indexing="ij"))
    outline = (index**2).sum(0) < 0.8
    arrays = {
        "constant": outline * 500.0,
        "constant, smooth edge, noisy": np.abs(ndimage.gaussian_filter(outline * 500.0, 1) + 20 * noise),
        "noise in a head": outline * (500 + 100 * noise),
        "noise everywhere": np.hypot(noise, noise[::-1]) * 20,
    }
    return Volume(arrays[kind].astype(np.float32), Geometry(noise.shape, (2.0, 2.0, 2.0)), "scan 7")


@pytest.mark.parametrize("kind", ["constant", "constant, smooth edge, noisy", "noise in a head", "noise everywhere"])
def test_a_source_that_shows_nothing_is_refused_by_name_before_anything_is_computed(alone, kind):
    stages = []
    with pytest.raises(InputError, match=r"'scan 7' shows no anatomy that could guide .*constant or noise; check"):
        synthesize(Request({"other": nothing(kind)}, ["T1"], alone, device="cpu"), stages.append)
    assert [progress.stage for progress in stages] == ["load model", "prepare"]


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_result_from_another_contrast_says_so_and_is_the_same_whatever_the_source_is_called(both, head):
    results = {name: synthesize(Request({name: head}, ["T1"], both, method="midiffusion", device="cpu"))
               for name in ("other", "T2")}  # fmt: skip
    made, provenance = results["other"].volumes["T1"], results["other"].provenance["T1"]
    assert made.name == "T1 (synthetic from unlisted contrast)"
    assert results["T2"].volumes["T1"].name == "T1 (synthetic from T2)"
    assert made.geometry == head.geometry and made.array.max() > 0
    assert np.array_equal(made.array, results["T2"].volumes["T1"].array)
    assert json.loads(json.dumps(provenance)) == provenance
    assert (provenance["method"], provenance["sources"], provenance["steps"]) == ("midiffusion", {"other": "scan 7"}, 2)
    assert "diverged_at_step" not in provenance


@pytest.fixture
def diverging(monkeypatch, alone):
    """Function: the step before which guidance runs away, and whether there is a good estimate by then."""
    translator = synthesis.load_translator(alone, "midiffusion")

    def diverge(step, good=True):
        def sample(condition, target, *, steps, generator, on_step):
            for done in range(step):
                on_step(done, steps)
            latents = translator.first_stage.encode(condition.image)
            raise DivergenceError(step, steps, latents if good else None)

        monkeypatch.setattr(translator, "sample", sample)

    return diverge


def test_guidance_that_diverges_stops_the_run_and_names_the_step(alone, head, diverging):
    diverging(3)
    with pytest.raises(DivergenceError, match="diverged at step 3 of 5; choose"):
        synthesize(Request({"other": head}, ["T1"], alone, steps=5, device="cpu"))


def test_the_last_good_estimate_is_kept_only_if_asked_and_says_so(alone, head, diverging):
    diverging(3)
    result = synthesize(Request({"other": head}, ["T1"], alone, steps=5, device="cpu", keep_last_good=True))
    assert result.notices == ("T1: The sampling diverged at step 3 of 5; the last good estimate was kept.",)
    assert result.provenance["T1"]["diverged_at_step"] == 3
    made, inside = result.volumes["T1"].array, head.array > 500
    assert np.corrcoef(made[inside], head.array[inside])[0, 1] > 0.99  # the stand-in's estimate is the source


def test_without_a_good_estimate_there_is_nothing_to_keep(alone, head, diverging):
    diverging(1, good=False)
    with pytest.raises(DivergenceError, match="step 1 of 2"):
        synthesize(Request({"other": head}, ["T1"], alone, device="cpu", keep_last_good=True))


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def scan(tmp_path, head):
    """A file whose name says nothing of its contrast."""
    file = tmp_path / "in" / "scan7.nii.gz"
    file.parent.mkdir()
    write_volume(head, file)
    return file


@pytest.fixture
def installed(packages, zero_shot_packages):
    """The two zero-shot packages beside the bundled one."""
    shutil.copytree(zero_shot_packages.both, packages.user / "both")
    shutil.copytree(zero_shot_packages.alone, packages.user / "alone")


@pytest.mark.usefixtures("installed")
def test_an_unlisted_contrast_is_given_as_other_and_its_report_calls_it_so(run, scan, tmp_path):
    arguments = ("--source", f"other={scan}", "--package", "both", "--output-dir", tmp_path, "--report")
    ended = run("synthesize", *arguments)
    assert ended.code == 0, ended.err
    assert "Making T1, PD" in ended.err and "from unlisted contrast" in ended.err
    made = tmp_path / "scan7_T1_synthetic.nii.gz"
    assert read_volume(made).geometry.matches(GRID)
    assert read_provenance(made)["sources"] == {"other": "scan7"}
    page = (tmp_path / "scan7_synthetic_report.html").read_text(encoding="utf-8")
    assert "Synthetic T1, PD from unlisted contrast" in page and "unlisted contrast, acquired" in page
    assert "T1 (made by this program)" in run("inspect", made).out
    assert run("report", "--source", f"other={scan}", "--synthetic", made, "--output", tmp_path / "r.html").code == 0


@pytest.mark.usefixtures("installed")
def test_where_the_zero_shot_method_is_asked_for_the_contrast_need_not_be_known(run, scan, tmp_path):
    arguments = ("--source", scan, "--target", "T1", "--output-dir", tmp_path)
    ended = run("synthesize", *arguments, "--package", "both")
    assert ended.code == 3 and f"T1={scan}" in ended.err and "other)" in ended.err
    ended = run("synthesize", *arguments, "--package", "both", "--method", "midiffusion")
    assert ended.code == 0 and f"What '{scan}' shows is not known" in ended.err
    assert run("synthesize", *arguments, "--package", "alone", "--overwrite").code == 0


def test_the_last_good_estimate_is_asked_for_on_the_command_line(run, scan, tmp_path, zero_shot_packages, diverging):
    diverging(2)
    arguments = ["--source", f"other={scan}", "--package", zero_shot_packages.alone, "--output-dir", tmp_path / "out"]
    ended = run("synthesize", *arguments)
    assert ended.code == 9 and "diverged at step 2 of 2" in ended.err
    assert not (tmp_path / "out").exists()
    ended = run("synthesize", *arguments, "--keep-last-good")
    assert ended.code == 0 and "note: T1: The sampling diverged at step 2" in ended.err
    assert not build_parser().parse_args(["synthesize", "--source", "a"]).keep_last_good


@pytest.mark.parametrize(
    ("package", "method", "sentence"),
    [
        ("alone", "regression", "it was trained on its targets alone"),
        ("paired", "midiffusion", "or a zero-shot package"),
    ],
)
def test_a_method_that_a_package_has_not_is_said_so_also_where_no_target_is_named(
    run, scan, tmp_path, tiny_package, zero_shot_packages, package, method, sentence
):
    folder = {"alone": zero_shot_packages.alone, "paired": tiny_package}[package]
    arguments = ("--source", f"T1={scan}", "--package", folder, "--output-dir", tmp_path / "out")
    ended = run("synthesize", *arguments, "--method", method)
    assert ended.code == 5 and f"no method '{method}'" in ended.err and sentence in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("installed")
def test_packages_and_files_tell_what_is_made_zero_shot(run, scan):
    listed = run("models", "list").out
    assert "T1, T2 -> T2, FLAIR; any -> T1, PD" in listed and "any -> T1\n" in listed
    assert "T1, PD from any contrast" in run("models", "show", "both").out
    shown = run("models", "show", "alone").out
    assert "T1 from any contrast" in shown and "makes" not in shown
    fields = json.loads(run("inspect", scan, "--json").out)
    assert (fields["can_make"], fields["zero_shot"]) == ({}, {"both": ["T1", "PD"], "alone": ["T1"]})
    assert "T1 (package alone); T1, PD (package both), by --method midiffusion" in run("inspect", scan).out
