"""The command that tells tissues. Arguments are those of ``cli_commands``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from .cli_commands import output_suffix, read_item
from .cli_output import Console, table
from .errors import Cancelled, InputError
from .model_package import load_package
from .output_folder import all_or_nothing
from .progress import Progress


def segment(arguments: argparse.Namespace, console: Console, cancelled: Callable[[], bool]) -> None:
    """Read the volumes, segment them, compare them with the first, and write all files or none."""
    package = load_package(arguments.package)
    console.progress(Progress("reading", 0.0))
    given = [read_item(file) for file in arguments.files]
    from .canonical import check_overlap
    from .segmentation import CLASSES, dice_by_class, segment_all
    from .volume_io import write_volume

    volumes = {}
    for each in given:
        name = f"{each.volume.name}_segmentation{output_suffix(arguments.format, each.path)}"
        if name in volumes:
            raise InputError(f"Two volumes would both become '{name}': segment '{each.path}' in a run of its own.")
        volumes[name] = each.volume
    check_overlap([each.volume for each in given[1:]], given[0].volume)
    sidecars = [f"{each.volume.name}_segmentation.json" for each in given]
    folder = Path(arguments.output_dir)
    with all_or_nothing(folder, [*volumes, *sidecars], overwrite=arguments.overwrite) as stage:
        found = segment_all(volumes, package, device=arguments.device, progress=console.progress, cancelled=cancelled)
        for name, labels in found.labels.items():
            write_volume(labels, stage / name, found.provenance[name])
        if cancelled():
            raise Cancelled("Cancelled; nothing was kept.")
    for notice in found.notices:
        console.note(notice)
    first, *others = found.labels
    scores = {str(folder / name): dice_by_class(found.labels[first], found.labels[name]) for name in others}
    files = [str(folder / name) for name in volumes]
    rows = [("Dice with", first)] if scores else []
    for file, by_class in scores.items():
        rows += [(file, "")] + [(f"  {name}", _shown(by_class[name])) for name in CLASSES[1:]]
    plain = {
        file: {name: None if math.isnan(value) else value for name, value in by_class.items()}
        for file, by_class in scores.items()
    }
    fields = {"files": files, "dice": plain, "provenance": found.provenance, "notices": found.notices}
    console.result(fields, "\n".join(files))
    console.remark(table(rows))


def _shown(value: float) -> str:
    return "in neither" if math.isnan(value) else f"{value:.3f}"
