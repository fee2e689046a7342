"""How the worker's process is started, and how it is killed with all of its children."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # Windows only


def worker_command() -> list[str]:
    """The command that starts a worker: with ``PythonSlicer`` inside Slicer's application, else with this Python."""
    in_slicer = hasattr(sys.modules.get("slicer"), "app")
    interpreter = shutil.which("PythonSlicer") if in_slicer else None
    return [interpreter or sys.executable, "-m", "MissingModalitySynthLib.worker"]


def worker_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables of a worker.

    Args:
        environment: what to start from, in Slicer ``slicer.util.startupEnvironment()``, which lacks the variables that
            would give another Python Slicer's libraries; this process's own by default.
    """
    result = dict(os.environ if environment is None else environment)
    paths = [str(Path(__file__).resolve().parents[2]), result.get("PYTHONPATH", "")]
    result["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    result["PYTHONIOENCODING"] = "utf-8"
    result["PYTHONUNBUFFERED"] = "1"
    result["PYTHONSAFEPATH"] = "1"  # no module that happens to lie in the current folder, from Python 3.11 on
    return result


def kill_tree(pid: int) -> None:
    """Kill a child process and its descendants: ``PythonSlicer`` is a launcher, and killing it alone stops nothing."""
    try:
        import psutil
    except ImportError:  # only before the dependencies are installed
        _kill_tree_by_system(pid)
        return
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in tree:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue


def _kill_tree_by_system(pid: int) -> None:
    if os.name == "nt":
        subprocess.Popen(["taskkill", "/F", "/T", "/PID", str(pid)], creationflags=NO_WINDOW)
        return
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:  # what it launched sees the end of its stdin
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
