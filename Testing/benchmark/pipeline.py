"""Cost of the command line, from process start to file written, as tables: time, memory, share of each stage, scaling.

    python Testing/benchmark/pipeline.py [--package micro] [--method METHOD] [--untrained] [--quick]

``--untrained`` measures MS-SPADE and the bridge in the size "micro" with random weights: the cost does not depend on
them. Every run is a process of its own on a phantom head that fills the grid. Peak memory is what the operating system
counts for that process.
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
ABOUT_PARTS = ("trained_on", "segmenter", "zero_shot")  # metadata of parts that a package may lack
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
        target = [
            "--target",
            "FLAIR",
            "--output-dir",
            folder,
            "--whole-head",
            "--json",
        ]  # there is no brain in a phantom
        command = [*COMMAND, "synthesize", "--source", f"T1={source}", *target, *options]
        seconds, memory, text = run_process(command)
    events = [json.loads(line) for line in text.splitlines()]
    stages = next(event for event in events if event["event"] == "result")["seconds"]
    del stages["total"]  # without the start of Python; the process is timed here
    return {"seconds": seconds, "memory": memory, "stages": stages}


def untrained_package(folder: Path) -> Path:
    """The bundled package with a method "aldm" of random weights in the place of its own methods."""
    from MissingModalitySynthLib.model_package import load_package
    from MissingModalitySynthLib.networks.configurations import CONFIGURATIONS
    from MissingModalitySynthLib.package_store import write_package
    from MissingModalitySynthLib.translators.aldm import AldmTranslator

    bundled = load_package("micro")
    metadata = {key: value for key, value in bundled.metadata.items() if key not in ABOUT_PARTS}
    parts = {name: CONFIGURATIONS["micro"][name] for name in ("first_stage", "spade", "denoiser")}
    options = {"modalities": list(bundled.sources), **parts, "steps": 2, "sigma": 0.3}
    networks = {"default_method": "aldm", "methods": {"aldm": options}}
    tensors = {"aldm": AldmTranslator(**options).state_dict()}
    texts = {"model_card": "Random weights.\n", "licence": "Apache-2.0\n"}
    return write_package(folder, metadata=metadata, networks=networks, tensors=tensors, **texts).path


def print_table(header: list[str], rows: list[list[str]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |")
    print()


def measure(options: list[str], *, quick: bool) -> None:
    """Print the tables for a package and method."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")

    paper = synthesize((192, 192, 144), options)
    rows = [[stage, f"{s:.2f}", f"{100 * s / paper['seconds']:.0f} %"] for stage, s in paper["stages"].items()]
    rest = paper["seconds"] - sum(paper["stages"].values())
    rows.append(["start and end of Python", f"{rest:.2f}", f"{100 * rest / paper['seconds']:.0f} %"])
    print("192x192x144, T1 to FLAIR, process start to file written\n")
    print_table(["stage", "s", "share"], [*rows, ["all", f"{paper['seconds']:.2f}", f"{paper['memory']:.2f} GB peak"]])

    if not quick:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="micro")
    parser.add_argument("--method")
    parser.add_argument("--untrained", action="store_true", help="ALDM's micro networks with random weights")
    parser.add_argument("--quick", action="store_true", help="only the 192x192x144 volume")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        package = untrained_package(Path(folder) / "untrained") if chosen.untrained else chosen.package
        options = ["--package", str(package), *(["--method", chosen.method] if chosen.method else [])]
        measure(options, quick=chosen.quick)


if __name__ == "__main__":
    main()
