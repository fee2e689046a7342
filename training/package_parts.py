"""What each stage of a run, or a package that is there already, gives to a new package."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.package_format import CHECKSUMS, CLASSIFIER, EXTRAS, SEGMENTER, ZERO_SHOT, extras_of
from MissingModalitySynthLib.segmentation import CLASSES

from .checkpoint import read_checkpoint, with_prefix
from .classifier import ranges
from .configuration import DEFAULTS
from .logbook import read_log
from .model_card import part_data
from .stages import CHECKPOINT, translator_options

ABLATION = "ablation"  # a method that only the evaluation knows
_ABOUT = {SEGMENTER: SEGMENTER, ZERO_SHOT: "zero_shot", CLASSIFIER: "trained_on"}  # metadata of what is trained apart
# What networks compute from their weights; the sampler's steps and eta may be chosen anew.
_DECISIVE = ("networks", "first_stage", "modalities")
_DECISIVE_FOR_STAGE = {
    "diffusion": ("mode", "sigma", "use_spade", "use_palette", "use_denoiser"),
    "midiffusion": ("mode", "spatial_dims", "targets"),
    "regression": ("outlined",),
}


@dataclass(frozen=True)
class Part:
    """What one stage gives to a package.

    Attributes:
        stage: what was trained.
        name: of the method or network in networks.json; None of a stage that others build on, which gives rows alone.
        settings: keywords of the network.
        tensors: its weights.
        about: what metadata.json says of it.
        rows: of the model card's table of stages.
        recipes: on what it was trained, see ``model_card.write_card``.
    """

    stage: str
    name: str | None
    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]
    rows: list[str]
    recipes: list[dict[str, Any]]

    @property
    def is_method(self) -> bool:
        return self.name is not None and self.name not in EXTRAS


def trained_part(folder: Path, configuration: dict[str, Any], method: str | None, zero_shot: Path | None) -> Part:
    """What a stage of a run gives.

    Args:
        folder: of the stage, with a checkpoint.
        configuration: see ``export.export``.
        method: what the stage makes, if it is the last one of a method.
        zero_shot: the run of zero-shot translation, where it is one of its own.

    Raises:
        InputError: the checkpoint was trained with other networks than the settings name, or cannot be read.
    """
    stage = folder.name
    weights, state = read_checkpoint(folder / CHECKPOINT, prefix="average.")
    weights, trained = with_prefix(weights, "average."), state["configuration"]
    rows = [_row(folder, weights)]
    if folder.parent == zero_shot and (own := zero_shot / SEGMENTER / CHECKPOINT).exists():
        rows.append(_row(own.parent, read_checkpoint(own, prefix="average.")[0], "segmenter of midiffusion"))
    recipes = recipe_history(folder, {"data": configuration["data"]} | trained)
    if stage in EXTRAS:  # these learn from simulated heads, whatever the recipe mixes in
        recipes = [recipe | {"data": recipe["data"] | {"real": None}} for recipe in recipes]
    name: str | None = stage if stage in EXTRAS else method
    settings: dict[str, Any] = {}
    about: dict[str, Any] = {}
    if stage == CLASSIFIER:
        settings = {"classes": trained["modalities"], "width": trained["classifier"]["width"]}
        about = {_ABOUT[stage]: ranges(weights, trained["modalities"])}
        weights = with_prefix(weights, "network.")
    elif stage == SEGMENTER:
        settings = {"width": weights["final_conv.weight"].shape[1]}
        learned = trained["segmenter"]
        contrasts = None if learned.get("made_up_share") else learned["contrasts"]
        about = {_ABOUT[stage]: {"classes": list(CLASSES), "contrasts": contrasts}}
    elif method is not None:
        _require_same(folder / CHECKPOINT, trained, configuration)
        settings = translator_options("aldm" if method == ABLATION else method, configuration)
        weights = finite_as_float16(weights)
        if method == ABLATION:
            settings |= {key: configuration["diffusion"][key] for key in ("use_spade", "use_palette", "use_denoiser")}
        if method == ZERO_SHOT:
            about = {_ABOUT[ZERO_SHOT]: {"targets": list(configuration["midiffusion"]["targets"])}}
    return Part(stage, name, settings, weights, about, rows, recipes)


def kept_parts(package: str | Path, trained: Collection[str]) -> Iterator[Part]:
    """The parts of a package that were trained apart, but for the stages that were trained anew.

    Raises:
        InputError: the package does not say how such a part was trained.
        ModelPackageError: it is missing or damaged.
    """
    kept = load_package(package)
    there = {*kept.methods, *extras_of(kept.networks)}
    for stage in (name for name in _ABOUT if name in there and name not in trained):
        try:
            said = kept.metadata["parts"][stage]
            rows, subjects = [str(row) for row in said["rows"]], [str(name) for name in said["subjects"]]
            text = str(said["data_source"])
        except (LookupError, TypeError) as error:
            raise InputError(
                f"The package '{kept.name}' does not say how its {stage} was trained, so that no card can: export "
                "with the run of that stage."
            ) from error
        recipe = {"data": DEFAULTS["data"], "run": kept.path, "said": text, "subjects": subjects}
        about = {_ABOUT[stage]: kept.metadata[_ABOUT[stage]]}
        yield Part(stage, stage, kept.configuration(stage), kept.weights(stage), about, rows, [recipe])


def said_of(part: Part) -> dict[str, Any]:
    """What metadata.json says of a part's training, for :func:`kept_parts`."""
    said, subjects = part_data(part.recipes)
    return {"rows": part.rows, "data_source": said, "subjects": subjects}


