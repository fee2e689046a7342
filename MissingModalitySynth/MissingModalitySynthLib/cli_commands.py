"""What each command does.

Every function takes the parsed arguments, the console, and ``cancelled()``, which asks whether to stop. An error is
raised; the exit code is returned where a command goes on after one.

What a command needs is imported where it is needed: listing models must not wait for torch.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import NOTICE
from .cli_output import Console, table
from .errors import Cancelled, InputError, SynthesisError
from .modality import MODALITIES, OTHER, canonical_name, guess_modality, shown_name, source_name
from .model_package import ModelPackage, list_packages, load_package
from .output_folder import all_or_nothing
from .package_format import ZERO_SHOT
from .progress import Progress

if TYPE_CHECKING:
    from .synthesis import Result
    from .volume import Volume

Cancel = Callable[[], bool]


# --- synthesize -----------------------------------------------------------------------------------------------------


def synthesize(arguments: argparse.Namespace, console: Console, cancelled: Cancel) -> None:
    """Read the sources, make the targets, write all files or none."""
    from .request import Request, check_method, checked

    started, seconds = time.monotonic(), {}
    package = load_package(arguments.package)
    with _timed(seconds, "read"):
        console.progress(Progress("reading", 0.0))
        any_contrast = (arguments.method or package.default_method) == ZERO_SHOT
        sources = read_volumes(arguments.source, source_name, unknown=OTHER if any_contrast else None)
        acquired = read_volumes(arguments.acquired)
    method = arguments.method or package.method_for(sources)
    check_method(package, method)
    targets = _targets(arguments.target, sources, package, method, console)
    reference = _reference(arguments.reference, sources)
    _check_acquired(acquired, targets, reference)
    for modality, source in sources.items():
        if source.provenance:
            console.note(f"The {shown_name(modality)} in '{source.path}' is itself synthetic.")
        if modality == OTHER and source.modality_known != "as said":
            console.remark(f"What '{source.path}' shows is not known; it is taken for a source of any contrast.")

    request = checked(
        Request(
            sources=_volumes(sources),
            targets=targets,
            package=package,
            reference=reference.volume,
            method=method,
            steps=arguments.steps,
            samples=arguments.samples,
            seed=arguments.seed,
            device=arguments.device,
            shading=not arguments.no_shading,
            brain_apart=not arguments.whole_head,
            keep_last_good=arguments.keep_last_good,
        )
    )
    stem, suffix = reference.volume.name, output_suffix(arguments.format, reference.path)
    page = f"{stem}_synthetic_report.html" if arguments.report or acquired else None
    names = _names(stem, suffix, targets, arguments.samples, page)
    folder = Path(arguments.output_dir)
    with all_or_nothing(folder, names, overwrite=arguments.overwrite) as stage:
        console.progress(Progress("starting", 0.0))
        with _timed(seconds, "start"):
            from .device import keep_large_blocks
            from .synthesis import synthesize

            keep_large_blocks()
        result = synthesize(request, console.progress, cancelled, console.note)
        seconds |= result.seconds
        with _timed(seconds, "write"):
            console.progress(Progress("writing", 1.0))
            _write(stage, stem, suffix, result, cancelled)
        if page:
            with _timed(seconds, "report"):
                console.progress(Progress("report", 1.0))
                _write_report(stage / page, request.sources, result, _volumes(acquired))
        if cancelled():
            raise Cancelled("Cancelled; nothing was kept.")
        files = [str(folder / name) for name in names if (stage / name).exists()]

    for notice in result.notices:
        if notice not in next(iter(result.provenance.values())).get("warnings", ()):  # these were said at once
            console.note(notice)
    seconds["total"] = time.monotonic() - started
    console.remark(table((stage, f"{spent:7.1f} s") for stage, spent in seconds.items()))
    console.remark(f"{NOTICE}.")
    fields = {"provenance": result.provenance, "seconds": seconds, "notices": result.notices}
    console.result({"files": files} | fields, "\n".join(name for name in files if not name.endswith(".json")))


def _targets(
    wanted: list[str] | None, sources: Mapping[str, Any], package: ModelPackage, method: str, console: Console
) -> tuple[str, ...]:
    if wanted:
        names = (name for text in wanted for name in text.split(",") if name.strip())
        return tuple(dict.fromkeys(canonical_name(name) for name in names))
    targets = tuple(name for name in package.targets_of(method) if name not in sources)
    if targets:
        start = ", ".join(map(shown_name, sources))
        console.remark(f"Making {', '.join(targets)}: all that the package '{package.name}' can make from {start}.")
        return targets
    raise InputError(
        f"Everything that the method '{method}' of the package '{package.name}' can make is given as a source already."
    )


def _reference(wanted: str | None, sources: Mapping[str, Given]) -> Given:
    modality = source_name(wanted) if wanted else next(iter(sources))
    if modality not in sources:
        raise InputError(f"The reference {modality} is none of the sources: choose one of {', '.join(sources)}.")
    return sources[modality]


def _check_acquired(acquired: Mapping[str, Given], targets: Iterable[str], reference: Given) -> None:
    from .canonical import check_overlap

    for modality in acquired:
        if modality not in targets:
            raise InputError(f"There is an acquired {modality} to compare with, but {modality} is none of the targets.")
    if acquired:
        check_overlap(_volumes(acquired).values(), reference.volume)


def output_suffix(wanted: str | None, reference: Path) -> str:
    """The ending of what is written: as wanted, else the reference's, else that of NIfTI."""
    from .volume_io import FORMATS, file_format

    return f".{wanted}" if wanted else file_format(reference) or FORMATS[0]


