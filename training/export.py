"""From checkpoints to a model package that the engine and the Slicer module use at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.intensity import BRIGHTEST
from MissingModalitySynthLib.model_package import ModelPackage, load_package
from MissingModalitySynthLib.package_format import CHECKSUMS, CLASSIFIER, SEGMENTER, ZERO_SHOT, extras_of
from MissingModalitySynthLib.package_store import package_folders, write_package
from MissingModalitySynthLib.segmentation import CLASSES
from MissingModalitySynthLib.translators import Translator

from .ablations import AblatedTranslator
from .checkpoint import read_checkpoint, with_prefix
from .classifier import ranges
from .configuration import DEFAULTS, STAGES
from .logbook import read_log
from .model_card import (
    INTENDED_USE,
    PARTS,
    data_source,
    part_data,
    part_sources,
    simulated,
    trained_subjects,
    write_card,
)
from .stages import CHECKPOINT, is_ablated, translator_options

# What the last stage of a method makes. Runs may also have trained MS-SPADE and bridge together in "aldm".
_METHODS = {"diffusion": "aldm", "aldm": "aldm", "regression": "regression", "midiffusion": ZERO_SHOT}
ABLATION = "ablation"  # a method that only the evaluation knows
VERSION = "0.1.0"
_ABOUT = {SEGMENTER: SEGMENTER, ZERO_SHOT: "zero_shot", CLASSIFIER: "trained_on"}  # metadata of each part, by stage
# What networks compute from their weights; the sampler's steps and eta may be chosen anew.
_DECISIVE = ("networks", "first_stage", "modalities")
_DECISIVE_FOR_STAGE = {
    "diffusion": ("mode", "sigma", "use_spade", "use_palette", "use_denoiser"),
    "midiffusion": ("mode", "spatial_dims", "targets"),
    "regression": ("outlined",),
}


def export(
    configuration: dict[str, Any],
    run: Path,
    output: Path,
    *,
    zero_shot: Path | None = None,
    keep: str | Path | None = None,
    evaluations: Sequence[Path] = (),
    for_evaluation: bool = False,
) -> ModelPackage:
    """Write the package of every method that was trained in a run; ALDM is the default method where it is there.

    Args:
        configuration: settings of the run, as far as they decide what its networks are; on what they were trained is
            read from the checkpoints.
        run: folder with one subfolder per stage.
        zero_shot: the run of zero-shot translation where it is another one, say of other scans or with a segmenter of
            its own.
        keep: name or folder of a package whose zero-shot method, segmenter and classifier go on into the new one, each
            where no run has trained another.
        output: folder of the package; one that is there is replaced, and the version counts on from its.
        evaluations: files ``evaluation.json`` of these weights, whose results become part of the model card.
        for_evaluation: an ablated run is packed as well, as the method :data:`ABLATION` of :func:`build_ablation`.

    Raises:
        InputError: no stage was trained, or one with other networks than the settings name, or not that of
            ``zero_shot``; the settings are of an ablation; the package to keep from does not say how its parts were
            trained; or the evaluation cannot be read.
        ModelPackageError: the package to keep from is missing or damaged.
    """
    ablated = is_ablated(configuration)
    if ablated and not for_evaluation:
        raise InputError("An ablation lacks parts that a package must have: evaluate it, and export another run.")
    known = dict(_METHODS)
    if ablated:
        last = "diffusion" if configuration["diffusion"]["use_denoiser"] else "spade"
        known = {last: ABLATION, "regression": "regression"}
    folders = {stage: run / stage for stage in (*STAGES, "aldm")}
    if zero_shot is not None:
        folders["midiffusion"] = zero_shot / "midiffusion"
        if not (folders["midiffusion"] / CHECKPOINT).exists():
            raise InputError(f"The run '{zero_shot}' has no checkpoint of midiffusion: train that stage first.")
    trained = [folder for folder in folders.values() if (folder / CHECKPOINT).exists()]
    methods, tensors = {}, {}
    rows: dict[str, list[str]] = {}  # of the model card, by stage
    recipes: dict[str, list[dict[str, Any]]] = {}  # of what is trained apart, by stage
    extras: dict[str, Any] = {}  # of networks.json, and what metadata.json says of them
    about: dict[str, Any] = {}
    paired_recipes: list[dict[str, Any]] = []
    for folder in trained:
        weights, state = read_checkpoint(folder / CHECKPOINT, prefix="average.")
        weights = with_prefix(weights, "average.")
        rows[folder.name] = [_row(folder, weights)]
        if folder.parent == zero_shot and (own := zero_shot / SEGMENTER / CHECKPOINT).exists():
            inner = read_checkpoint(own, prefix="average.")[0]
            rows[folder.name].append(_row(own.parent, inner, "segmenter of midiffusion"))
        if folder.name == CLASSIFIER:
            classes, width = state["configuration"]["modalities"], state["configuration"]["classifier"]["width"]
            extras[CLASSIFIER], about["trained_on"] = {"classes": classes, "width": width}, ranges(weights, classes)
            tensors[CLASSIFIER] = with_prefix(weights, "network.")
        if folder.name == SEGMENTER:
            extras[SEGMENTER] = {"width": weights["final_conv.weight"].shape[1]}
            learned = state["configuration"]["segmenter"]
            contrasts = None if learned.get("made_up_share") else learned["contrasts"]
            about[SEGMENTER] = {"classes": list(CLASSES), "contrasts": contrasts}
            tensors[SEGMENTER] = weights
        history = recipe_history(folder, {"data": configuration["data"]} | state["configuration"])
        if folder.name in (CLASSIFIER, SEGMENTER):  # these learn from simulated heads, whatever the recipe mixes in
            history = [recipe | {"data": recipe["data"] | {"real": None}} for recipe in history]
        if folder.name in PARTS:
            recipes[folder.name] = history
        if method := known.get(folder.name):
            if method == ZERO_SHOT:
                about["zero_shot"] = {"targets": list(configuration["midiffusion"]["targets"])}
            _require_same(folder / CHECKPOINT, state["configuration"], configuration)
            methods[method] = translator_options("aldm" if method == ABLATION else method, configuration)
            tensors[method] = finite_as_float16(weights)
            if method != ZERO_SHOT:
                paired_recipes += history
    for part in _kept_parts(keep, rows) if keep is not None else ():
        (methods if part.stage == ZERO_SHOT else extras)[part.stage] = part.settings
        tensors[part.stage], rows[part.stage], recipes[part.stage] = part.tensors, part.rows, [part.recipe]
        about |= part.about
    if ablated and ABLATION in methods:
        methods[ABLATION] |= {
            key: configuration["diffusion"][key] for key in ("use_spade", "use_palette", "use_denoiser")
        }
    if not methods:
        raise InputError(f"The folder '{run}' has no checkpoint of any of {', '.join(known)}.")
    about["parts"] = {  # what `keep` tells of them again
        stage: {"rows": rows[stage]} | dict(zip(("data_source", "subjects"), part_data(history), strict=True))
        for stage, history in recipes.items()
    }
    main = paired_recipes or recipes.pop(ZERO_SHOT)
    about["subjects"] = trained = trained_subjects(main)
    said = data_source(main)
    modalities = list(configuration["modalities"])
    makes = []
    if paired := [method for method in methods if method != ZERO_SHOT]:
        makes.append(f"Any non-empty set of {', '.join(modalities)} to any other of them")
    if ZERO_SHOT in methods:
        zero_shot_targets = ", ".join(about["zero_shot"]["targets"])
        makes.append(f"{'any' if paired else 'Any'} single contrast to {zero_shot_targets}")
    if simulated(main):
        about["shading"] = "removed"  # simulated targets have none
    title = f"MissingModalitySynth {output.name}"
    version, changelog = _next_version(output)
    card = write_card(
        title,
        recipes=main,
        trained=trained,
        parts=recipes,
        stages=_stages([row for stage_rows in rows.values() for row in stage_rows], configuration),
        evaluations=evaluations,
        kept=methods.get("regression", {}).get("t1_in_t1ce", 0.0),
    )
    return write_package(
        output,
        metadata={
            "version": version,
            "changelog": changelog,
            "name": title,
            "task": "Synthesis of missing MRI contrasts of the brain",
            "description": f"{'; '.join(makes)}; brain, 1 mm.",
            "authors": "MissingModalitySynth developers",
            "copyright": "MissingModalitySynth developers",
            "license": "Apache-2.0",
            "intended_use": INTENDED_USE,
            "data_source": " ".join([said, *part_sources(recipes, said)]),
            "sources": modalities if paired else [],
            "targets": modalities if paired else [],
            "spacing_mm": [1.0, 1.0, 1.0],
            "intensity_range": [-1.0, 1.0],
            "percentiles": [0.5, 99.5],
            "network_data_format": _data_format(modalities),
        }
        | about,
        networks={"default_method": next(m for m in ("aldm", *methods) if m in methods), "methods": methods} | extras,
        tensors=tensors,
        model_card=card,
        licence=_licence(),
        replace=True,
    )


@dataclass(frozen=True)
class _KeptPart:
    """What a new package takes over from another one: of a stage that was trained apart."""

    stage: str
    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]
    rows: list[str]
    recipe: dict[str, Any]


def _kept_parts(keep: str | Path, trained: Collection[str]) -> Iterator[_KeptPart]:
    """The parts of a package whose stages are not among those that were trained anew."""
    package = load_package(keep)
    there = {*package.methods, *extras_of(package.networks)}
    for stage, key in _ABOUT.items():
        if stage in trained or stage not in there:
            continue
        try:
            said = package.metadata["parts"][stage]
            rows, text, subjects = [str(row) for row in said["rows"]], str(said["data_source"]), list(said["subjects"])
        except (LookupError, TypeError) as error:
            raise InputError(
                f"The package '{package.name}' does not say how its {stage} was trained, so that no card can: export "
                "with the run of that stage."
            ) from error
        recipe = {"data": DEFAULTS["data"], "run": package.path, "said": text, "subjects": subjects}
        about = {key: package.metadata[key]}
        yield _KeptPart(stage, package.configuration(stage), package.weights(stage), about, rows, recipe)


def _licence() -> str:
    """The project's licence: beside this package in a checkout and in Slicer, else that of the bundled packages."""
    beside = Path(__file__).parent.parent / "LICENSE"
    copies = [folder / "LICENSE" for folder, bundled in package_folders() if bundled]
    for path in (beside, *copies):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise InputError(f"The licence '{beside}', which every package holds, is missing: install the project again.")


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


