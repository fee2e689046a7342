"""Settings of a run: a YAML file over the defaults, ``key=value`` over the file. Unknown keys are errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

DEFAULTS: dict[str, Any] = {
    "networks": "micro",  # a name of MissingModalitySynthLib.networks.configurations
    "seed": 0,
    "device": "cpu",
    "data": {
        "anatomies": None,
        "shapes": [[96, 96, 96]],
        "pairs_per_case": 2,
        "random_contrast": 0.2,
        "skull_strip": 0.6,
    },
    "optimizer": {
        "learning_rate": 5e-4,
        "warm_up": 100,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "ema_decay": 0.995,
        "checkpoint_minutes": 3.0,
    },
    "aldm": {
        "mode": "bridge",
        "steps": 2,
        "sigma": 0.1,
        "optimizer_steps": 2000,
        "latent_weight": 0.1,
        "spade_weight": 0.5,
        "start_share": 0.5,
    },
    "regression": {"optimizer_steps": 4000, "latent_weight": 0.1},
}


def load_configuration(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The defaults, changed by the file and then by overrides such as ``data.random_contrast=0.3``.

    Raises:
        ValueError: for a key that the defaults do not have, or an override without "=".
    """
    configuration = deepcopy(DEFAULTS)
    _merge(configuration, yaml.safe_load(path.read_text(encoding="utf-8")) or {}, str(path))
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"'{override}' is no override; write key=value.")
        nested: Any = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(configuration, nested, f"override {key}")
    return configuration


def _merge(into: dict[str, Any], changes: Mapping[str, Any], where: str, prefix: str = "") -> None:
    for key, value in changes.items():
        if key not in into:
            raise ValueError(f"Unknown key '{prefix}{key}' in {where}; known are {', '.join(into)}.")
        if isinstance(into[key], dict):
            if not isinstance(value, Mapping):
                raise ValueError(f"'{prefix}{key}' in {where} must be a group of keys, not {value!r}.")
            _merge(into[key], value, where, f"{prefix}{key}.")
        else:
            into[key] = value
