"""With which program and variables a worker is started."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from MissingModalitySynthLib.worker.processes import worker_command, worker_environment


def test_outside_slicer_the_worker_has_this_python():
    assert worker_command() == [sys.executable, "-m", "MissingModalitySynthLib.worker"]


@pytest.mark.skipif(os.name != "posix", reason="Windows finds programs by their ending")
def test_inside_slicers_application_the_worker_has_its_launcher(monkeypatch, tmp_path):
    launcher = tmp_path / "PythonSlicer"
    launcher.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "slicer", SimpleNamespace())
    assert worker_command()[0] == sys.executable  # the bare MRML library has no application
    monkeypatch.setitem(sys.modules, "slicer", SimpleNamespace(app=None))
    assert worker_command()[0] == str(launcher)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 knows no PYTHONSAFEPATH")
def test_the_worker_is_found_from_any_folder_and_no_file_there_takes_a_modules_place(tmp_path):
    (tmp_path / "MissingModalitySynthLib.py").write_text("raise SystemExit('the wrong one')")
    environment = worker_environment({"SYSTEMROOT": os.environ.get("SYSTEMROOT", ""), "PYTHONPATH": "kept"})
    command = [*worker_command()[:1], "-c", "import MissingModalitySynthLib.worker, sys; print(sys.path)"]
    run = subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "kept" in run.stdout
    assert environment["PYTHONIOENCODING"] == "utf-8" and environment["PYTHONUNBUFFERED"] == "1"
    assert "HOME" not in environment and "PYTHONHOME" not in environment
