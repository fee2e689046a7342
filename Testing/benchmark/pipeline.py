"""Cost of the command line, from process start to file written, as tables: time, memory, share of each stage, scaling.

    python Testing/benchmark/pipeline.py [--package micro] [--method METHOD] [--quick]

Every run is a process of its own on a phantom head that fills the grid. Peak memory is the operating system's count for
that process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import write_volume

COMMAND = [sys.executable, "-m", "MissingModalitySynthLib"]
MARGIN = 5  # voxels of air around the phantom, which the engine keeps as margin: the network's grid is the volume's


def phantom(size: tuple[int, int, int]) -> Volume:
    """An ellipsoid with a smooth inside, in air."""
    axes = [np.linspace(-1, 1, n) * n / (n - 2 * MARGIN) for n in size]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = (x**2 + y**2 + z**2) < 1
    texture = 600 + 200 * np.sin(9 * x) * np.cos(7 * y) * np.sin(8 * z)
    return Volume((inside * texture).astype(np.float32), Geometry(size), "phantom")


def run_process(command: list[str]) -> tuple[float, float, str]:
    """Wall seconds, peak memory in GB, and standard output of a command that must succeed."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}.")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit / 1e9, text


def synthesize(size: tuple[int, int, int], options: list[str]) -> dict:
    """One run from T1 to FLAIR: seconds in all and by stage, peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "phantom.nii"
        write_volume(phantom(size), source)
        target = ["--target", "FLAIR", "--output-dir", folder, "--json"]
        command = [*COMMAND, "synthesize", "--source", f"T1={source}", *target, *options]
        seconds, memory, text = run_process(command)
    events = [json.loads(line) for line in text.splitlines()]
    stages = next(event for event in events if event["event"] == "result")["seconds"]
    del stages["total"]  # without the start of Python; the process is timed here
    return {"seconds": seconds, "memory": memory, "stages": stages}


def print_table(header: list[str], rows: list[list[str]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="micro")
    parser.add_argument("--method")
    parser.add_argument("--quick", action="store_true", help="only the 192x192x144 volume")
    chosen = parser.parse_args()
    options = ["--package", chosen.package, *(["--method", chosen.method] if chosen.method else [])]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")

    paper = synthesize((192, 192, 144), options)
    rows = [[stage, f"{s:.2f}", f"{100 * s / paper['seconds']:.0f} %"] for stage, s in paper["stages"].items()]
    rest = paper["seconds"] - sum(paper["stages"].values())
    rows.append(["start and end of Python", f"{rest:.2f}", f"{100 * rest / paper['seconds']:.0f} %"])
    print("192x192x144, T1 to FLAIR, process start to file written\n")
    print_table(["stage", "s", "share"], [*rows, ["all", f"{paper['seconds']:.2f}", f"{paper['memory']:.2f} GB peak"]])

    if not chosen.quick:
        rows = []
        for n in (96, 128, 160, 192):
            run = synthesize((n, n, n), options)
            network = sum(run["stages"][stage] for stage in ("encode", "condition", "sample", "decode"))
            per_voxel = f"{1e6 * network / n**3:.2f}"
            rows.append([f"{n}³", f"{run['seconds']:.1f}", f"{network:.2f}", per_voxel, f"{run['memory']:.2f}"])
        print_table(["volume", "s in all", "s in networks", "µs per voxel in networks", "GB peak"], rows)

    rows = []
    for name, command in (
        ("import MissingModalitySynthLib", [sys.executable, "-c", "import MissingModalitySynthLib"]),
        ("python -c pass, for comparison", [sys.executable, "-c", "pass"]),
        ("missing-modality-synth --help", [*COMMAND, "--help"]),
    ):
        rows.append([name, f"{min(run_process(command)[0] for _ in range(5)):.3f}"])
    print_table(["command", "s (best of 5)"], rows)


if __name__ == "__main__":
    main()
