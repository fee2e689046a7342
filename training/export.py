"""From checkpoints to a model package that the engine and the Slicer module use at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.intensity import BRIGHTEST
from MissingModalitySynthLib.model_package import ModelPackage, load_package
from MissingModalitySynthLib.package_format import CHECKSUMS, ZERO_SHOT
from MissingModalitySynthLib.package_store import package_folders, write_package
from MissingModalitySynthLib.translators import Translator

from .ablations import AblatedTranslator
from .configuration import STAGES
from .model_card import INTENDED_USE, PARTS, data_source, part_sources, simulated, trained_subjects, write_card
from .package_parts import ABLATION, kept_parts, said_of, trained_part
from .stages import CHECKPOINT, is_ablated

# What the last stage of a method makes. Runs may also have trained MS-SPADE and bridge together in "aldm".
_METHODS = {"diffusion": "aldm", "aldm": "aldm", "regression": "regression", "midiffusion": ZERO_SHOT}
VERSION = "0.1.0"


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
    parts = [
        trained_part(folder, configuration, known.get(folder.name), zero_shot)
        for folder in folders.values()
        if (folder / CHECKPOINT).exists()
    ]
    if keep is not None:
        parts += kept_parts(keep, [part.stage for part in parts])
    methods = {part.name: part.settings for part in parts if part.is_method}
    if not methods:
        raise InputError(f"The folder '{run}' has no checkpoint of any of {', '.join(known)}.")
    extras = {part.name: part.settings for part in parts if part.name and not part.is_method}
    about = {key: value for part in parts for key, value in part.about.items()}
    apart = {part.stage: part.recipes for part in parts if part.stage in PARTS}
    about["parts"] = {part.stage: said_of(part) for part in parts if part.stage in PARTS}
    paired = [part for part in parts if part.is_method and part.name != ZERO_SHOT]
    main = [recipe for part in paired for recipe in part.recipes] or apart.pop(ZERO_SHOT)
    about["subjects"] = trained_subjects(main)
    said = data_source(main)
    modalities = list(configuration["modalities"])
    makes = []
    if paired:
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
        parts=apart,
        stages=_stages([row for part in parts for row in part.rows], configuration),
        evaluations=evaluations,
        t1_in_t1ce=methods.get("regression", {}).get("t1_in_t1ce", 0.0),
        brain_apart=methods.get("regression", {}).get("brain_apart", False),
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
            "data_source": " ".join([said, *part_sources(apart, said)]),
            "sources": modalities if paired else [],
            "targets": modalities if paired else [],
            "spacing_mm": [1.0, 1.0, 1.0],
            "intensity_range": [-1.0, 1.0],
            "percentiles": [0.5, 99.5],
            "network_data_format": _data_format(modalities),
        }
        | about,
        networks={"default_method": next(m for m in ("aldm", *methods) if m in methods), "methods": methods} | extras,
        tensors={part.name: part.tensors for part in parts if part.name},
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


def build_ablation(**options: Any) -> Translator:
    """The translator of an ablated run, from its options in a package."""
    model = AblatedTranslator(**options)
    if not options["use_denoiser"]:
        model.denoiser = None
    return model


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
