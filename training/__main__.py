"""``python -m training STAGE --config FILE --run FOLDER [key=value ...]``: train the networks, then make a package."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from MissingModalitySynthLib.modality import MODALITIES
from MissingModalitySynthLib.networks.configurations import CONFIGURATIONS
from MissingModalitySynthLib.translators import METHODS
from MissingModalitySynthLib.translators.base import Translator

from .batches import simulated_pairs
from .configuration import load_configuration
from .export import export
from .loop import train
from .losses import bridge_losses, regression_losses
from .simulation.anatomy import Anatomy, mni_anatomy, synthseg_anatomy


def translator_options(stage: str, configuration: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the stage's translator, as the package will hold them."""
    networks = CONFIGURATIONS[configuration["networks"]]
    options = {"modalities": list(MODALITIES), "first_stage": networks["first_stage"]}
    if stage == "regression":
        return options | {"unet": networks["denoiser"]}
    chosen = {key: configuration["aldm"][key] for key in ("mode", "steps", "sigma")}
    return options | {"spade": networks["spade"], "denoiser": networks["denoiser"]} | chosen


def anatomies(folder: str | None) -> list[Anatomy]:
    """The MNI152 tissue maps, and every label map of a folder."""
    paths = sorted(Path(folder).glob("training_seg_*.nii.gz")) if folder else []
    if folder and not paths:
        raise FileNotFoundError(f"The folder '{folder}' has no label maps named training_seg_*.nii.gz.")
    return [mni_anatomy(), *(synthseg_anatomy(path) for path in paths)]


def run_stage(stage: str, configuration: dict[str, Any], folder: Path, max_minutes: float | None) -> None:
    """Train one stage, resuming its checkpoint where there is one."""
    torch.manual_seed(configuration["seed"])
    model: Translator = METHODS[stage](**translator_options(stage, configuration))
    data = dict(configuration["data"])
    heads = anatomies(data.pop("anatomies"))
    pairs = partial(simulated_pairs, heads, device=configuration["device"], **data)
    weights = {key: value for key, value in configuration[stage].items() if key.endswith(("weight", "share"))}
    losses = partial(bridge_losses if stage == "aldm" else regression_losses, **weights)
    _whiten(model, pairs)
    train(
        model,
        losses,
        pairs,
        folder=folder / stage,
        steps=configuration[stage]["optimizer_steps"],
        configuration=configuration,
        seed=configuration["seed"],
        device=configuration["device"],
        max_minutes=max_minutes,
        **configuration["optimizer"],
    )


def _whiten(model: Translator, pairs, count: int = 8) -> None:
    """Measure the latents' mean and standard deviation on a few images of all contrasts."""
    iterator = pairs(torch.Generator().manual_seed(1))
    images = [next(iterator).image for _ in range(count)]
    smallest = [min(image.shape[axis] for image in images) for axis in (2, 3, 4)]
    model.first_stage.whiten_on(
        torch.cat([image[:, :, : smallest[0], : smallest[1], : smallest[2]] for image in images])
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", choices=["aldm", "regression", "export"])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument("--config", type=Path, required=True, help="recipe, e.g. training/configs/micro-simulated.yaml")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of checkpoints and logs; a run found there goes on"
    )
    parser.add_argument("--max-minutes", type=float, help="stop after this time, with a checkpoint to resume from")
    parser.add_argument("--output", type=Path, help="export: folder of the package to write; its name is the package's")
    options = parser.parse_intermixed_args(arguments)
    try:
        configuration = load_configuration(options.config, options.overrides)
        if options.stage != "export":
            run_stage(options.stage, configuration, options.run, options.max_minutes)
        elif options.output is None:
            parser.error("export needs --output")
        else:
            package = export(configuration, options.run, options.output, translator_options)
            print(f"Wrote '{package.path}', methods {', '.join(package.methods)}.")
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"python -m training: error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
