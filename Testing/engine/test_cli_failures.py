"""How the command line fails: one sentence, a documented exit code, and nothing left on disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MissingModalitySynthLib import cli_models
from MissingModalitySynthLib.cli import stop_signals

pytestmark = pytest.mark.usefixtures("packages")


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- bad input -------------------------------------------------------------------------------------------------------


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
    "no file": (["--source", "T1="], 3, "'T1=' names no file"),
    "unknown source": (["--source", "T7={t1}"], 3, "'T7' is not a known contrast"),
    "unknown target": (["--source", "T1={t1}", "--target", "CT"], 3, "'CT' is not a known contrast"),
    "target is a source": (["--source", "T1={t1}", "--target", "T1"], 3, "both a source and a target"),
    "source unknown to the package": (["--source", "PD={t1}", "--target", "T2"], 3, "cannot start from PD"),
    "target unknown to the package": (["--source", "T1={t1}", "--target", "PD"], 3, "cannot make PD"),
    "nothing is left to make": (["--source", "T2={t1}", "FLAIR={t2}"], 3, "given as a source already"),
    "given twice": (["--source", "T1={t1}", "T1w={t2}"], 3, "T1 is given twice"),
    "two of unlisted contrasts": (
        ["--source", "other={t1}", "other={t2}"],
        3,
        "one such volume can be a source, alone",
    ),
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


# --- output ----------------------------------------------------------------------------------------------------------


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


# --- stopping --------------------------------------------------------------------------------------------------------


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


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: shells make background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), stop_signals(graceful=True) as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
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
