"""Checkpoints that are atomic and hold no pickle: tensors as safetensors, the rest as JSON in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    step: int,
    configuration: dict[str, Any],
) -> None:
    """Write everything that a run needs to go on as if it had not been interrupted.

    The file is complete or not there: it is written beside ``path`` and renamed.

    Args:
        model: the trained network.
        average: its exponential moving average, same structure.
        optimizer: its state is stored by parameter index.
        generator: source of all randomness of the run; the global generator's state is stored as well.
        step: steps done.
        configuration: settings of the run; a resumed run must have the same.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    tensors["random.run"] = generator.get_state()
    tensors["random.global"] = torch.get_rng_state()
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    state = {"step": step, "configuration": configuration, "optimizer_scalars": scalars}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    os.replace(temporary, path)


def load_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    configuration: dict[str, Any],
) -> int:
    """Restore what :func:`save_checkpoint` wrote. Returns the number of steps done.

    Raises:
        ValueError: when the checkpoint was written by a run of another configuration.
    """
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if state["configuration"] != configuration:
        changed = sorted(
            key
            for key in configuration.keys() | state["configuration"].keys()
            if configuration.get(key) != state["configuration"].get(key)
        )
        raise ValueError(f"'{path}' belongs to another configuration (different: {', '.join(changed)}).")
    model.load_state_dict(_with_prefix(tensors, "model."))
    average.load_state_dict(_with_prefix(tensors, "average."))
    moments: dict[int, dict[str, Any]] = {}
    for name, tensor in _with_prefix(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = tensor
    for name, value in state["optimizer_scalars"].items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    generator.set_state(tensors["random.run"])
    torch.set_rng_state(tensors["random.global"])
    return state["step"]


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
