"""The command line: what it writes and what it says."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MissingModalitySynthLib import __version__, errors, synthesis
from MissingModalitySynthLib.cli import build_parser, main
from MissingModalitySynthLib.errors import SynthesisError
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.package_store import write_package
from MissingModalitySynthLib.volume import Geometry
from MissingModalitySynthLib.volume_io import read_provenance, read_volume

pytestmark = pytest.mark.usefixtures("packages")


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- help ------------------------------------------------------------------------------------------------------------


def helps() -> dict[str, str]:
    """The help of the program and of every command, by command."""
    found, pending = {}, [("", build_parser())]
    while pending:
        name, parser = pending.pop()
        found[name] = parser.format_help()
        for action in parser._actions:
            if isinstance(action.choices, dict):
                pending += [(f"{name} {each}".strip(), child) for each, child in action.choices.items()]
    return found


def test_the_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from MissingModalitySynthLib.cli import main\n"
        "try: main(['synthesize', '--help'])\n"
        "except SystemExit: print('heavy:', {'torch', 'monai', 'SimpleITK', 'numpy', 'scipy'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: set()" in ended.stdout


def test_the_exit_code_of_every_error_is_documented_in_the_help():
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, SynthesisError)]
    documented = {line.split()[0] for line in helps()[""].partition("exit codes:")[2].splitlines() if line.strip()}
    assert {str(each.exit_code) for each in classes} <= documented


@pytest.mark.parametrize("command", ["", "synthesize", "inspect", "report", "models"])
def test_the_examples_in_the_help_are_understood(command):
    examples = [line.split() for line in helps()[command].splitlines() if line.startswith("  missing-modality-synth ")]
    examples = [words[1:] for words in examples if "COMMAND" not in words]
    assert examples
    for words in examples:
        assert build_parser().parse_args(words).run


def test_every_command_says_what_it_is_for():
    for command, text in helps().items():
        assert len(text.split("\n\n")[1].split()) >= 4, command


def test_version_is_the_packages_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"missing-modality-synth {__version__}\n"


# --- synthesize ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["nii.gz", "nii", "nrrd", "mha"])
def test_a_target_is_written_on_the_grid_of_the_source_in_the_wanted_format(run, scans, tmp_path, suffix):
    ended = run(
        "synthesize", "--source", f"T1={scans.t1}", "--target", "FLAIR", "--format", suffix, "--output-dir", tmp_path
    )
    assert ended.code == 0
    assert ended.out == f"{tmp_path / f'patient7_t1_FLAIR_synthetic.{suffix}'}\n"
    assert everything_in(tmp_path) == sorted(
        ["patient7_t1_FLAIR_synthetic.json", f"patient7_t1_FLAIR_synthetic.{suffix}"]
    )
    made = read_volume(ended.out.strip())
    assert made.geometry.matches(scans.grid)
    assert made.array.min() >= 0
    provenance = read_provenance(ended.out.strip())
    assert (provenance["target"], provenance["sources"], provenance["package"]) == (
        "FLAIR",
        {"T1": "patient7_t1"},
        "micro",
    )


def test_results_get_the_shading_of_their_source_unless_it_is_not_wanted(run, scans, tmp_path):
    package = load_package("micro")
    write_package(
        tmp_path / "unshaded",
        metadata=package.metadata | {"shading": "removed"},
        networks={"default_method": "regression", "methods": {"regression": package.configuration("regression")}},
        tensors={"regression": package.weights("regression")},
        model_card="As micro.",
        licence="Apache-2.0",
    )
    said = {}
    for words in ((), ("--no-shading",)):
        folder = tmp_path / f"results {len(words)}"
        options = ("--source", f"T1={scans.t1}", "--target", "T2", "--package", tmp_path / "unshaded", *words)
        ended = run("synthesize", *options, "--output-dir", folder)
        said[words] = read_provenance(ended.out.strip())["shading"]
    assert said == {(): "of the sources", ("--no-shading",): "of the model"}


@pytest.mark.parametrize("words, apart", [((), True), (("--whole-head",), False)])
def test_the_brain_is_apart_unless_a_whole_head_is_wanted(run, scans, tmp_path, monkeypatch, words, apart):
    asked, synthesize = [], synthesis.synthesize
    monkeypatch.setattr(
        synthesis, "synthesize", lambda request, *more: asked.append(request) or synthesize(request, *more)
    )
    run("synthesize", "--source", f"T1={scans.t1}", "--target", "T2", "--output-dir", tmp_path / "made", *words)
    assert [request.brain_apart for request in asked] == [apart]


def test_without_targets_all_that_the_package_makes_is_made_and_said(run, scans, tmp_path):
    ended = run("synthesize", "--source", scans.t1, "--method", "regression", "--output-dir", tmp_path)
    assert [Path(line).name for line in ended.out.splitlines()] == [
        "patient7_t1_T2_synthetic.nii.gz",
        "patient7_t1_FLAIR_synthetic.nii.gz",
    ]
    assert "Making T2, FLAIR" in ended.err


def test_targets_may_be_separated_by_commas_and_called_by_their_aliases(run, scans, tmp_path):
    ended = run(
        "synthesize", "--source", scans.t1, "--target", "t2w,t2f", "--method", "regression", "--output-dir", tmp_path
    )
    assert [Path(line).name.split("_")[2] for line in ended.out.splitlines()] == ["T2", "FLAIR"]


def test_the_reference_gives_the_grid_the_name_and_the_format(run, scans, tmp_path):
    sources = ("--source", f"T1={scans.t1}", f"T2={scans.t2}")
    ended = run("synthesize", *sources, "--reference", "T2", "--method", "regression", "--output-dir", tmp_path)
    assert ended.code == 0
    assert Path(ended.out.strip()).name == "patient7_t2_FLAIR_synthetic.mha"
    assert read_volume(ended.out.strip()).geometry.matches(read_volume(scans.t2).geometry)


def test_a_dicom_folder_is_recognised_by_its_tags_and_the_result_is_a_nifti(
    run, smooth_head, write_dicom_series, tmp_path
):
    head = smooth_head(Geometry((32, 32, 30), (2, 2, 2), (-32, -32, -30)))
    folder = tmp_path / "series"
    uid = write_dicom_series(
        folder, head.array, spacing=(2, 2, 2), origin=(-32, -32, -30), SeriesDescription="t2_tse_tra"
    )
    out = tmp_path / "out"
    ended = run("synthesize", "--source", f"{folder}#{uid}", "--method", "regression", "--output-dir", out)
    assert ended.code == 0, ended.err
    assert everything_in(out) == ["series_FLAIR_synthetic.json", "series_FLAIR_synthetic.nii.gz"]
    assert read_volume(out / "series_FLAIR_synthetic.nii.gz").geometry.matches(head.geometry)


def test_several_samples_also_give_their_standard_deviation(run, scans, tmp_path):
    ended = run("synthesize", "--source", scans.t1, "--target", "FLAIR", "--samples", 3, "--output-dir", tmp_path)
    mean, deviation = (read_volume(line) for line in ended.out.splitlines())
    assert deviation.name == "patient7_t1_FLAIR_synthetic_sd"
    assert deviation.array.max() > 0
    assert deviation.array[mean.array == 0].max() < deviation.array.max()
    assert "deviation" in read_provenance(tmp_path / "patient7_t1_FLAIR_synthetic_sd.nii.gz")["quantity"]


def test_a_deterministic_method_says_that_it_makes_one_sample_only(run, scans, tmp_path):
    arguments = ("--target", "FLAIR", "--samples", 3, "--method", "regression", "--output-dir", tmp_path)
    ended = run("synthesize", "--source", scans.t1, *arguments)
    assert len(everything_in(tmp_path)) == 2
    assert "note: The method 'regression' is deterministic" in ended.err


def test_equal_seeds_give_equal_voxels_and_others_do_not(run, scans, tmp_path):
    made = []
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        ended = run(
            "synthesize", "--source", scans.t1, "--target", "FLAIR", "--seed", seed, "--output-dir", tmp_path / folder
        )
        made.append(read_volume(ended.out.strip()).array)
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_the_report_and_its_picture_lie_beside_the_result(run, scans, tmp_path):
    acquired = ("--acquired", f"FLAIR={scans.t2}")
    ended = run("synthesize", "--source", scans.t1, "--target", "FLAIR", *acquired, "--output-dir", tmp_path)
    assert [Path(line).name for line in ended.out.splitlines()[1:]] == [
        "patient7_t1_synthetic_report.html",
        "patient7_t1_synthetic_report.png",
    ]
    page = (tmp_path / "patient7_t1_synthetic_report.html").read_text(encoding="utf-8")
    assert "SYNTHETIC" in page and "PSNR" in page
    assert (tmp_path / "patient7_t1_synthetic_report.png").read_bytes().startswith(b"\x89PNG")


def test_the_time_of_every_stage_is_told_unless_quiet(run, scans, tmp_path):
    arguments = ("synthesize", "--source", scans.t1, "--target", "FLAIR", "--output-dir", tmp_path, "--overwrite")
    said = run(*arguments).err
    for stage in ("read", "load model", "prepare", "encode", "condition", "sample", "decode", "native grid", "write"):
        assert f"\n{stage} " in f"\n{said}"
    assert run(*arguments, "--quiet").err == ""


def test_sources_are_never_changed(run, scans, tmp_path):
    before = {path: path.read_bytes() for path in scans.folder.iterdir()}
    shutil.copytree(scans.folder, tmp_path / "scans")
    source = tmp_path / "scans" / "patient7_t1.nii.gz"
    run("synthesize", "--source", source, "--method", "regression", "--output-dir", tmp_path / "scans")
    assert {path: (tmp_path / "scans" / path.name).read_bytes() for path in before} == before


def test_a_synthetic_source_is_pointed_out(run, scans, tmp_path):
    options = ("--method", "regression", "--output-dir", tmp_path)
    first = run("synthesize", "--source", scans.t1, "--target", "T2", *options).out.strip()
    ended = run("synthesize", "--source", first, "--target", "FLAIR", *options)
    assert ended.code == 0
    assert f"The T2 in '{first}' is itself synthetic" in ended.err


def test_a_synthetic_nifti_that_lost_its_sidecar_and_its_name_still_says_what_it_shows(run, scans, tmp_path):
    made = run("synthesize", "--source", scans.t1, "--target", "FLAIR", "--output-dir", tmp_path).out.strip()
    (tmp_path / "in").mkdir()
    lost = shutil.move(made, tmp_path / "in" / "t1.nii.gz")
    assert "FLAIR (made by this program)" in run("inspect", lost).out


@pytest.mark.parametrize("name", ["with two spaces", "Zoë 脑 ☃", "x" * 120 + "/" + "y" * 120])
def test_odd_and_long_paths_work(run, scans, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    source = shutil.copy(scans.t1, folder / "ä t1.nii.gz")
    ended = run(
        "synthesize", "--source", source, "--target", "FLAIR", "--method", "regression", "--output-dir", folder / "o"
    )
    assert ended.code == 0, ended.err
    assert read_volume(folder / "o" / "ä t1_FLAIR_synthetic.nii.gz").geometry.matches(scans.grid)


# --- JSON, bar -------------------------------------------------------------------------------------------------------


def test_json_lines_tell_progress_and_the_result(run, scans, tmp_path):
    ended = run("synthesize", "--source", scans.t1, "--target", "FLAIR", "--json", "--output-dir", tmp_path / "é")
    assert (ended.code, ended.err) == (0, "")
    *progress, result = map(json.loads, ended.out.splitlines())
    assert {line["event"] for line in progress} == {"progress"}
    fractions = [line["fraction"] for line in progress]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert ("FLAIR", "step 2 of 2") in [(line["target"], line["stage"]) for line in progress]
    assert result["event"] == "result"
    assert sorted(result["files"]) == sorted(map(str, (tmp_path / "é").iterdir()))
    assert result["provenance"]["FLAIR"] == read_provenance(result["files"][0])
    assert {"read", "sample", "write"} <= result["seconds"].keys()


def test_an_error_in_json_has_type_message_and_exit_code(run, tmp_path):
    ended = run("synthesize", "--source", f"T1={tmp_path / 'absent.nii'}", "--json")
    *_, error = map(json.loads, ended.out.splitlines())
    assert error == {
        "event": "error",
        "type": "InputError",
        "message": f"'{tmp_path / 'absent.nii'}' does not exist.",
        "exit_code": 3,
    }
    assert ended.code == 3


def test_a_terminal_shows_a_bar_with_target_stage_and_nothing_stays_of_it(run, scans, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run("synthesize", "--source", scans.t1, "--target", "FLAIR", "--output-dir", tmp_path)
    shown = terminal.getvalue().split("\r")
    assert any("FLAIR: step 2 of 2" in line and "%" in line for line in shown)
    assert any(line.startswith("reading") and "0%" in line for line in shown)
    assert shown[-1].startswith("read ")  # the table, on a clean line


def test_there_is_no_bar_where_stderr_is_no_terminal(run, scans, tmp_path):
    ended = run("synthesize", "--source", scans.t1, "--target", "FLAIR", "--output-dir", tmp_path)
    assert "%" not in ended.err and "\r" not in ended.err


# --- inspect, report, models, devices --------------------------------------------------------------------------------


def test_inspect_shows_grid_contrast_range_and_what_can_be_made(run, scans):
    ended = run("inspect", scans.t1)
    assert ended.code == 0
    assert "30 x 34 x 32 voxels of 2 x 2 x 2.1 mm" in ended.out
    assert "T1 (from its name)" in ended.out
    assert "T2, FLAIR (package micro)" in ended.out


def test_inspect_in_json_agrees_with_simpleitk(run, scans):
    fields = json.loads(run("inspect", scans.t2, "--json").out)
    image = sitk.ReadImage(scans.t2)
    voxels = sitk.GetArrayFromImage(image)
    assert tuple(fields["size"]) == image.GetSize()
    assert fields["spacing_mm"] == pytest.approx(image.GetSpacing())
    assert fields["origin_lps_mm"] == pytest.approx(image.GetOrigin())
    assert np.ravel(fields["direction_lps"]) == pytest.approx(image.GetDirection())
    assert (fields["intensity"]["minimum"], fields["intensity"]["maximum"]) == (voxels.min(), voxels.max())
    assert (fields["modality"], fields["can_make"], fields["provenance"]) == ("T2", {"micro": ["FLAIR"]}, None)


def test_inspect_is_honest_about_what_it_does_not_know(run, scans, tmp_path):
    source = shutil.copy(scans.t1, tmp_path / "scan.nii.gz")
    assert "not known (neither name nor header tells)" in run("inspect", source).out


def test_inspect_goes_on_after_a_bad_file_and_returns_its_exit_code(run, scans, tmp_path):
    ended = run("inspect", tmp_path / "absent.nii", scans.t1, scans.t2)
    assert ended.code == 3
    assert ended.err.count("\n") == 1 and "absent.nii" in ended.err
    assert scans.t1 in ended.out and scans.t2 in ended.out


def test_a_report_is_built_from_existing_files(run, scans, tmp_path):
    made = run("synthesize", "--source", scans.t1, "--target", "T2", "--method", "regression", "--output-dir", tmp_path)
    arguments = ("--source", scans.t1, "--synthetic", made.out.strip(), "--acquired", scans.t2)
    ended = run("report", *arguments, "--output", tmp_path / "pages" / "t2.html")
    assert ended.code == 0, ended.err
    assert everything_in(tmp_path / "pages") == ["t2.html", "t2.png"]
    page = (tmp_path / "pages" / "t2.html").read_text(encoding="utf-8")
    assert "PSNR" in page and "package_sha256" in page
    again = run("report", *arguments, "--output", tmp_path / "pages" / "t2.html")
    assert again.code == 7 and "is there already" in again.err


def test_a_page_that_is_not_called_html_is_refused(run, scans, tmp_path):
    ended = run("report", "--synthetic", f"T2={scans.t2}", "--output", tmp_path / "page.pdf")
    assert ended.code == 3 and ".html" in ended.err


def test_a_package_is_installed_listed_shown_verified_and_removed(run, packages, tiny_package):
    assert run("models", "install", tiny_package).code == 0
    listed = json.loads(run("models", "list", "--json").out)["packages"]
    assert [(each["name"], each["bundled"]) for each in listed] == [("micro", True), ("tiny", False)]
    assert listed[1]["path"] == str(packages.user / "tiny")
    shown = run("models", "show", "tiny").out
    assert "T2, FLAIR" in shown and "Tests only." in shown and "aldm (default), regression" in shown
    assert "whole: 6 files" in run("models", "verify", "tiny").out
    assert run("models", "install", tiny_package).code == 5
    assert run("models", "install", tiny_package, "--replace").code == 0
    assert run("models", "remove", "tiny").code == 0
    assert "tiny" not in run("models", "list").out
    assert run("models", "remove", "micro").code == 5


def test_a_damaged_package_is_listed_with_its_problem_and_not_verified(run, packages):
    (packages.micro / "LICENSE").write_text("Anything goes.")
    listed = run("models", "list")
    assert listed.code == 0 and "cannot be used" in listed.out
    assert run("models", "verify", "micro").code == 5


def test_devices_end_with_the_cpu(run):
    fields = json.loads(run("devices", "--json").out)
    assert fields["devices"][-1] == "cpu" and fields["auto"] in fields["devices"]
