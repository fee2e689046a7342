"""Memory and TFLOP of one training step of every stage of a configuration, without a GPU.

    python Testing/benchmark/training_cost.py [--networks paper] [--size 192 192 144]

Nothing is computed: networks, losses and gradients run with fake tensors, which have shapes only. Counted are the
operations of convolutions, linear layers and attention, forward and backward; and the bytes of

- weights: parameters and their average as float32,
- optimizer: gradients and the two moments of AdamW as float32,
- kept: every tensor that the backward pass keeps (bfloat16 autocast), with and without gradient checkpointing.

Temporaries of the kernels and the fragmentation of the allocator come on top; they are not known before a run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from MissingModalitySynthLib.networks.autoencoder import Codebook
from MissingModalitySynthLib.networks.configurations import CONFIGURATIONS
from training import stages
from training.batches import Pair
from training.configuration import load_configuration
from training.loop import recompute

RECIPE = Path(__file__).parents[2] / "training" / "configs" / "paper-brats.yaml"
GIB = 2**30


class KeptTensors:
    """Bytes of all storages that autograd keeps; parameters are counted elsewhere."""

    def __init__(self, model: nn.Module) -> None:
        self._known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._alive: list[torch.Tensor] = []  # a freed storage's identity could be given to another
        self.bytes = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._alive.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


def step_cost(model: nn.Module, losses: Callable, pair: Pair, *, recompute_blocks: bool) -> tuple[float, float, float]:
    """TFLOP forward, TFLOP forward and backward, GiB kept for the backward pass."""
    model.train()
    if recompute_blocks:
        recompute(model, stages.RECOMPUTED)
    kept = KeptTensors(model)
    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(kept.pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            terms = losses(model, pair, torch.Generator())
        forward = counter.get_total_flops()
        sum(term for term in terms.values() if term.requires_grad).backward()
        both = counter.get_total_flops()
    return forward / 1e12, both / 1e12, kept.bytes / GIB


def step_costs(configuration: dict, size: tuple[int, int, int]) -> None:
    """Print the table of all stages that the configuration can train."""
    row(
        "stage", "trained (M)", "TFLOP forward", "TFLOP step", "weights", "optimizer", "kept", "kept, recomputed", "sum"
    )
    row(*["---"] * 9)
    for name in configuration_stages(configuration):
        costs = []
        for recompute_blocks in (False, True):
            stage = stages.build_stage(name, configuration)
            image = torch.zeros(1, 1, *size)
            pair = Pair({"T1": image.clone()}, "T2", image)
            costs.append(step_cost(stage.model, stage.losses, pair, recompute_blocks=recompute_blocks))
        parameters = sum(p.numel() for p in stage.model.parameters())
        trained = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
        weights, optimizer = 2 * 4 * parameters / GIB, 3 * 4 * trained / GIB
        (forward, both, kept), (_, _, recomputed) = costs
        numbers = (forward, both, weights, optimizer, kept, recomputed, weights + optimizer + recomputed)
        row(name, f"{trained / 1e6:.0f}", *(f"{number:.1f}" for number in numbers))


def configuration_stages(configuration: dict) -> list[str]:
    """The stages in the order of training, without the segmenter, which is small and no part of the method."""
    learned = stages.network_options(configuration)["first_stage"]["kind"] != "haar"
    return [*["autoencoder"] * learned, "spade", "diffusion", "regression"]


def row(*cells: object) -> None:
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="paper", choices=CONFIGURATIONS)
    parser.add_argument("--size", type=int, nargs=3, default=(192, 192, 144), help="voxels")
    options = parser.parse_args()
    configuration = load_configuration(RECIPE, [f"networks={options.networks}", "device=cpu"])
    # What depends on values cannot run on shapes: draws take the first, statistics of the codebook are left out.
    with (
        FakeTensorMode(),
        patch("training.autoencoder.choose", lambda *_: 0),
        patch("training.losses.choose", lambda *_: 0),
        patch("training.autoencoder.revive_dead_codes", lambda *_: 0),
        patch("training.autoencoder.perplexity", lambda *_: torch.zeros(())),
        patch.object(Codebook, "_follow", lambda *_: None),
        patch.object(FakeTensor, "tolist", lambda tensor: [0] * len(tensor)),  # which target an item has
        patch.object(nn.Module, "to", lambda module, *_, **__: module),  # weights of fake tensors cannot be moved
    ):
        print(f"One example of {'x'.join(map(str, options.size))} voxels; memory in GiB.\n")
        step_costs(configuration, tuple(options.size))


if __name__ == "__main__":
    main()
