"""Settings of a run: a YAML file over the defaults, ``key=value`` over the file. Unknown keys are errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.modality import MODALITIES
from MissingModalitySynthLib.networks.configurations import CONFIGURATIONS

SIMULATOR_OPTIONS = ("random_contrast", "skull_strip", "pathology", "artefacts", "misregistration")
STAGES = ("segmenter", "autoencoder", "spade", "diffusion", "regression", "midiffusion", "classifier")

DEFAULTS: dict[str, Any] = {
    "networks": "micro",  # a name of MissingModalitySynthLib.networks.configurations, or a mapping like one of those
    "first_stage": None,  # "vq" or "kl": in the place of the networks' own, with the same channels
    "modalities": list(MODALITIES),
    "seed": 0,
    "device": "cpu",
    "initial": None,  # folder of a run or a package: each stage begins with its weights, say to fine-tune on own scans
    "data": {
        "shapes": [[96, 96, 96]],  # of the crops, in voxels, drawn evenly
        "pairs_per_case": 2,  # targets that are taken from one simulated head or scanned subject
        "source_weights": dict.fromkeys(MODALITIES, 1.0),  # how readily each is drawn as a source
        "cases": None,  # how many heads or visits to scanned subjects there are; null: ever new ones
        # simulated heads
        "anatomies": None,  # folder of SynthSeg label maps; null: the MNI152 maps alone; "procedural": for tests
        "random_contrast": 0.2,
        "skull_strip": 0.6,
        "pathology": 1.0,
        "artefacts": 1.0,
        "misregistration": 1.0,
        # scans; null: simulated heads only
        "real": None,  # folder or CSV table
        "real_share": 1.0,  # of the pairs
        "real_targets": None,  # what scans are targets of, such as [T2, FLAIR]; null: all they have. All are sources
        "real_artefacts": 0.0,  # added to the sources, as to those of simulated heads
        "real_pathology": 0.0,  # painted into skull-stripped ones, factor on the chances of simulated heads
        "layout": "auto",  # see training/data/readers.py
        "register": False,  # contrasts that are on another grid
        "broken": "skip",  # or "stop": what a subject that cannot be read does
        "cache": None,  # folder of prepared subjects
        "kept_subjects": 8,  # in memory, after their first use
        "splits": {"train": 0.8, "validation": 0.1, "test": 0.1},
    },
    "optimizer": {
        "learning_rate": 5e-4,
        "warm_up": 100,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "ema_decay": 0.995,
        "accumulation": 1,
        "precision": "bfloat16",  # or "float32"
    },
    "machine": {  # may change when a run is resumed
        "gradient_checkpointing": False,
        "checkpoint_minutes": 3.0,
        "log_steps": 20,
        "image_steps": 500,
        "tensorboard": True,
    },
    "segmenter": {
        "optimizer_steps": 2000,
        "width": 32,
        "contrasts": None,  # judged alone, such as [T1]; null: any, among them contrasts that follow no physics
        "made_up_share": 0.0,  # of the examples in contrasts that follow no physics, made of the target
        "class_weights": [1.0, 2.0, 1.0, 1.0, 4.0, 3.0],  # background, CSF, grey, white, deep grey, lesion
    },
    "autoencoder": {
        "optimizer_steps": 20000,
        "quantisation_weight": 1.0,
        "kl_weight": 1e-6,
        "perceptual_weight": 0.0,
        "perceptual": "segmenter",  # or a network of monai.losses.PerceptualLoss, which downloads its weights
        "adversarial_weight": 0.0,
        "spectral_weight": 0.0,
        "dead_below": 0.05,
    },
    "spade": {
        "optimizer_steps": 20000,
        "latent_weight": 1.0,
        "image_weight": 4.0,
        "lesion_weight": 0.0,  # by how much more a voxel of a lesion counts in the image
        "self_weight": 0.1,
        "cycle_weight": 0.1,
        "information_weight": 0.0,
    },
    "diffusion": {
        "optimizer_steps": 2000,
        "mode": "bridge",  # or "paper": noise is predicted, ALDM eq. 2 and 4
        "steps": 2,  # of the sampler
        "sigma": 0.3,  # noise of the bridge, near the spread of what it has to add: else only its first step matters
        "eta": 0.0,  # of the sampler in paper mode
        "latent_weight": 1.0,
        "image_weight": 4.0,
        "lesion_weight": 0.0,
        "start_share": 0.5,
        "weighting": "none",  # of the time steps in paper mode; or "min_snr"
        # what the ablations leave out
        "use_spade": True,
        "use_palette": True,
        "use_denoiser": True,
    },
    "regression": {
        "optimizer_steps": 4000,
        "latent_weight": 1.0,
        "image_weight": 4.0,
        "lesion_weight": 0.0,
        "structure_weight": 0.0,  # of 1 - SSIM
        "outlined": True,  # whether sources are available in their head alone
        "mirrored": False,  # whether results are the mean with those of the mirrored head, twice the work
        "t1_in_t1ce": 0.0,  # share of the T1 in a T1ce that is made of it
        "window": None,  # edge of the windows that images are translated in, a multiple of 16; null: at once
        "brain_apart": False,  # whether the brain of a whole head is translated apart, where a segmenter finds it
    },
    "midiffusion": {
        "optimizer_steps": 4000,
        "targets": ["T1"],  # seen alone: no other contrast is
        "mode": "guided",  # or "published": noise is predicted, without a first stage
        "spatial_dims": 3,  # 2: slice by slice, as published
        "steps": 1,  # of the sampler; as published 1000
        "start": 1.0,  # of the sampler, as a fraction of time: 1 at noise, less at the noised source
        "guidance": 0.1,  # change of an estimate by the pull towards the source, in intensities of [-1, 1]
        "guidance_range": [0.0, 1.0],  # fractions of time
        "window": 9,  # of its local mutual information, voxels: three or an odd multiple
        "bins": 8,
        "conditioned": True,  # False hides the source from the network: SDEdit, if also guidance=0 and start < 1
        # of the training in the guided mode
        "latent_weight": 1.0,
        "image_weight": 4.0,
        "hidden_share": 0.15,
        "monotone_share": 0.2,  # of the contrasts that stand in for sources; best 1 at first
        "artefacts": 0.6,
    },
    "classifier": {"optimizer_steps": 2000, "cases": 160, "width": 64},  # cases: simulated heads
}

# Settings that may be null, with the kind that they have else.
NULLABLE = {
    "first_stage": str,
    "initial": str,
    "data.cases": int,
    "data.anatomies": str,
    "data.real": str,
    "data.real_targets": list,
    "data.cache": str,
    "segmenter.contrasts": list,
    "regression.window": int,
}

# Numbers from 0 to 1; all others are 0 or more. Whole numbers are 1 or more, but for these.
SHARES = (
    "data.random_contrast",
    "data.skull_strip",
    "data.real_share",
    "optimizer.ema_decay",
    "diffusion.start_share",
    "regression.t1_in_t1ce",
    "segmenter.made_up_share",
    "midiffusion.hidden_share",
    "midiffusion.monotone_share",
    "midiffusion.start",
)
FROM_ZERO = ("seed", "optimizer.warm_up")

# Settings that are one of a few words.
CHOICES = {
    "first_stage": (None, "vq", "kl", "haar"),
    "data.broken": ("skip", "stop"),
    "optimizer.precision": ("float32", "bfloat16"),
    "diffusion.mode": ("bridge", "paper"),
    "midiffusion.mode": ("guided", "published"),
    "diffusion.weighting": ("none", "min_snr"),
}

# Rows of ALDM Table 3. The paper does not say how the model of row (a), without palette, learns of the source; here its
# sampler begins at the noised source, see ablations.py.
ABLATIONS: dict[str, dict[str, Any]] = {
    "a": {"first_stage": "vq", "diffusion": {"mode": "paper", "use_spade": False, "use_palette": False}},
    "b": {"first_stage": "vq", "diffusion": {"mode": "paper", "use_spade": False}},
    "c": {"first_stage": "vq", "diffusion": {"mode": "paper", "use_denoiser": False}},
    "d": {"first_stage": "kl", "diffusion": {"mode": "paper"}},
    "ours": {"first_stage": "vq", "diffusion": {"mode": "paper"}},
}


def load_configuration(path: Path, overrides: Iterable[str] = (), ablation: str | None = None) -> dict[str, Any]:
    """The defaults, changed by the file, then by an ablation and by overrides such as ``data.random_contrast=0.3``.

    Raises:
        InputError: no such file or ablation, an unknown key, a value of the wrong kind, or an override without "=".
    """
    import yaml  # so that a missing package is one sentence of the command line

    configuration = deepcopy(DEFAULTS)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"The recipe '{path}' cannot be read: {error}.") from error
    _merge(configuration, content or {}, f"'{path}'")
    if ablation is not None:
        if ablation not in ABLATIONS:
            raise InputError(f"Unknown ablation '{ablation}'; known are {', '.join(ABLATIONS)}.")
        _merge(configuration, ABLATIONS[ablation], f"ablation {ablation}")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise InputError(f"'{override}' is no override; write key=value.")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(
                f"The value of the override '{override}' is no YAML; quote it, or close its brackets."
            ) from error
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(configuration, nested, f"override {key}")
    _check(configuration, DEFAULTS)
    _check_data(configuration)
    return configuration


def settings_of(stage: str, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result of a stage: a resumed run must have the same."""
    others = {*STAGES, "machine", "device"} - {stage}
    return {key: value for key, value in configuration.items() if key not in others}


