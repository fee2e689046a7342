"""From checkpoints to a model package that the engine and the Slicer module use at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from MissingModalitySynthLib.modality import MODALITIES
from MissingModalitySynthLib.model_package import ModelPackage
from MissingModalitySynthLib.package_store import write_package
from MissingModalitySynthLib.translators import METHODS

VERSION = "0.1.0"
INTENDED_USE = (
    "Research, and visual comparison by professionals who also see the acquired images. Not a medical device, not for "
    "diagnosis: a synthetic image shows what the model expects, not what was measured."
)
LIMITS = """\
- Pathology that the simulator does not know is not to be trusted: it may vanish, or appear where there is none.
- T1ce: uptake of contrast agent cannot be known from images without it. What looks like enhancement is a guess.
- Trained for adult brains, at 1 mm. Other ages, body parts, implants and strong artefacts are outside of what it knows.
- Fat, bone and face are drawn roughly; only the brain was modelled with care."""


def averaged_weights(checkpoint: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The averaged weights in a checkpoint of :mod:`~training.checkpoint`, and the number of steps done."""
    with safe_open(checkpoint, framework="pt") as file:
        step = json.loads(file.metadata()["state"])["step"]
        names = [name for name in file.keys() if name.startswith("average.")]
        return {name.removeprefix("average."): file.get_tensor(name) for name in names}, step


def export(
    configuration: dict[str, Any],
    run: Path,
    output: Path,
    translator_options: Callable[[str, dict[str, Any]], dict[str, Any]],
) -> ModelPackage:
    """Write the package of every method that was trained in a run; ALDM is the default method where it is there.

    Args:
        configuration: settings of the run.
        run: folder with one subfolder per stage.
        output: folder of the package; replaced if it exists.
        translator_options: keyword arguments of a stage's translator.

    Raises:
        FileNotFoundError: when no stage was trained.
    """
    methods, tensors, trained = {}, {}, []
    for method in METHODS:
        checkpoint = run / method / "checkpoint.safetensors"
        if not checkpoint.exists():
            continue
        weights, step = averaged_weights(checkpoint)
        methods[method] = translator_options(method, configuration)
        tensors[method] = weights
        count = sum(tensor.numel() for tensor in weights.values()) / 1e6
        trained.append(f"| {method} | {count:.1f} M | {step} | {_minutes(run / method / 'log.jsonl'):.0f} min |")
    if not methods:
        raise FileNotFoundError(f"The folder '{run}' has no checkpoint of any of {', '.join(METHODS)}.")
    anatomy = (
        "label maps of 20 individuals (SynthSeg training labels, Apache-2.0) and " if _has_labels(configuration) else ""
    )
    data = (
        f"Simulated contrast only: {anatomy}the MNI152 tissue maps that nilearn carries, with relaxation times, signal "
        "equations and artefacts of training/simulation. No patient's image was used."
    )
    title = f"MissingModalitySynth {output.name}"
    table = "\n".join(["| method | parameters | steps | time on the training machine |", "|---|---|---|---|", *trained])
    card = f"# {title}\n\n## Training data\n\n{data}\n\n## Training\n\n{table}\n\nRecipe: `training/configs`, networks "
    card += f"`{configuration['networks']}`.\n\n## Intended use\n\n{INTENDED_USE}\n\n## Limits\n\n{LIMITS}\n"
    return write_package(
        output,
        metadata={
            "version": VERSION,
            "changelog": {VERSION: "First weights, trained on simulated contrast."},
            "name": title,
            "task": "Synthesis of missing MRI contrasts of the brain",
            "description": "Any non-empty set of T1, T1ce, T2, FLAIR and PD to any other of them, brain, 1 mm.",
            "authors": "MissingModalitySynth developers",
            "copyright": "MissingModalitySynth developers",
            "license": "Apache-2.0",
            "intended_use": INTENDED_USE,
            "data_source": data,
            "sources": list(MODALITIES),
            "targets": list(MODALITIES),
            "spacing_mm": [1.0, 1.0, 1.0],
            "intensity_range": [-1.0, 1.0],
            "percentiles": [0.5, 99.5],
            "network_data_format": _data_format(),
        },
        networks={"default_method": next(iter(methods)), "methods": methods},
        tensors=tensors,
        model_card=card,
        licence=(Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8"),
        replace=True,
    )


def _has_labels(configuration: dict[str, Any]) -> bool:
    return configuration["data"]["anatomies"] is not None


def _minutes(log: Path) -> float:
    """Time of all stretches of a run: within one, the minutes in the log grow."""
    total = previous = 0.0
    for line in log.read_text(encoding="utf-8").splitlines():
        minutes = json.loads(line)["minutes"]
        total += minutes - previous if minutes >= previous else minutes
        previous = minutes
    return total


def _data_format() -> dict[str, Any]:
    """What goes in and comes out, in the terms of a MONAI bundle."""
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 1,
        "spatial_shape": ["16*n", "16*n", "16*n"],
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": False,
    }
    return {
        "inputs": {name: image | {"channel_def": {"0": name}} for name in MODALITIES},
        "outputs": {name: image | {"channel_def": {"0": name}} for name in MODALITIES},
    }
