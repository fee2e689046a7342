"""The last level of a UNet of small crops, whose gradients in bfloat16 are those of whatever memory held before."""

from __future__ import annotations

import copy

import pytest
import torch

from MissingModalitySynthLib.networks.segmenter import Segmenter
from MissingModalitySynthLib.networks.unet import build_unet


def soil_memory() -> None:
    """Give memory back in which nothing is a number, of the sizes that such networks ask for next."""
    kept = [torch.full((3 << power,), float("nan")) for power in range(8, 21)]
    kept += [torch.full((3 << power,), float("nan"), dtype=torch.bfloat16) for power in range(8, 21)]
    del kept


@pytest.mark.parametrize(
    ("build", "size"), [(lambda: Segmenter(16), 64), (lambda: build_unet(1, 1, features=(8, 8, 16, 32, 64, 8)), 32)]
)
def test_gradients_of_crops_whose_last_level_is_2x2x2_do_not_depend_on_memory(build, size):
    torch.manual_seed(0)
    network = build().train()
    exact = copy.deepcopy(network)
    image = torch.randn(1, 1, size, size, size).clamp(-1, 1)
    exact(image).square().mean().backward()
    for _ in range(3):
        network.zero_grad()
        soil_memory()
        with torch.autocast("cpu", torch.bfloat16):
            made = network(image).float()
        soil_memory()
        made.square().mean().backward()
        for (name, found), wanted in zip(network.named_parameters(), exact.parameters(), strict=True):
            if name.startswith("down_4") and name.endswith("conv.weight"):
                similar = torch.nn.functional.cosine_similarity(found.grad.flatten(), wanted.grad.flatten(), dim=0)
                assert similar > 0.9, name