def build_ablation(**options: Any) -> Translator:
    """The translator of an ablated run, from its options in a package."""
    model = AblatedTranslator(**options)
    if not options["use_denoiser"]:
        model.denoiser = None
    return model


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


def _stages(rows: Sequence[str], configuration: dict[str, Any]) -> str:
    table = "\n".join(rows)
    return f"""\
| stage | parameters | steps | time on the training machine | last training losses |
|---|---|---|---|---|
{table}

Recipe: `training/configs`, networks `{_networks(configuration)}`, seed {configuration["seed"]}."""


def _networks(configuration: dict[str, Any]) -> str:
    return configuration["networks"] if isinstance(configuration["networks"], str) else "of its own"


def _next_version(output: Path) -> tuple[str, dict[str, str]]:
    """Version and changelog of a first package, or of one that replaces the package in the folder."""
    if not (output / CHECKSUMS).exists():
        return VERSION, {VERSION: "First weights."}
    old = load_package(output).metadata
    major, minor = old["version"].split(".")[:2]
    version = f"{major}.{int(minor) + 1}.0"
    return version, {version: "New weights."} | old["changelog"]


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


def _data_format(modalities: list[str]) -> dict[str, Any]:
    """What goes in and comes out, in the terms of a MONAI bundle."""
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 1,
        "spatial_shape": ["32*n", "32*n", "32*n"],
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": False,
    }
    return {
        "inputs": {name: image | {"channel_def": {"0": name}} for name in modalities},
        "outputs": {name: image | {"channel_def": {"0": name}, "value_range": [-1, BRIGHTEST]} for name in modalities},
    }