def finite_as_float16(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights, with the running sums of a codebook replaced: they outgrow float16 and only training needs them.

    A codebook's weights are its sums divided by its counts; sums that are the weights, and counts of 1, say the same.
    """
    replaced = {}
    for name, tensor in weights.items():
        if name.endswith("codebook.ema_w"):
            replaced[name] = weights[name.removesuffix("ema_w") + "embedding.weight"].clone()
        elif name.endswith("codebook.ema_cluster_size"):
            replaced[name] = torch.ones_like(tensor)
    return weights | replaced


def recipe_history(folder: Path, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe of a stage after those of the weights that it began with; see ``model_card.write_card``."""
    own = recipe | {"data": DEFAULTS["data"] | recipe["data"], "run": folder.parent}
    if not recipe.get("initial"):
        return [own]
    initial = Path(recipe["initial"])
    if (initial / CHECKSUMS).exists():
        about = load_package(initial).metadata
        known = {"said": about["data_source"], "subjects": about.get("subjects", [])}
        return [{"data": DEFAULTS["data"], "run": initial} | known, own]
    _, state = read_checkpoint(initial / folder.name / CHECKPOINT)
    return [*recipe_history(initial / folder.name, state["configuration"]), own]


def _require_same(checkpoint: Path, trained: dict[str, Any], configuration: dict[str, Any]) -> None:
    """Refuse settings with which the weights of a checkpoint would compute something else."""
    # early runs do not know every setting
    pairs = [(key, trained.get(key, configuration[key]), configuration[key]) for key in _DECISIVE]
    for stage, keys in _DECISIVE_FOR_STAGE.items():
        if stage in trained:
            own, asked = trained[stage], configuration[stage]
            pairs += [(f"{stage}.{key}", own.get(key, asked[key]), asked[key]) for key in keys]
    if changed := [key for key, own, asked in pairs if own != asked]:
        raise InputError(
            f"'{checkpoint}' belongs to another configuration (different: {', '.join(changed)}); use the settings with "
            "which it was trained."
        )


def _row(folder: Path, weights: dict[str, torch.Tensor], name: str | None = None) -> str:
    """The stage's line of the model card's table; each run that it began with has its own number of steps."""
    count = sum(tensor.numel() for tensor in weights.values()) / 1e6
    steps, minutes = zip(*_runs_before(folder), strict=True)
    losses = _losses(read_log(folder / "log.jsonl"))
    return (
        f"| {name or folder.name} | {count:.1f} M | {' + '.join(map(str, steps))} | {sum(minutes):.0f} min | {losses} |"
    )


def _runs_before(folder: Path) -> list[tuple[int, float]]:
    """Steps and minutes of a stage's runs, from the first weights on; a package counts as none."""
    state = read_checkpoint(folder / CHECKPOINT, prefix="no tensor")[1]
    initial = state["configuration"].get("initial")
    before = Path(initial) / folder.name if initial else None
    earlier = _runs_before(before) if before and (before / CHECKPOINT).exists() else []
    return [*earlier, (state["step"], _minutes(read_log(folder / "log.jsonl")))]


def _minutes(entries: list[dict[str, float]]) -> float:
    """Time of all stretches of a run: within one, the minutes in the log grow."""
    total = previous = 0.0
    for entry in entries:
        total += entry["minutes"] - previous if entry["minutes"] >= previous else entry["minutes"]
        previous = entry["minutes"]
    return total


def _losses(entries: list[dict[str, float]]) -> str:
    hidden = ("step", "minutes", "learning_rate", "gradient_norm", "steps_per_second", "memory_gb")
    last = entries[-1] if entries else {}
    return ", ".join(f"{name} {value:.4f}" for name, value in last.items() if name not in hidden)