def _names(stem: str, suffix: str, targets: Iterable[str], samples: int, page: str | None) -> list[str]:
    """The files that a run may write, in the order in which they are shown."""
    names = []
    for target in targets:
        for kind in ("_synthetic", "_synthetic_sd")[: 1 + (samples > 1)]:
            names += [f"{stem}_{target}{kind}{suffix}", f"{stem}_{target}{kind}.json"]
    return names + ([page, str(Path(page).with_suffix(".png"))] if page else [])


def _write(stage: Path, stem: str, suffix: str, result: Result, cancelled: Cancel) -> None:
    from .volume_io import write_volume

    for target, volume in result.volumes.items():
        if cancelled():
            raise Cancelled("Cancelled; nothing was kept.")
        provenance = result.provenance[target]
        write_volume(volume, stage / f"{stem}_{target}_synthetic{suffix}", provenance)
        if target in result.deviations:
            provenance = provenance | {"quantity": "standard deviation over the samples"}
            write_volume(result.deviations[target], stage / f"{stem}_{target}_synthetic_sd{suffix}", provenance)


def _write_report(path: Path, sources: Mapping[str, Volume], result: Result, acquired: Mapping[str, Volume]) -> None:
    from .report import write_figure, write_report

    provenance = next(iter(result.provenance.values())) | {"target": list(result.volumes)}
    write_report(path, sources, result.volumes, acquired, result.deviations, provenance)
    write_figure(path.with_suffix(".png"), sources, result.volumes, acquired, result.deviations)


# --- reading --------------------------------------------------------------------------------------------------------


class Given(NamedTuple):
    """A volume that the command line names; ``provenance`` is None unless it is synthetic."""

    path: Path
    volume: Volume
    modality: str | None
    modality_known: str
    provenance: dict[str, Any] | None


def read_volumes(
    items: Iterable[str], name_of: Callable[[str], str] = canonical_name, unknown: str | None = None
) -> dict[str, Given]:
    """Read volumes that are given as "T1=file" or "file".

    Args:
        items: from the command line.
        name_of: the canonical name of what is before "=".
        unknown: the name of a contrast that is neither said nor guessed, None to refuse it.

    Returns:
        What was read by canonical name, in the order given.

    Raises:
        InputError: a contrast that is unknown, cannot be guessed, or is given twice; a file that cannot be used.
    """
    volumes: dict[str, Given] = {}
    for item in items:
        given = read_item(item, name_of)
        if given.modality is None:
            given = given._replace(modality=unknown)
        if given.modality is None:
            names = MODALITIES if name_of is canonical_name else (*MODALITIES, OTHER)
            raise InputError(
                f"What '{given.path}' shows is not clear from its name or header: say it, like T1={given.path} "
                f"({', '.join(names)})."
            )
        if given.modality in volumes:
            both = f"'{volumes[given.modality].path}' and '{given.path}'"
            if given.modality == OTHER:
                raise InputError(f"The contrasts of {both} are both unlisted: one such volume can be a source, alone.")
            raise InputError(f"{given.modality} is given twice, as {both}: give each contrast once.")
        volumes[given.modality] = given
    return volumes


def _volumes(given: Mapping[str, Given]) -> dict[str, Volume]:
    return {modality: each.volume for modality, each in given.items()}


def read_item(item: str, name_of: Callable[[str], str] = canonical_name) -> Given:
    """Read a volume that is given as "T1=file" or "file"; its contrast is guessed, or None, where it is not said."""
    from .volume_io import read_provenance, read_volume

    name, path, series = _split(item)
    modality, known = (name_of(name), "as said") if name else (None, "")
    volume = read_volume(path, series)
    provenance = read_provenance(path)
    if not name:
        modality, known = _guess(path, volume.metadata, provenance or {})
    return Given(path, volume, modality, known, provenance)


def _split(item: str) -> tuple[str, Path, str | None]:
    """What "T1=folder#1.2.3" names: contrast (or ""), path, and DICOM series (or None)."""
    name, equals, rest = item.partition("=")
    if not equals or os.path.exists(item):
        name, rest = "", item
    if not rest:  # Path("") is the current folder
        raise InputError(f"'{item}' names no file: write it like T1=file.")
    series = re.fullmatch(r"(.+)#([0-9.]+)", rest)
    if series and os.path.isdir(series[1]):
        return name, Path(series[1]), series[2]
    return name, Path(rest), None


