"""From checkpoints to a model package that the engine and the Slicer module use at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.model_package import ModelPackage
from MissingModalitySynthLib.package_store import package_folders, write_package
from MissingModalitySynthLib.translators import Translator

from .ablations import AblatedTranslator
from .checkpoint import read_checkpoint, with_prefix
from .configuration import STAGES
from .evaluation.tables import pair_table
from .logbook import read_log
from .stages import CHECKPOINT, is_ablated, translator_options

# What the last stage of a method makes. Runs may also have trained MS-SPADE and bridge together in "aldm".
_METHODS = {"diffusion": "aldm", "aldm": "aldm", "regression": "regression"}
ABLATION = "ablation"  # a method that only the evaluation knows
VERSION = "0.1.0"
INTENDED_USE = (
    "Research, and visual comparison by professionals who also see the acquired images. Not a medical device, not for "
    "diagnosis: a synthetic image shows what the model expects, not what was measured."
)
LIMITS = """\
- Pathology that the training did not know is not to be trusted: it may vanish, or appear where there is none.
- Trained for adult brains, at 1 mm. Other ages, body parts, implants and strong artefacts are outside of what it knows.
- T1ce: uptake of contrast agent cannot be known from images without it. What looks like enhancement is a guess."""
SIMULATION_LIMITS = "- Fat, bone and face are drawn roughly by the simulator; only the brain was modelled with care."
# What networks compute from their weights; the sampler's steps and eta may be chosen anew.
_DECISIVE = ("networks", "first_stage", "modalities")
_DECISIVE_FOR_ALDM = ("mode", "sigma", "use_spade", "use_palette", "use_denoiser")


def export(
    configuration: dict[str, Any],
    run: Path,
    output: Path,
    *,
    evaluation: Path | None = None,
    for_evaluation: bool = False,
) -> ModelPackage:
    """Write the package of every method that was trained in a run; ALDM is the default method where it is there.

    Args:
        configuration: settings of the run, as far as they decide what its networks are; on what they were trained is
            read from the checkpoints.
        run: folder with one subfolder per stage.
        output: folder of the package; replaced if it exists.
        evaluation: an ``evaluation.json`` of these weights, whose results become part of the model card.
        for_evaluation: an ablated run is packed as well, as the method :data:`ABLATION` of :func:`build_ablation`.

    Raises:
        InputError: no stage was trained, or one with other networks than the settings name; these are of an ablation;
            or the evaluation cannot be read.
    """
    ablated = is_ablated(configuration)
    if ablated and not for_evaluation:
        raise InputError("An ablation lacks parts that a package must have: evaluate it, and export another run.")
    results = _results(evaluation) if evaluation else ""
    known = dict(_METHODS)
    if ablated:
        last = "diffusion" if configuration["diffusion"]["use_denoiser"] else "spade"
        known = {last: ABLATION, "regression": "regression"}
    trained = [run / stage for stage in (*STAGES, "aldm") if (run / stage / CHECKPOINT).exists()]
    methods, tensors, rows, recipes = {}, {}, [], []
    for folder in trained:
        weights, state = read_checkpoint(folder / CHECKPOINT, prefix="average.")
        weights = with_prefix(weights, "average.")
        rows.append(_row(folder, weights, state["step"]))
        if method := known.get(folder.name):
            _require_same(folder / CHECKPOINT, state["configuration"], configuration)
            methods[method] = translator_options("aldm" if method == ABLATION else method, configuration)
            tensors[method] = finite_as_float16(weights)
            recipes.append({"data": configuration["data"] | state["configuration"].get("data", {})})
    if ablated and ABLATION in methods:
        methods[ABLATION] |= {
            key: configuration["diffusion"][key] for key in ("use_spade", "use_palette", "use_denoiser")
        }
    if not methods:
        raise InputError(f"The folder '{run}' has no checkpoint of any of {', '.join(known)}.")
    data = " ".join(dict.fromkeys(_data_source(recipe) for recipe in recipes))
    table = "\n".join(rows)
    modalities = list(configuration["modalities"])
    title = f"MissingModalitySynth {output.name}"
    card = f"""\
