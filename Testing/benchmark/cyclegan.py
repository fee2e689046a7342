"""CycleGAN (Zhu et al. 2017), the unpaired baseline of ``zero_shot.py``: slices of one source contrast and of T1.

    python Testing/benchmark/cyclegan.py --config RECIPE --source PD --run FOLDER [--identity 5.0] [key=value ...]

The recipe is that of the zero-shot model, so both learn from the same heads; the schedule's length is
``midiffusion.optimizer_steps``. Unlike a zero-shot model it sees the source contrast, and serves this one alone.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import BasicUNet, PatchDiscriminator
from torch import nn
from torch.nn import functional as F

from MissingModalitySynthLib.translators.midiffusion import slices_of
from training.autoencoder import adversarial_losses
from training.checkpoint import averaged_weights
from training.configuration import load_configuration
from training.examples import make_examples
from training.loop import train

TARGET = "T1"
FEATURES = (16, 16, 32, 64, 128, 16)
SLICES = 4  # of each contrast in a training step
CYCLE, IDENTITY = 10.0, 5.0  # weights, as published; the second is for paintings, and may be 0


@dataclass(frozen=True)
class Unpaired:
    """Slices (N, 1, X, Y) in [-1, 1] of two different heads."""

    source: torch.Tensor
    target: torch.Tensor

    def __str__(self) -> str:
        return "slices of two heads"


def build() -> nn.ModuleDict:
    """Generators there and back, and a discriminator of each contrast."""

    def generator() -> nn.Module:
        return nn.Sequential(BasicUNet(2, 1, 1, FEATURES, norm=("instance", {"affine": True})), nn.Tanh())

    def judge() -> nn.Module:
        return PatchDiscriminator(spatial_dims=2, in_channels=1, channels=32, norm="INSTANCE")

    return nn.ModuleDict({"there": generator(), "back": generator(), "target": judge(), "source": judge()})


def losses(
    model: nn.ModuleDict, pair: Unpaired, generator: torch.Generator, *, identity: float = IDENTITY
) -> dict[str, torch.Tensor]:
    """Least-squares adversarial losses, |F(G(x)) - x| and |G(F(y)) - y|, |G(y) - y| and |F(x) - x|."""
    x, y = pair.source, pair.target
    made, remade = model["there"](x).float(), model["back"](y).float()
    terms = {
        "cycle": CYCLE * (F.l1_loss(model["back"](made).float(), x) + F.l1_loss(model["there"](remade).float(), y)),
        "identity": identity * (F.l1_loss(model["there"](y).float(), y) + F.l1_loss(model["back"](x).float(), x)),
    }
    for name, fake, real in (("target", made, y), ("source", remade, x)):
        judged = adversarial_losses(model[name], fake, real, 1.0)
        terms |= {f"{key} {name}": value for key, value in judged.items()}
    return terms


def drawn_slices(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A few slices with something in them."""
    slices = slices_of(image)
    full = slices.amax(dim=(1, 2, 3)) > -1
    slices = slices[full] if full.any() else slices
    return slices[torch.randperm(len(slices), generator=generator)[:SLICES]]


def train_cyclegan(configuration: dict[str, Any], source: str, run: Path, identity: float = IDENTITY) -> None:
    """Train, or go on, in ``run/SOURCE``, with this weight of |G(y) - y| and |F(x) - x|."""
    acquired = make_examples(configuration, run, contrasts=[source])
    other_heads = make_examples(configuration | {"seed": configuration["seed"] + 1}, run, targets_alone=[TARGET])

    def examples(number: int) -> Unpaired:
        generator = torch.Generator().manual_seed(number)
        first = acquired(number).sources[source]
        return Unpaired(drawn_slices(first, generator), drawn_slices(other_heads(number).image, generator))

    kept = {key: configuration[key] for key in ("data", "optimizer", "seed")}
    torch.manual_seed(configuration["seed"])
    train(
        build(),
        partial(losses, identity=identity),
        examples,
        folder=run / source,
        steps=configuration["midiffusion"]["optimizer_steps"],
        configuration={"source": source, "identity": identity, **kept},
        **configuration["optimizer"],
        **{key: value for key, value in configuration["machine"].items() if key != "gradient_checkpointing"},
    )


def load(run: Path, source: str) -> nn.Module:
    """The averaged generator from the source to T1, on slices (N, 1, X, Y) with axes that are multiples of 16."""
    model = build()
    model.load_state_dict(averaged_weights(run / source / "checkpoint.safetensors")[0])
    return model["there"].requires_grad_(False).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--source", required=True, help="contrast, such as PD")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--identity", type=float, default=IDENTITY, help="weight of that loss (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_args()
    configuration = load_configuration(options.config, options.overrides)
    train_cyclegan(configuration, options.source, options.run, options.identity)


if __name__ == "__main__":
    main()
