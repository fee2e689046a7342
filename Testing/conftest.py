"""Fixtures that all tests share."""

from pathlib import Path

import pytest

MODALITIES = ("T1", "T2", "FLAIR")


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory) -> Path:
    """Folder of a package named "tiny" with the real networks in miniature and random weights.

    From T1 and T2 to T2 and FLAIR, by "aldm" (a noisy bridge, so that samples differ) and "regression".
    """
    import torch

    from MissingModalitySynthLib.package_store import write_package
    from MissingModalitySynthLib.translators import METHODS

    unet = {"channels": [8, 8], "attention": [False, False], "num_head_channels": 4, "norm_num_groups": 4}
    stage = {"modalities": list(MODALITIES), "first_stage": {"kind": "haar", "levels": 1}}
    spade = {"stem": 8, "residual": [8], "spade": [8], "hidden": 4}
    methods = {
        "aldm": stage | {"spade": spade, "denoiser": unet, "sigma": 0.5},
        "regression": stage | {"unet": unet},
    }
    torch.manual_seed(0)
    networks = {name: METHODS[name](**options) for name, options in methods.items()}
    for parameter in networks["aldm"].denoiser.parameters():  # MONAI starts its last layer at 0: nothing would happen
        torch.nn.init.normal_(parameter, std=0.1)
    package = write_package(
        tmp_path_factory.mktemp("models") / "tiny",
        metadata={
            "version": "0.0.1",
            "changelog": {"0.0.1": "first"},
            "name": "A tiny model with random weights",
            "task": "synthesis",
            "description": "For tests.",
            "authors": "The makers",
            "copyright": "The makers",
            "license": "Apache-2.0",
            "intended_use": "Tests only.",
            "data_source": "None.",
            "network_data_format": {"inputs": {}, "outputs": {}},
            "sources": ["T1", "T2"],
            "targets": ["T2", "FLAIR"],
            "spacing_mm": [2, 2, 2],
            "intensity_range": [-1, 1],
            "percentiles": [0.5, 99.5],
        },
        networks={"default_method": "aldm", "methods": methods},
        tensors={name: network.state_dict() for name, network in networks.items()},
        model_card="# Tiny\n",
        licence="Apache-2.0\n",
    )
    return package.path
