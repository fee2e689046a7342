"""The command line: what it writes and says, how it ends, and that nothing stays on disk when it fails."""

import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from MissingModalitySynthLib import __version__, cli_models, errors, model_package
from MissingModalitySynthLib.cli import build_parser, main, stop_signals
from MissingModalitySynthLib.errors import OutputError, SynthesisError
from MissingModalitySynthLib.output_folder import all_or_nothing
from MissingModalitySynthLib.volume import Geometry
from MissingModalitySynthLib.volume_io import read_provenance, read_volume, write_volume

GRID = Geometry((30, 34, 32), (2.0, 2.0, 2.1), (-30.0, -34.0, -33.0))
OBLIQUE = Geometry((40, 36, 30), (1.6, 2.0, 2.0), (-26, -40, -28), ((0.96, -0.28, 0), (0.28, 0.96, 0), (0, 0, 1)))


@pytest.fixture(autouse=True)
def packages(tmp_path_factory, monkeypatch, tiny_package) -> SimpleNamespace:
    """The tiny package is bundled as "micro", the default; the user's folder is empty."""
    folders = tmp_path_factory.mktemp("packages")
    shutil.copytree(tiny_package, folders / "bundled" / "micro")
    monkeypatch.setattr(model_package, "bundled_folder", lambda: folders / "bundled")
    monkeypatch.setenv("MISSING_MODALITY_SYNTH_MODELS", str(folders / "user"))
    return SimpleNamespace(micro=folders / "bundled" / "micro", user=folders / "user")


@pytest.fixture(scope="session")
def scans(tmp_path_factory, smooth_head) -> SimpleNamespace:
    """A T1, a T2 of the same head on an oblique grid, and a T2 far away."""
    folder = tmp_path_factory.mktemp("scans of Zoë")
    away = Geometry(GRID.size, GRID.spacing, (500.0, 0.0, 0.0))
    write_volume(smooth_head(GRID), folder / "patient7_t1.nii.gz")
    write_volume(smooth_head(OBLIQUE), folder / "patient7_t2.mha")
    far = smooth_head(GRID)
    write_volume(type(far)(far.array, away, far.name), folder / "far_t2.nii.gz")
    return SimpleNamespace(
        folder=folder,
        t1=str(folder / "patient7_t1.nii.gz"),
        t2=str(folder / "patient7_t2.mha"),
        far=str(folder / "far_t2.nii.gz"),
    )


