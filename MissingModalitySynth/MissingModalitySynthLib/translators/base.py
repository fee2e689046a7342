"""The interface that every translation method implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..diffusion.samplers import OnStep
from ..networks.first_stage import FirstStage


class Translator(nn.Module, ABC):
    """Turns images of the available contrasts into an image of a missing one.

    The steps are separate so that sources are encoded once for all targets, and a target is conditioned once for all
    samples. Images are (1, 1, X, Y, Z), sources in [-1, 1], results from -1 to
    :data:`~..intensity.BRIGHTEST`, axes R, A, S, every axis a multiple of ``multiple``.

    Attributes:
        method: name in requests, packages and on the command line.
        modalities: canonical names; the position in this list is the index that the networks know.
        first_stage: images to latents and back.
        width: channels of the networks' widest activations at the resolution of the latents.
        default_steps: number of denoiser evaluations when the request names none.
        mode: how the method samples, in words.
        iterative: whether the number of steps means anything.
        joint: whether a condition is the same for all targets, and what is made for the first of them is there for all.
        brain_apart: whether a brain without its skull is known better than a whole head (see ``Request``).
        kept: by target, the source that is part of the result where it is there, and its share (see ``synthesis``).
        live_activations: how many activations of that width are there at once: the skips of the UNet's first level and
            a block's temporaries.
    """

    method: str
    mode: str
    default_steps: int
    iterative: bool
    joint = False
    brain_apart = False
    kept: Mapping[str, tuple[str, float]] = {}
    live_activations = 12

    def __init__(self, modalities: Sequence[str], first_stage: FirstStage, network_factor: int, width: int) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.first_stage = first_stage
        self.multiple = first_stage.factor * network_factor
        self.width = width

    def working_bytes(self, voxels: int, bytes_per_value: int) -> int:
        """Estimate of the memory that translating an image of so many voxels takes, beside the weights."""
        return voxels // self.first_stage.factor**3 * self.width * bytes_per_value * self.live_activations

    def encode(self, images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Images by modality to latents by modality."""
        return {modality: self.first_stage.encode(image) for modality, image in images.items()}

    def passes(self, size: Sequence[int]) -> int:
        """How often the networks run for one step with an image of so many voxels along each axis."""
        return 1

    @abstractmethod
    def condition(self, latents: Mapping[str, torch.Tensor], target: str) -> Any:
        """What the sampler is told about the sources: latents of any non-empty set of them, for one target."""

    @abstractmethod
    def sample(
        self, condition: Any, target: str, *, steps: int, generator: torch.Generator, on_step: OnStep
    ) -> torch.Tensor:
        """Latents of the target. ``on_step(done, steps)`` is called before every step and may raise to stop."""

    @abstractmethod
    def stochastic(self, steps: int) -> bool:
        """Whether two seeds can give two results in so many steps."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of the target to its image (1, 1, X, Y, Z), not clipped."""
        return self.first_stage.decode(latents)

    def index(self, modality: str, like: torch.Tensor) -> torch.Tensor:
        """Index of a modality, shape (B,), for a batch like ``like``."""
        return torch.full((like.shape[0],), self.modalities.index(modality), device=like.device)