def _guess(path: Path, metadata: Mapping[str, str], provenance: Mapping[str, Any]) -> tuple[str | None, str]:
    """The contrast that a file shows, or None, and how that is known."""
    if "quantity" in provenance:
        return None, f"a {provenance['quantity']}"
    if "target" in provenance:
        return provenance["target"], "made by this program"
    name = path.resolve()  # also "." has a name
    by_tags = guess_modality(None, metadata) if path.is_dir() else None
    modality = guess_modality(name, metadata if path.is_dir() else None)
    if modality is None:
        return None, "neither name nor header tells"
    return modality, "from its DICOM tags" if modality == by_tags else "from its name"


# --- inspect --------------------------------------------------------------------------------------------------------


def inspect(arguments: argparse.Namespace, console: Console, cancelled: Cancel) -> int:
    """Show each file; go on after one that cannot be used, and return the exit code of the first such error."""
    codes = []
    packages = [row.package for row in list_packages() if row.package]
    for file in arguments.files:
        try:
            fields = _inspect(file, packages)
        except SynthesisError as error:
            codes.append(console.error(error))
        else:
            console.result(fields, _inspected_text(fields))
    return codes[0] if codes else 0


def _inspect(file: str, packages: Iterable[ModelPackage]) -> dict[str, Any]:
    import numpy as np
    import SimpleITK as sitk

    path, volume, modality, modality_known, provenance = read_item(file)
    geometry = volume.geometry
    low, high = np.percentile(volume.array, (0.5, 99.5))
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(np.ravel(geometry.direction).tolist())
    return {
        "file": str(path),
        "size": geometry.size,
        "spacing_mm": geometry.spacing,
        "origin_lps_mm": geometry.origin,
        "direction_lps": geometry.direction,
        "orientation": code,
        "modality": modality,
        "modality_known": modality_known,
        "intensity": {
            "minimum": float(volume.array.min()),
            "percentile_0.5": float(low),
            "percentile_99.5": float(high),
            "maximum": float(volume.array.max()),
        },
        "provenance": provenance,
        "can_make": {
            package.name: [name for name in package.targets if name != modality]
            for package in packages
            if modality in package.sources
        },
        "zero_shot": {
            package.name: [name for name in package.zero_shot_targets if name != modality]
            for package in packages
            if package.zero_shot_targets
        },
    }


def _inspected_text(fields: Mapping[str, Any]) -> str:
    spacing = " x ".join(f"{value:.4g}" for value in fields["spacing_mm"])
    origin = ", ".join(f"{value + 0.0:.6g}" for value in fields["origin_lps_mm"])
    values = [f"{value:.6g}" for value in fields["intensity"].values()]
    made = [f"{', '.join(targets)} (package {name})" for name, targets in fields["can_make"].items() if targets]
    zero_shot = [f"{', '.join(targets)} (package {name})" for name, targets in fields["zero_shot"].items() if targets]
    contrast = f"{fields['modality'] or 'not known'} ({fields['modality_known']})"
    if not fields["modality"]:
        can_make = "say what it shows, like --source T1=file"
    else:
        can_make = "; ".join(made) or f"nothing {'paired ' if zero_shot else ''}with the installed packages"
    rows = [
        ("size", f"{' x '.join(map(str, fields['size']))} voxels of {spacing} mm"),
        ("place", f"origin {origin} mm (LPS), axes {fields['orientation']}"),
        ("contrast", contrast),
        ("intensity", f"{values[0]} to {values[3]}, 99 % from {values[1]} to {values[2]}"),
        ("can make", can_make),
        *[("zero-shot", f"{'; '.join(zero_shot)}, by --method {ZERO_SHOT}, whatever it shows")] * bool(zero_shot),
    ]
    return f"{fields['file']}\n{table((f'  {name}', text) for name, text in rows)}"


# --- report ---------------------------------------------------------------------------------------------------------


def report(arguments: argparse.Namespace, console: Console, cancelled: Cancel) -> None:
    """Write the page and the picture from existing files."""
    page = Path(arguments.output)
    if page.suffix.lower() != ".html":
        raise InputError(f"The page '{page}' must have a name that ends in .html.")
    synthetic = read_volumes(arguments.synthetic)
    sources, acquired = read_volumes(arguments.source, source_name), read_volumes(arguments.acquired)
    from .canonical import check_overlap
    from .report import write_figure, write_report

    first = next(iter(synthetic.values()))
    groups = [_volumes(group) for group in (sources, synthetic, acquired)]
    check_overlap([volume for group in groups for volume in group.values()], first.volume)
    picture = page.with_suffix(".png")
    with all_or_nothing(page.parent, [page.name, picture.name], overwrite=arguments.overwrite) as stage:
        write_report(stage / page.name, *groups, provenance=first.provenance)
        write_figure(stage / picture.name, *groups)
    console.result({"files": [str(page), str(picture)]}, f"{page}\n{picture}")


# --- small helpers --------------------------------------------------------------------------------------------------


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started
