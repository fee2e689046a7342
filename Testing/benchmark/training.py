"""What the training reaches, in numbers that can be made again.

    python Testing/benchmark/training.py overfit --folder FOLDER    two heads by heart, regression and bridge: T1 -> T2
    python Testing/benchmark/training.py compare --folder FOLDER    paper mode and bridge, trained and judged alike

Both resume what is in FOLDER already. On two CPU cores ``overfit`` takes about 30 minutes and ``compare`` about 70.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from training.configuration import load_configuration
from training.stages import load_translator, make_examples

HERE = Path(__file__).parent
TARGET = "T2"


def train(stage: str, recipe: Path, run: Path, *overrides: str) -> None:
    """One stage, in a process of its own."""
    command = [sys.executable, "-m", "training", stage, "--config", recipe, "--run", run, *overrides]
    subprocess.run([str(part) for part in command], check=True)


def psnr(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """In dB, inside the mask, of images in [0, 1]."""
    return float(-10 * np.log10(np.mean((prediction[mask] - truth[mask]) ** 2)))


def fitted(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with the gain and offset that bring it nearest to the truth inside the mask."""
    gain, offset = np.polyfit(image[mask], truth[mask], 1)
    return np.clip(gain * image + offset, 0, 1)


@torch.no_grad()
def overfit(folder: Path) -> None:
    """Train on two heads, and print the PSNR of T1 -> T2 on these same heads."""
    recipe = HERE / "overfit.yaml"
    for stage in ("regression", "diffusion"):
        train(stage, recipe, folder)
    configuration = load_configuration(recipe)
    data = configuration["data"]
    examples = make_examples(configuration, folder, all_images=True)
    models = {method: load_translator(method, configuration, folder) for method in ("regression", "aldm")}
    contenders = [("regression", 1), ("aldm", 1), ("aldm", 2), ("aldm", 4)]
    print("| head | affine copy |", " | ".join(f"{method}, {steps} steps" for method, steps in contenders), "|")
    print("|" + " --- |" * (2 + len(contenders)))
    for number in range(data["cases"]):
        numbers = range(number * data["pairs_per_case"], (number + 1) * data["pairs_per_case"])
        pair = next(pair for pair in map(examples, numbers) if pair.target == TARGET)
        truth = (pair.image.numpy() + 1) / 2
        mask = truth > 0.02
        (source,) = pair.sources.values()
        scores = [psnr(fitted((source.numpy() + 1) / 2, truth, mask), truth, mask)]
        for method, steps in contenders:
            model = models[method]
            generator = torch.Generator().manual_seed(0)
            condition = model.condition(model.encode(pair.sources), TARGET)
            latents = model.sample(condition, TARGET, steps=steps, generator=generator, on_step=lambda *_: None)
            scores.append(psnr(((model.decode(latents).numpy() + 1) / 2).clip(0, 1), truth, mask))
        print(f"| {number + 1} |", " | ".join(f"{score:.1f}" for score in scores), "|")


def compare(folder: Path, cases: int) -> None:
    """Train the stages, both modes of the diffusion for as many steps, and print one table of the evaluation."""
    recipe = HERE / "compare.yaml"
    bridge, paper = folder / "bridge", folder / "paper"
    for stage in ("autoencoder", "spade", "regression"):
        train(stage, recipe, bridge)
    train("diffusion", recipe, bridge, "diffusion.mode=bridge")
    if not paper.exists():
        for stage in ("autoencoder", "spade"):
            shutil.copytree(bridge / stage, paper / stage)
    train("diffusion", recipe, paper, "diffusion.mode=paper", "diffusion.steps=50")
    records = []
    for run, overrides, steps in (
        (bridge, ("diffusion.mode=bridge",), "1,2,4"),
        (paper, ("diffusion.mode=paper", "diffusion.steps=50"), "50"),
    ):
        output = folder / f"evaluation-{run.name}"
        train("evaluate", recipe, run, *overrides, "--output", output, "--cases", cases, "--steps", steps)
        found = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
        records += [record | {"mode": run.name} for record in found["records"]]
    print_comparison(records)


def print_comparison(records: list[dict]) -> None:
    """Mean over all pairs and heads, a row a method."""
    rows: dict[str, list[dict]] = {}
    for record in records:
        repeated = record["mode"] == "paper" and not record["method"].startswith("aldm")
        if not repeated:  # what both runs share is evaluated twice
            rows.setdefault(record["method"], []).append(record)
    print("| | PSNR | SSIM | PSNR, masked | seconds per volume |")
    print("| --- | --- | --- | --- | --- |")
    for method, members in rows.items():
        means = [np.mean([record[key] for record in members]) for key in ("psnr", "ssim", "psnr_mask")]
        seconds = [record["seconds"] for record in members if "seconds" in record]
        cells = [f"{means[0]:.2f}", f"{means[1]:.3f}", f"{means[2]:.2f}", f"{np.mean(seconds):.2f}" if seconds else ""]
        print(f"| {method} |", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overfit", "compare"))
    parser.add_argument("--folder", type=Path, required=True, help="of the runs")
    parser.add_argument("--cases", type=int, default=6, help="heads that compare evaluates on")
    options = parser.parse_args()
    if options.what == "overfit":
        overfit(options.folder)
    else:
        compare(options.folder, options.cases)


if __name__ == "__main__":
    main()
