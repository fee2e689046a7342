"""Parameters and GFLOPs of the networks at 192x192x144 voxels, beside the paper's, as Markdown tables.

    python Testing/benchmark/parameters.py

Nothing is computed: the networks are built and run with fake tensors, which have shapes only. A FLOP is an addition or
a multiplication in a convolution, a linear layer or an attention.
"""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from MissingModalitySynthLib.networks.configurations import CONFIGURATIONS, build_first_stage, count_parameters
from MissingModalitySynthLib.networks.denoiser import Denoiser
from MissingModalitySynthLib.networks.spade import MSSPADE

SIZE = (192, 192, 144)
TARGETS = 4  # the paper's: T1, T1ce, T2, FLAIR

GAPS = """\
**237 M** (Table A): the table gives the channels [256, 512, 512] but not the residual blocks per level; two hold
149 M, and MS-SPADE, which the paper puts into the autoencoder, adds 93 M for four targets and 128 channels inside the
modulations (not given either): together 2 % more than published. The discriminator is not counted.

**658 M** (Table C): no number of residual blocks brings the channels that the table gives, [128, 256, 512], near 658 M
parameters. Twice these channels, two blocks, and attention in the middle block alone hold 656 M; this is `paper`. As
printed they hold 164 M, which is 656 MB as float32: if "Param Size" is in MB, Table C is right as printed, but then the
237 MB (59 M parameters) of Table A do not fit the channels there. No unit fits both tables."""


def gflops(run, *inputs: torch.Tensor) -> float:
    """10^9 additions and multiplications of one call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*inputs)
    return counter.get_total_flops() / 1e9


def millions(*networks: nn.Module) -> float:
    """10^6 parameters."""
    return sum(count_parameters(network) for network in networks) / 1e6


def row(*cells: object) -> None:
    print("|", " | ".join(str(cell) for cell in cells), "|")


def variants() -> None:
    """What other readings of the paper's tables hold."""
    row("network", "channels", "residual blocks", "other", "parameters (M)", "paper (M)")
    row(*["---"] * 6)
    for blocks in (1, 2, 3):
        options = CONFIGURATIONS["paper"]["first_stage"] | {"num_res_blocks": blocks}
        row("autoencoder", options["channels"], blocks, "", f"{millions(build_first_stage(options)):.0f}", "237")
    for hidden, shared in ((64, False), (128, False), (128, True)):
        network = MSSPADE(3, TARGETS, **CONFIGURATIONS["paper"]["spade"] | {"hidden": hidden, "shared": shared})
        what = f"{hidden} hidden channels, {'shared' if shared else 'a set per target'}"
        row("MS-SPADE", "Table B", 2, what, f"{millions(network):.0f}", "in 237")
    for channels in ([128, 256, 512], [256, 512, 1024]):
        for blocks in (1, 2, 3):
            for attention in ([False] * 3, [False, False, True], [False, True, True]):
                options = {"channels": channels, "attention": attention, "num_res_blocks": blocks}
                network = Denoiser(3, TARGETS, **CONFIGURATIONS["paper"]["denoiser"] | options)
                where = f"attention in the middle and {sum(attention)} levels"
                row("denoiser", channels, blocks, where, f"{millions(network):.0f}", "658")


def configurations() -> None:
    """Every configuration's parameters, and the operations of one call at full size."""
    row("configuration", "network", "parameters (M)", "paper (M)", "GFLOP")
    row(*["---"] * 5)
    for name, options in CONFIGURATIONS.items():
        stage = build_first_stage(options["first_stage"]).eval()
        spade = MSSPADE(stage.channels, TARGETS, **options["spade"])
        # One item takes as many operations with convolutions of its own as with shared ones.
        switched = MSSPADE(stage.channels, TARGETS, **options["spade"] | {"shared": True})
        denoiser = Denoiser(stage.channels, TARGETS, **options["denoiser"])
        image = torch.empty(1, 1, *SIZE)
        latents = torch.empty(1, stage.channels, *(n // stage.factor for n in SIZE))
        target, time = torch.zeros(1, dtype=torch.long), torch.zeros(1)
        both = f"{millions(stage, spade):.1f}"
        published = name == "paper"
        row(name, "first stage, encode", f"{millions(stage):.1f}", "", f"{gflops(stage.raw_encode, image):.1f}")
        row(name, "first stage, decode", "(same)", "", f"{gflops(stage.raw_decode, latents):.1f}")
        row(name, "MS-SPADE", f"{millions(spade):.1f}", "", f"{gflops(switched, latents, target):.1f}")
        row(name, "first stage and MS-SPADE", both, "237" if published else "", "")
        step = f"{gflops(denoiser, latents, latents, time, target):.1f}"
        row(name, "denoiser, one step", f"{millions(denoiser):.1f}", "658" if published else "", step)


if __name__ == "__main__":
    with FakeTensorMode():
        configurations()
        print(f"\n{GAPS}\n")
        variants()
