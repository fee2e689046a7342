"""The commands about model packages, and the one about devices. Arguments are those of ``cli_commands``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .cli_output import Console, table
from .model_package import ModelPackage, list_packages, load_package, user_folder, verify
from .package_format import SEGMENTER

Cancel = Callable[[], bool]


def list_models(arguments: argparse.Namespace, console: Console, cancelled: Cancel) -> None:
    """List bundled and installed packages, damaged ones with their problem."""
    rows, fields = [], []
    for row in list_packages():
        place = "bundled" if row.bundled else "installed"
        entry = {"name": row.name, "bundled": row.bundled, "path": str(row.path), "problem": row.problem or None}
        if row.package:
            entry |= _model_fields(row.package)
            arrows = [(", ".join(row.package.sources), row.package.targets), ("any", row.package.zero_shot_targets)]
            makes = "; ".join(f"{start} -> {', '.join(targets)}" for start, targets in arrows if targets)
        else:
            makes = f"cannot be used: {row.problem}"
        rows.append((row.name, entry.get("version", "?"), place, makes))
        fields.append(entry)
    empty = f"There are no model packages; those that you install lie in {user_folder()}."
    console.result({"packages": fields}, table(rows) or empty)


def show_model(arguments: argparse.Namespace, console: Console, cancelled: Cancel) -> None:
    """Show a package's metadata."""
    package = load_package(arguments.package)
    metadata = package.metadata
    methods = (f"{name} (default)" if name == package.default_method else name for name in package.methods)
    rows = [
        ("title", package.title),
        ("version", metadata["version"]),
        *[("makes", ", ".join(package.targets)), ("from", ", ".join(package.sources))] * bool(package.sources),
        *[("zero-shot", f"{', '.join(package.zero_shot_targets)} from any contrast")] * bool(package.zero_shot_targets),
        ("methods", ", ".join(methods)),
        *[("segments", ", ".join(metadata.get(SEGMENTER, {}).get("classes", ())[1:]))] * package.has_segmenter,
        ("voxel size", f"{' x '.join(f'{value:g}' for value in package.spacing)} mm"),
        ("description", package.description),
        ("intended use", metadata["intended_use"]),
        ("trained on", metadata["data_source"]),
        ("authors", metadata["authors"]),
        ("licence", metadata["license"]),
        ("model card", package.path / "docs" / "README.md"),
        ("SHA-256", package.digest),
    ]
    console.result(_model_fields(package) | {"metadata": metadata}, f"{package.name}\n{table(rows)}")


def verify_model(arguments: argparse.Namespace, console: Console, cancelled: Cancel) -> None:
    """Compare every file of a package with its checksum."""
    package = verify(arguments.package)
    text = f"The package '{package.name}' is whole: {len(package.checksums)} files, SHA-256 {package.digest}."
    console.result(_model_fields(package) | {"checksums": package.checksums}, text)


def install_model(arguments: argparse.Namespace, console: Console, cancelled: Cancel) -> None:
    """Install a package from a folder or zip file."""
    from .package_store import install_package

    package = install_package(arguments.path, replace=arguments.replace)
    console.result(_model_fields(package), f"Installed the package '{package.name}' in {package.path}.")


def remove_model(arguments: argparse.Namespace, console: Console, cancelled: Cancel) -> None:
    """Remove an installed package."""
    from .package_store import remove_package

    remove_package(arguments.package)
    console.result({"name": arguments.package}, f"Removed the package '{arguments.package}'.")


def _model_fields(package: ModelPackage) -> dict[str, Any]:
    return {
        "name": package.name,
        "version": package.metadata["version"],
        "path": str(package.path),
        "sources": package.sources,
        "targets": package.targets,
        "zero_shot_targets": package.zero_shot_targets,
        "methods": package.methods,
        "default_method": package.default_method,
        "has_segmenter": package.has_segmenter,
        "sha256": package.digest,
    }


def devices(arguments: argparse.Namespace, console: Console, cancelled: Cancel) -> None:
    """List what --device may name, and what ``auto`` chooses."""
    from .device import available_devices, choose_device

    chosen, notice = choose_device("auto")
    if notice:
        console.note(notice)
    names = available_devices()
    console.result({"devices": names, "auto": str(chosen)}, f"{', '.join(names)}; auto is {chosen}")
