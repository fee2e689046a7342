"""Named sizes of the networks, as plain keyword arguments, and the functions that build networks from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .autoencoder import KLAutoencoder, VQAutoencoder
from .first_stage import FirstStage
from .haar import HaarFirstStage

FIRST_STAGES: dict[str, type[FirstStage]] = {"vq": VQAutoencoder, "kl": KLAutoencoder, "haar": HaarFirstStage}

# Published: 64 channels times 1, 2, 2, 2, two blocks a level, attention at a width of 16.
_LARGE_MIDIFFUSION: dict[str, dict[str, Any]] = {
    "guided": {
        "first_stage": {"kind": "haar", "levels": 0},
        "features": [32, 64, 128, 256, 320, 32],
    },
    "published": {
        "first_stage": {"kind": "haar", "levels": 0},
        "channels": [64, 128, 128, 128],
        "attention": [False, False, False, True],
        "num_res_blocks": 2,
        "num_head_channels": 128,
        "norm_num_groups": 32,
    },
}

CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    # ALDM Tables A, B and C. They name neither the residual blocks per level, nor the channels inside the modulations,
    # nor the levels with attention: two blocks, 128 channels and attention in the middle block alone come within 3 % of
    # the autoencoder with MS-SPADE (237 M) and 1 % of the UNet (658 M). The channels [128, 256, 512] that Table C
    # prints hold 164 M parameters (656 MB as float32), so either they are printed at half or its size is in MB; here
    # they are doubled, since the same unit then fits Table A as printed. See Testing/benchmark/parameters.py.
    "paper": {
        "first_stage": {
            "kind": "vq",
            "channels": [256, 512, 512],
            "latent_channels": 3,
            "num_codes": 8192,
            "num_res_blocks": 2,
            "norm_num_groups": 32,
        },
        "spade": {
            "stem": 128,
            "residual": [256, 256],
            "spade": [256, 256, 256, 128],
            "hidden": 128,
            "shared": False,
        },
        "denoiser": {
            "channels": [256, 512, 1024],
            "attention": [False, False, False],
            "num_res_blocks": 2,
            "num_head_channels": 64,
            "norm_num_groups": 32,
        },
        "regression": {"features": [64, 128, 256, 512, 512, 64]},
        "midiffusion": _LARGE_MIDIFFUSION,
    },
    # One research GPU: a KL autoencoder whose latents keep more than three channels, shared switchable convolutions.
    "full": {
        "first_stage": {
            "kind": "kl",
            "channels": [32, 64, 128],
            "latent_channels": 8,
            "num_res_blocks": 1,
            "norm_num_groups": 16,
        },
        "spade": {"stem": 128, "residual": [128, 128], "spade": [128, 128, 128, 128], "hidden": 64},
        "denoiser": {
            "channels": [128, 256, 512],
            "attention": [False, False, True],
            "num_res_blocks": 1,
            "num_head_channels": 64,
            "norm_num_groups": 32,
        },
        "regression": {"features": [32, 64, 128, 256, 256, 32]},
        "midiffusion": _LARGE_MIDIFFUSION,
    },
    # Two CPU cores, at most 16 MB as fp16. No learned first stage: nothing is lost before the second stage begins.
    "micro": {
        "first_stage": {"kind": "haar", "levels": 1},
        "spade": {"stem": 32, "residual": [32], "spade": [32, 32], "hidden": 16, "kernel": 3},
        "denoiser": {
            "channels": [32, 48, 64, 80],
            "attention": [False, False, False, True],
            "num_res_blocks": 1,
            "num_head_channels": 16,
            "norm_num_groups": 8,
        },
        "regression": {"features": [16, 16, 48, 96, 192, 16]},
        "midiffusion": {
            "guided": {
                "first_stage": {"kind": "haar", "levels": 0},
                "features": [16, 32, 64, 64, 64, 16],
            },
            "published": {
                "first_stage": {"kind": "haar", "levels": 0},
                "channels": [32, 64, 64, 64],
                "attention": [False, False, False, True],
                "num_res_blocks": 1,
                "num_head_channels": 64,
                "norm_num_groups": 8,
            },
        },
    },
}


def build_first_stage(options: Mapping[str, Any]) -> FirstStage:
    """The first stage of kind ``options["kind"]`` ("vq", "kl" or "haar"), the other options are its arguments.

    Raises:
        ValueError: for an unknown kind; TypeError for an argument that the kind does not know.
    """
    options = dict(options)
    kind = options.pop("kind", None)
    if kind not in FIRST_STAGES:
        raise ValueError(f"Unknown first stage '{kind}'; known are {', '.join(FIRST_STAGES)}.")
    return FIRST_STAGES[kind](**options)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters of a network."""
    return sum(parameter.numel() for parameter in module.parameters())