@pytest.fixture
def run(capsys):
    """Function: arguments -> exit code, stdout, stderr of a run in this process."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), capsys.readouterr(), strict=True)))

    return call


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- help -----------------------------------------------------------------------------------------------------------


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


def test_help_comes_within_half_a_second_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from MissingModalitySynthLib.cli import main\n"
        "try: main(['synthesize', '--help'])\n"
        "except SystemExit: print('heavy:', {'torch', 'monai', 'SimpleITK', 'numpy', 'scipy'} & set(sys.modules))"
    )
    spent = []
    for _ in range(3):
        started = time.monotonic()
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        spent.append(time.monotonic() - started)
    assert "heavy: set()" in ended.stdout
    assert min(spent) < 0.5


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


# --- synthesize -----------------------------------------------------------------------------------------------------


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
    assert made.geometry.matches(GRID)
    assert made.array.min() >= 0
    provenance = read_provenance(ended.out.strip())
    assert (provenance["target"], provenance["sources"], provenance["package"]) == (
        "FLAIR",
        {"T1": "patient7_t1"},
        "micro",
    )


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


@pytest.mark.parametrize("name", ["with two spaces", "Zoë 脑 ☃", "x" * 120 + "/" + "y" * 120])
def test_odd_and_long_paths_work(run, scans, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    source = shutil.copy(scans.t1, folder / "ä t1.nii.gz")
    ended = run(
        "synthesize", "--source", source, "--target", "FLAIR", "--method", "regression", "--output-dir", folder / "o"
    )
    assert ended.code == 0, ended.err
    assert read_volume(folder / "o" / "ä t1_FLAIR_synthetic.nii.gz").geometry.matches(GRID)


# --- JSON, bar ------------------------------------------------------------------------------------------------------


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


# --- bad input ------------------------------------------------------------------------------------------------------


def image(shape=(20, 20, 20), **changes) -> np.ndarray:
    """Random voxels (k, j, i), some of them replaced: ``at_0=nan``."""
    array = np.random.default_rng(1).uniform(0, 100, shape).astype(np.float32)
    for value in changes.values():
        array.flat[7] = value
    return array


def write_sitk(path: Path, array: np.ndarray, *, vector: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(path))
    return path


def write_nrrd(path: Path, geometry: str) -> Path:
    header = f"NRRD0004\ntype: float\ndimension: 3\nsizes: 20 20 20\nencoding: raw\nendian: little\n{geometry}\n\n"
    path.write_bytes(header.encode() + image().tobytes())
    return path


def truncated(path: Path) -> Path:
    write_sitk(path, image())
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def text(path: Path) -> Path:
    path.write_text("This is no image.")
    return path


SHEAR = "space: left-posterior-superior\nspace directions: (1,0,0) (0.5,1,0) (0,0,1)\nspace origin: (0,0,0)"
BAD_FILES = {
    "missing": (lambda folder: folder / "no.nii", 3, "does not exist"),
    "unreadable": (lambda folder: text(folder / "t1.nii"), 3, "t1.nii"),
    "unknown format": (lambda folder: text(folder / "t1.docx"), 3, "no supported format"),
    "truncated": (lambda folder: truncated(folder / "t1.nii"), 3, "truncated"),
    "empty folder": (lambda folder: folder, 3, "no DICOM series"),
    "2D": (lambda folder: write_sitk(folder / "t1.mha", image((40, 40))), 3, "2D image"),
    "4D": (lambda folder: write_sitk(folder / "t1.nii", image((3, 20, 20, 20))), 3, "4D image"),
    "RGB": (
        lambda folder: write_sitk(folder / "t1.mha", image((20, 20, 20, 3)).astype(np.uint8), vector=True),
        3,
        "colour",
    ),
    "vector": (lambda folder: write_sitk(folder / "t1.mha", image((20, 20, 20, 2)), vector=True), 3, "vector image"),
    "NaN": (lambda folder: write_sitk(folder / "t1.nii", image(at=np.nan)), 3, "NaN or infinite"),
    "infinite": (lambda folder: write_sitk(folder / "t1.nii", image(at=np.inf)), 3, "NaN or infinite"),
    "constant": (lambda folder: write_sitk(folder / "t1.nii", np.full((20, 20, 20), 5.0)), 3, "constant"),
    "zero spacing": (lambda folder: write_nrrd(folder / "t1.nrrd", "spacings: 0 1 1"), 4, "spacing"),
    "negative spacing": (lambda folder: write_nrrd(folder / "t1.nrrd", "spacings: 1 -1 1"), 4, "spacing"),
    "sheared": (lambda folder: write_nrrd(folder / "t1.nrrd", SHEAR), 4, "orthonormal"),
    "too small": (lambda folder: write_sitk(folder / "t1.nii", image((20, 20, 15))), 4, "15 voxels"),
    "too large": (lambda folder: write_sitk(folder / "t1.nii", image((16, 16, 513))), 4, "513 voxels"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence_before_anything_is_made(run, tmp_path, case):
    make, code, phrase = BAD_FILES[case]
    (tmp_path / "in").mkdir()
    ended = run("synthesize", "--source", f"T1={make(tmp_path / 'in')}", "--output-dir", tmp_path / "out")
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.startswith("missing-modality-synth: error: ") and ended.err.count("\n") == 1
    assert phrase in ended.err
    assert not (tmp_path / "out").exists()


BAD_REQUESTS = {
    "unknown source": (["--source", "T7={t1}"], 3, "'T7' is not a known contrast"),
    "unknown target": (["--source", "T1={t1}", "--target", "CT"], 3, "'CT' is not a known contrast"),
    "target is a source": (["--source", "T1={t1}", "--target", "T1"], 3, "both a source and a target"),
    "source unknown to the package": (["--source", "PD={t1}", "--target", "T2"], 3, "cannot start from PD"),
    "target unknown to the package": (["--source", "T1={t1}", "--target", "PD"], 3, "cannot make PD"),
    "nothing is left to make": (["--source", "T2={t1}", "FLAIR={t2}"], 3, "given as a source already"),
    "given twice": (["--source", "T1={t1}", "T1w={t2}"], 3, "T1 is given twice"),
    "reference is no source": (["--source", "T1={t1}", "--reference", "T2"], 3, "none of the sources"),
    "no overlap": (["--source", "T1={t1}", "T2={far}", "--target", "FLAIR"], 4, "share only 0 %"),
    "acquired elsewhere": (["--source", "T1={t1}", "--acquired", "T2={far}"], 4, "share only 0 %"),
    "acquired is no target": (
        ["--source", "T1={t1}", "--target", "FLAIR", "--acquired", "T2={t2}"],
        3,
        "of the targets",
    ),
    "no steps": (["--source", "T1={t1}", "--steps", "0"], 3, "number of steps"),
    "negative seed": (["--source", "T1={t1}", "--seed", "-1"], 3, "seed"),
    "unknown device": (["--source", "T1={t1}", "--device", "abacus"], 3, "no device 'abacus'"),
    "unknown method": (["--source", "T1={t1}", "--method", "magic"], 5, "no method 'magic'"),
    "unknown package": (["--source", "T1={t1}", "--package", "nano"], 5, '"nano"'),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_request_that_cannot_be_done_is_refused_in_one_sentence(run, scans, tmp_path, case):
    arguments, code, phrase = BAD_REQUESTS[case]
    filled = [each.format(**vars(scans)) for each in arguments]
    ended = run("synthesize", *filled, "--output-dir", tmp_path / "a" / "b", "--quiet")
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith("missing-modality-synth: error: ") and ended.err.count("\n") == 1
    assert phrase in ended.err
    assert everything_in(tmp_path) == []


def test_a_file_whose_contrast_is_not_clear_must_be_named(run, scans, tmp_path):
    source = shutil.copy(scans.t1, tmp_path / "scan.nii.gz")
    ended = run("synthesize", "--source", source)
    assert ended.code == 3
    assert f"T1={source}" in ended.err


@pytest.mark.parametrize("file", ["SHA256SUMS", "configs/networks.json", "models/aldm.safetensors"])
def test_a_damaged_package_is_refused(run, scans, packages, tmp_path, monkeypatch, file):
    monkeypatch.setattr("MissingModalitySynthLib.synthesis._loaded", {})  # weights of earlier runs in this process
    path = packages.micro / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    ended = run("synthesize", "--source", scans.t1, "--target", "FLAIR", "--output-dir", tmp_path / "out")
    assert ended.code == 5
    assert '"micro" is damaged' in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["synthesize"], ["paint"], ["synthesize", "--source", "a", "--steps", "two"]]
)
def test_a_command_line_that_is_not_understood_ends_with_2(run, arguments):
    ended = run(*arguments, "--json")
    assert ended.code == 2
    assert ended.err.startswith("missing-modality-synth: error: ") and "--help" in ended.err
    assert json.loads(ended.out)["exit_code"] == 2


def test_a_defect_of_the_program_is_one_sentence_and_with_debug_a_traceback(run, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli_models, "list_models", broken)
    ended = run("models", "list")
    assert ended.code == 1
    assert ended.err.count("\n") == 1 and "Unexpected ZeroDivisionError (division by zero)" in ended.err
    assert "Traceback" in run("models", "list", "--debug").err


# --- output ---------------------------------------------------------------------------------------------------------


def test_existing_files_are_only_replaced_with_overwrite(run, scans, tmp_path):
    arguments = ("synthesize", "--source", scans.t1, "--target", "FLAIR", "--output-dir", tmp_path)
    first = Path(run(*arguments).out.strip())
    before = first.read_bytes()
    ended = run(*arguments, "--seed", 1)
    assert ended.code == 7 and "is there already" in ended.err
    assert first.read_bytes() == before
    assert run(*arguments, "--seed", 1, "--overwrite").code == 0
    assert first.read_bytes() != before
    assert len(everything_in(tmp_path)) == 2


def test_an_output_folder_that_cannot_be_made_is_found_before_computing(run, scans, tmp_path):
    (tmp_path / "file").write_text("in the way")
    ended = run("synthesize", "--source", scans.t1, "--json", "--output-dir", tmp_path / "file" / "out")
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.code == 7
    assert lines[-1]["type"] == "OutputError" and str(tmp_path / "file") in lines[-1]["message"]
    assert "load model" not in [line.get("stage") for line in lines]


def test_a_folder_without_permission_is_found_before_computing(run, scans, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # also where the tests run as root, who may write anywhere
    ended = run("synthesize", "--source", scans.t1, "--output-dir", tmp_path / "new")
    assert ended.code == 7
    assert "can't be written (Permission denied)" in ended.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("limit", [1000, 300_000], ids=["first volume", "report"])
def test_a_disk_that_takes_no_more_leaves_nothing_behind(run, scans, tmp_path, limit):
    resource = pytest.importorskip("resource", reason="the size of files can only be limited on POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # writing on fails, as on a full disk
    try:
        ended = run("synthesize", "--source", scans.t1, "--report", "--output-dir", tmp_path / "a" / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.code == 7
    assert str(tmp_path / "a" / "b" / "patient7_t1_") in ended.err
    assert ".unfinished" not in ended.err
    assert everything_in(tmp_path) == []


def test_when_a_rename_fails_all_files_of_the_run_go_and_the_old_ones_come_back(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old a")
    (tmp_path / "c").write_text("old c")
    real, calls = os.replace, itertools.count()

    def full_at_the_fourth(source, target):
        if next(calls) == 3:
            raise OSError(28, "No space left on device")
        real(source, target)

    with pytest.raises(OutputError, match="No space left on device"):
        with all_or_nothing(tmp_path, ["a", "b", "c"], overwrite=True) as stage:
            for name in "abc":
                (stage / name).write_text(f"new {name}")
            monkeypatch.setattr(os, "replace", full_at_the_fourth)
    assert everything_in(tmp_path) == ["a", "c"]
    assert [(tmp_path / name).read_text() for name in "ac"] == ["old a", "old c"]


def test_folders_made_for_a_failed_run_go_again_but_not_what_others_put_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), all_or_nothing(tmp_path / "a" / "b", ["x"]):
        (tmp_path / "a" / "theirs").write_text("kept")
        raise KeyboardInterrupt
    assert everything_in(tmp_path) == ["a", "a/theirs"]


def test_a_name_that_the_disk_cannot_hold_is_found_at_once(tmp_path):
    with pytest.raises(OutputError, match="can't be written"), all_or_nothing(tmp_path / "new", ["x" * 300]):
        pytest.fail("the block must not be entered")
    assert everything_in(tmp_path) == []


# --- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to whole consoles only")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_at_the_next_step_with_130_and_one_sentence_and_leaves_nothing(
    scans, tiny_package, tmp_path, number
):
    arguments = ["--source", scans.t1, "--target", "FLAIR", "--steps", "1000", "--package", str(tiny_package)]
    before = signal.signal(number, signal.SIG_DFL)  # a shell's background jobs, and so their children, ignore Ctrl-C
    process = subprocess.Popen(
        [sys.executable, "-m", "MissingModalitySynthLib", "synthesize", *arguments, "--json", "--output-dir", "out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # threads that wait for a busy core make tiny networks slow
    )
    signal.signal(number, before)
    for line in process.stdout:
        if json.loads(line).get("stage") == "step 3 of 1000":
            break
    assert (tmp_path / "out").is_dir()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "missing-modality-synth: Cancelled; nothing was kept.\n"
    assert json.loads(out.splitlines()[-1])["type"] == "Cancelled"
    assert everything_in(tmp_path) == []


def test_the_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), stop_signals(patient=True) as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        signal.raise_signal(signal.SIGINT)


def test_commands_without_steps_stop_at_the_first_ctrl_c(run, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(cli_models, "list_models", lambda *_: signal.raise_signal(signal.SIGINT))
    ended = run("models", "list")
    assert (ended.code, ended.err) == (130, "missing-modality-synth: Cancelled; nothing was kept.\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reader_that_goes_away_is_no_defect():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "MissingModalitySynthLib", "models", "list", "--json"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (7, "")


# --- inspect, report, models, devices -------------------------------------------------------------------------------


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