def network_options(configuration: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of "first_stage", "spade", "denoiser", "regression" and "midiffusion".

    Raises:
        InputError: no networks of that name, or a part of them is missing.
    """
    networks = configuration["networks"]
    if not isinstance(networks, Mapping):
        if networks not in CONFIGURATIONS:
            raise InputError(f"Unknown networks '{networks}'; known are {', '.join(CONFIGURATIONS)}.")
        networks = CONFIGURATIONS[networks]
    parts = ("first_stage", "spade", "denoiser", "regression", "midiffusion")
    if set(networks) != set(parts) or not all(isinstance(networks[part], Mapping) for part in parts):
        raise InputError(
            f"'networks' must be a name or the groups {', '.join(parts)}, not {', '.join(map(str, networks))}."
        )
    if "kind" not in networks["first_stage"]:
        raise InputError("'networks.first_stage' must say its kind: vq, kl or haar.")
    kind, first_stage = configuration["first_stage"], networks["first_stage"]
    if kind not in (None, first_stage["kind"]):
        autoencoder = ("channels", "latent_channels", "num_res_blocks", "norm_num_groups")
        shared = () if kind == "haar" else autoencoder
        first_stage = {"kind": kind} | {key: first_stage[key] for key in shared if key in first_stage}
    return {**networks, "first_stage": dict(first_stage)}


def _merge(into: dict[str, Any], changes: Mapping[str, Any], where: str, prefix: str = "") -> None:
    if not isinstance(changes, Mapping):
        raise InputError(f"'{prefix.rstrip('.')}' in {where} must be a group of keys, not {changes!r}.")
    for key, value in changes.items():
        if key not in into:
            raise InputError(f"Unknown key '{prefix}{key}' in {where}; known are {', '.join(into)}.")
        if isinstance(into[key], dict) and key != "networks":
            _merge(into[key], value, where, f"{prefix}{key}.")
        else:
            into[key] = value


def _check(settings: dict[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse values that are of another kind than the defaults or out of range; bring numbers to the defaults' kind."""
    for key, default in defaults.items():
        name, value = f"{prefix}{key}", settings[key]
        if key == "networks" or (name in NULLABLE and value is None):
            continue
        kind = NULLABLE.get(name, type(default))
        if kind is dict:
            _check(value, default, f"{name}.")
        elif kind in (int, float):
            settings[key] = _number(name, value, kind)
        elif not isinstance(value, kind):
            words = {bool: "true or false", str: "a text", list: "a list"}
            raise InputError(f"'{name}' must be {words[kind]}, not {value!r}.")
        if name in CHOICES and value not in CHOICES[name]:
            known = ", ".join(str(word) for word in CHOICES[name])
            raise InputError(f"'{name}' must be one of {known}, not '{value}'.")


def _number(name: str, value: Any, kind: type) -> int | float:
    try:
        # YAML 1.1 reads 1e-5, without a point, as text
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    whole = kind is int
    lowest = 1 if whole and name not in FROM_ZERO else 0
    highest = 1 if name in SHARES else math.inf
    if not math.isfinite(number) or not lowest <= number <= highest or (whole and number % 1):
        limits = f"from 0 to {highest}" if name in SHARES else f"of {lowest} or more"
        raise InputError(f"'{name}' must be a {'whole ' * whole}number {limits}, not '{value}'.")
    return kind(number)


def _check_data(configuration: Mapping[str, Any]) -> None:
    names, shapes = configuration["modalities"], configuration["data"]["shapes"]
    if len(names) < 2 or len(set(map(str, names))) < len(names) or any(name not in MODALITIES for name in names):
        raise InputError(f"'modalities' must be two or more of {', '.join(MODALITIES)}, not {names}.")
    if never := [name for name, weight in configuration["data"]["source_weights"].items() if weight == 0]:
        raise InputError(f"'data.source_weights.{never[0]}' must be above 0.")
    some = {
        "segmenter.contrasts": configuration["segmenter"]["contrasts"],
        "data.real_targets": configuration["data"]["real_targets"],
        "midiffusion.targets": configuration["midiffusion"]["targets"],
    }
    for key, chosen in some.items():
        if chosen is not None and (not chosen or any(name not in names for name in chosen)):
            null = "null or " * (key in NULLABLE)
            raise InputError(f"'{key}' must be {null}some of {', '.join(names)}, not {chosen}.")
    span = configuration["midiffusion"]["guidance_range"]
    if len(span) != 2 or not all(isinstance(x, (int, float)) for x in span) or not 0 <= span[0] <= span[1] <= 1:
        raise InputError(f"'midiffusion.guidance_range' must be two rising numbers from 0 to 1, not {span}.")
    if not shapes or not all(isinstance(shape, list) and list(map(type, shape)) == [int] * 3 for shape in shapes):
        raise InputError(f"'data.shapes' must be a list of sizes such as [[96, 96, 96]], not {shapes}.")
    if wrong := [shape for shape in shapes if any(size < 16 or size % 16 for size in shape)]:
        raise InputError(f"The sizes of 'data.shapes' must be multiples of 16 voxels, not {wrong[0]}.")
