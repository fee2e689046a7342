"""How often the warnings about sources are right: false alarms on right names, and wrong names that are noticed.

    python Testing/benchmark/out_of_range.py [--package micro] [--anatomies FOLDER] [--heads 10] [--subjects SCANS]

Simulated heads (acquired with wide protocols and artefacts, half of them skull-stripped) and scans, each contrast under
its own name and under every other; T1 and T1ce are never told apart. Then volumes that are no head: noise, a ball, a
head of one signal.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from MissingModalitySynthLib.canonical import canonical_grid, to_canonical
from MissingModalitySynthLib.input_range import range_warnings
from MissingModalitySynthLib.intensity import normalise
from MissingModalitySynthLib.modality import MODALITIES
from MissingModalitySynthLib.model_package import ModelPackage, load_package
from MissingModalitySynthLib.volume import Volume
from training.configuration import load_configuration
from training.data.readers import find_subjects
from training.evaluation.cases import Case, read_case, simulated_cases

RECIPE = Path(__file__).parents[2] / "training" / "configs" / "micro-simulated.yaml"


def warned(package: ModelPackage, volume: Volume, name: str) -> bool:
    """Whether anything is said of a volume under the name of a contrast."""
    grid = canonical_grid(volume, package.spacing, 16)
    image = torch.from_numpy(normalise(to_canonical(volume, grid), native=volume.array)[0])[None, None]
    return bool(range_warnings(package, {name: volume}, {name: image}, grid.geometry.spacing))


def odd_volumes(case: Case) -> Iterator[Volume]:
    """Volumes on the grid of a head that show none."""
    like = next(iter(case.targets.values()))
    rng = np.random.default_rng(0)
    shape = like.array.shape
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    ball = sum(axis**2 for axis in axes) < 0.6
    noise = rng.random(shape)
    for name, array in (
        ("noise", noise),
        ("ball", ball * (1 + 0.02 * noise)),
        ("flat", case.mask * (1 + 0.02 * noise)),
    ):
        yield Volume(array.astype(np.float32), like.geometry, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="micro", help="name or folder")
    parser.add_argument("--anatomies", help="label maps; default: the MNI152 maps alone")
    parser.add_argument("--heads", type=int, default=10, help="simulated heads (default: 10)")
    parser.add_argument("--subjects", type=Path, help="folder of scans")
    options = parser.parse_args()
    package = load_package(options.package)
    overrides = [f"data.anatomies={options.anatomies or 'null'}", "data.skull_strip=0.5"]
    simulated = simulated_cases(load_configuration(RECIPE, overrides), options.heads)
    scans = (read_case(each) for each in (find_subjects(options.subjects, "auto") if options.subjects else ()))
    answers: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for kind, cases in (("simulated", simulated), ("scans", scans)):
        for case in cases:
            for name, volume in case.sources.items():
                answers[kind, "right"].append(warned(package, volume, name))
                wrong = [other for other in MODALITIES if {name, other} != {"T1", "T1ce"} and other != name]
                answers[kind, "wrong"] += [warned(package, volume, other) for other in wrong]
            if kind == "simulated":
                answers["no head", "wrong"] += [warned(package, odd, "T1") for odd in odd_volumes(case)]
    print("| | named right: false alarms | named wrong: noticed |")
    print("|---|---|---|")
    for kind in dict.fromkeys(kind for kind, _ in answers):
        cells = [
            f"{sum(found)} of {len(found)}" if (found := answers.get((kind, what))) else ""
            for what in ("right", "wrong")
        ]
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
