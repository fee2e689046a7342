"""Checkpoints that are atomic and hold no pickle: tensors as safetensors, the rest as JSON in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from MissingModalitySynthLib.errors import InputError, OutputError


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write everything that a run needs to go on as if it had not been interrupted.

    The file is complete or not there: it is written beside ``path`` and renamed, so a full disk costs no checkpoint.

    Args:
        model: the trained network.
        average: its exponential moving average, same structure.
        optimizer: its state is stored by parameter index.
        state: JSON-serialisable; "step" and "configuration" are needed to resume.

    Raises:
        OutputError: the file cannot be written; the checkpoint that was there before is intact.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        kept = "the one before is kept" if path.exists() else "there is none yet"
        raise OutputError(f"The checkpoint '{path}' cannot be written ({error}); {kept}. Free the disk.") from error


def load_checkpoint(
    path: Path, *, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, configuration: dict[str, Any]
) -> dict[str, Any]:
    """Restore what :func:`save_checkpoint` wrote, and return its ``state``.

    Raises:
        InputError: the file is damaged, or was written by a run of another configuration.
    """
    tensors, state = read_checkpoint(path)
    if state["configuration"] != configuration:
        changed = _changed(state["configuration"], configuration)
        raise InputError(
            f"'{path}' belongs to another configuration (different: {', '.join(changed)}); "
            "restore the settings or start in another run folder."
        )
    model.load_state_dict(with_prefix(tensors, "model."))
    average.load_state_dict(with_prefix(tensors, "average."))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in with_prefix(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return state


def averaged_weights(path: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The averaged weights in a checkpoint, and the number of steps done."""
    tensors, state = read_checkpoint(path, prefix="average.")
    return with_prefix(tensors, "average."), state["step"]


def read_checkpoint(path: Path, prefix: str = "") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors whose names begin with ``prefix``, and the state. Raises InputError when the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}
            return tensors, json.loads(file.metadata()["state"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read as a checkpoint ({error}); remove it or restore a copy.") from error


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load what was read from ``path``. Raises InputError when it belongs to networks of another configuration."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"'{path}' holds weights of other networks than the recipe's: restore the settings of its run "
            "(networks, first_stage, modalities), or train that stage again in another run folder."
        ) from error


def with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _changed(old: Any, new: Any, name: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [name]
    keys = sorted(old.keys() | new.keys())
    return [part for key in keys for part in _changed(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))]