# {title}

## Training data

{data}

## Training

| stage | parameters | steps | time on the training machine | last training losses |
|---|---|---|---|---|
{table}

Recipe: `training/configs`, networks `{_networks(configuration)}`, seed {configuration["seed"]}.

{results}## Intended use

{INTENDED_USE}

## Limits

{_limits(recipes)}
"""
    return write_package(
        output,
        metadata={
            "version": VERSION,
            "changelog": {VERSION: "First weights."},
            "name": title,
            "task": "Synthesis of missing MRI contrasts of the brain",
            "description": f"Any non-empty set of {', '.join(modalities)} to any other of them, brain, 1 mm.",
            "authors": "MissingModalitySynth developers",
            "copyright": "MissingModalitySynth developers",
            "license": "Apache-2.0",
            "intended_use": INTENDED_USE,
            "data_source": data,
            "sources": modalities,
            "targets": modalities,
            "spacing_mm": [1.0, 1.0, 1.0],
            "intensity_range": [-1.0, 1.0],
            "percentiles": [0.5, 99.5],
            "network_data_format": _data_format(modalities),
        },
        networks={"default_method": next(m for m in ("aldm", *methods) if m in methods), "methods": methods},
        tensors=tensors,
        model_card=card,
        licence=_licence(),
        replace=True,
    )


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
    if "diffusion" in trained:
        own, asked = trained["diffusion"], configuration["diffusion"]
        pairs += [(f"diffusion.{key}", own.get(key, asked[key]), asked[key]) for key in _DECISIVE_FOR_ALDM]
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


def _results(path: Path) -> str:
    """The model card's section of results, from an evaluation's JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        about, table = content["about"], pair_table(content["summary"])
        subjects = f"{about['data']}: {', '.join(about['subjects'])}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' is no evaluation.json that can be read ({error!r}); run evaluate again.") from error
    meaning = "PSNR in dB / SSIM over the crop of the head, mean over subjects"
    return f"## Results\n\nMeasured on {subjects}. {meaning}.\n\n{table}\n\n"


def _networks(configuration: dict[str, Any]) -> str:
    return configuration["networks"] if isinstance(configuration["networks"], str) else "of its own"


def _data_source(configuration: dict[str, Any]) -> str:
    data = configuration["data"]
    parts = []
    if data["real"]:
        parts.append(
            f"Scans: {100 * data['real_share']:.0f} % of the pairs, from the data set '{Path(data['real']).name}'."
        )
    if not data["real"] or data["real_share"] < 1:
        maps = {None: "", "procedural": "a made-up head in the place of "}
        anatomy = maps.get(data["anatomies"], "label maps of individuals (SynthSeg training labels, Apache-2.0) and ")
        parts.append(
            f"Simulated contrast: {anatomy}the MNI152 tissue maps that nilearn carries, with relaxation times, signal "
            "equations and artefacts of training/simulation. Its protocols were adjusted to tissue statistics "
            "(medians, sharpness) of a few public scans."
        )
    if not data["real"]:
        parts.append("The networks saw no patient's image.")
    return " ".join(parts)


def _limits(recipes: Sequence[dict[str, Any]]) -> str:
    simulated = any(not recipe["data"]["real"] or recipe["data"]["real_share"] < 1 for recipe in recipes)
    return "\n".join([LIMITS, *[SIMULATION_LIMITS] * simulated])


def _row(folder: Path, weights: dict[str, torch.Tensor], step: int) -> str:
    """The stage's line of the model card's table."""
    entries = read_log(folder / "log.jsonl")
    count = sum(tensor.numel() for tensor in weights.values()) / 1e6
    return f"| {folder.name} | {count:.1f} M | {step} | {_minutes(entries):.0f} min | {_losses(entries)} |"


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
        "outputs": {name: image | {"channel_def": {"0": name}} for name in modalities},
    }
