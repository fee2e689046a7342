"""What the training reaches, in numbers that can be made again.

    python Testing/benchmark/learning.py overfit --folder FOLDER    two heads by heart, regression and bridge: T1 -> T2
    python Testing/benchmark/learning.py compare --folder FOLDER    paper mode and bridge, trained and judged alike

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
from training.examples import make_examples
from training.stages import load_translator

HERE = Path(__file__).parent
TARGET = "T2"
# MONAI's diffusion UNet dies at the learning rates that suit the plain UNet.
DIFFUSION_RATE = "optimizer.learning_rate=5e-4"


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
    for stage in ("regression", "spade"):
        train(stage, recipe, folder)
    train("diffusion", recipe, folder, DIFFUSION_RATE)
    configuration = load_configuration(recipe)
    data = configuration["data"]
    methods = {"regression": (1,), "aldm": (1, 2, 4)}
    print("| head | method | affine copy |", " | ".join(f"{steps} steps" for steps in methods["aldm"]), "|")
    print("|" + " --- |" * 6)
    for method, all_steps in methods.items():
        model = load_translator(method, configuration, folder)
        # What is drawn depends on what is asked for: these are the very pairs that the method was trained on.
        examples = make_examples(configuration, folder, all_images=method == "regression")
        for head in range(data["cases"]):
            numbers = range(head * data["pairs_per_case"], (head + 1) * data["pairs_per_case"])
            pair = next(pair for pair in map(examples, numbers) if pair.target == TARGET)
            truth = (pair.image.numpy() + 1) / 2
            mask = truth > 0.02
            (source,) = pair.sources.values()
            scores = [psnr(fitted((source.numpy() + 1) / 2, truth, mask), truth, mask)]
            for steps in all_steps:
                generator = torch.Generator().manual_seed(0)
                condition = model.condition(model.encode(pair.sources), TARGET)
                latents = model.sample(condition, TARGET, steps=steps, generator=generator, on_step=lambda *_: None)
                scores.append(psnr(((model.decode(latents).numpy() + 1) / 2).clip(0, 1), truth, mask))
            print(f"| {head + 1} | {method} |", " | ".join(f"{score:.1f}" for score in scores), "|")


def compare(folder: Path, cases: int) -> None:
    """Train the stages, both modes of the diffusion for as many steps, and print one table of the evaluation."""
    recipe = HERE / "compare.yaml"
    bridge, paper = folder / "bridge", folder / "paper"
    for stage in ("spade", "regression"):
        train(stage, recipe, bridge)
    train("diffusion", recipe, bridge, "diffusion.mode=bridge", DIFFUSION_RATE)
    if not paper.exists():
        shutil.copytree(bridge / "spade", paper / "spade")
    train("diffusion", recipe, paper, "diffusion.mode=paper", "diffusion.steps=50", DIFFUSION_RATE)
    records = []
    for run, overrides, steps in (
        (bridge, ("diffusion.mode=bridge",), "1,2,4"),
        (paper, ("diffusion.mode=paper", "diffusion.steps=50"), "50"),
    ):
        output = folder / f"evaluation-{run.name}"
        train(
            "evaluate", recipe, run, *overrides, "--output", output, "--cases", cases, "--steps", steps, "--samples", 1
        )
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
    parser.add_argument("--cases", type=int, default=4, help="heads that compare evaluates on")
    options = parser.parse_args()
    if options.what == "overfit":
        overfit(options.folder)
    else:
        compare(options.folder, options.cases)


if __name__ == "__main__":
    main()
