"""The one-step baseline: a plain UNet straight from the sources to the targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers.utils import sliding_window_inference

from ..diffusion.samplers import OnStep
from ..networks.configurations import build_first_stage
from ..networks.haar import HaarFirstStage
from ..networks.unet import build_unet
from .base import Translator

_LARGEST_BLOCK = 16  # voxels that are one at the UNet's last level, along each axis
_LEFT_RIGHT = 2  # axis of images and latents, R
_WINDOW_OVERLAP = 0.25  # of the windows' edge
_WINDOW_SPREAD = 0.2  # SD of their weights, of that edge: with less a seam shows, with more the end of a window does
_SAME = 1e-3  # difference of whitened latents, below which they are of the same image


@dataclass(eq=False)
class Condition:
    """What the UNet sees, (B, M * (C + 1), x, y, z) of M modalities; once a target was asked for, what it made."""

    inputs: torch.Tensor | None
    made: dict[str, torch.Tensor] | None = None


class RegressionTranslator(Translator):
    """MONAI's BasicUNet, which predicts all targets in one pass from any non-empty set of sources.

    Its input is one slot of latents per modality, zero where the source is not available, and one availability channel
    per modality (on missing inputs: Havaei et al. 2016, Chartsias et al. 2018), zero outside its head too. Its output
    is one slot of latents per modality, so a training step learns from every contrast of a head at once.

    Args:
        modalities: canonical names, in the order of the networks' slots.
        first_stage: options of :func:`~..networks.configurations.build_first_stage`; best the Haar stage of no level,
            the voxels themselves: in coefficients at half the resolution a map of intensities is hard to learn.
        unet: ``features``, the six widths of MONAI's BasicUNet, multiples of eight.
        outlined: sources are available inside the head alone, so that fluid as dark as the background around a stripped
            brain is no background: the one is bright in T2, the other dark. False: everywhere.
            ValueError where the first stage is no Haar transform.
        mirrored: results are the mean of what the UNet makes of the head and of its mirror image, left for right.
        t1_in_t1ce: share of the T1 in a T1ce that is made of it, from 0 to 1. But for the uptake, which cannot be
            known, they are one image, and the errors of the UNet are its own. ValueError outside of this range.
        window: edge, in voxels of the latents, of the overlapping windows that larger images are translated in, a
            multiple of 16; None: at once. The group norms know crops from training, and means and variances of whole
            heads differ from theirs: a few weights then mistake one contrast for another. ValueError otherwise.
        brain_apart: whether it knows a brain without its skull better than a whole head, having learned from few.
    """

    method = "regression"
    mode = "one step"
    default_steps = 1
    iterative = False
    joint = True
    live_activations = 4

    def __init__(
        self,
        modalities: Sequence[str],
        first_stage: Mapping[str, Any],
        unet: Mapping[str, Any],
        outlined: bool = False,
        mirrored: bool = False,
        t1_in_t1ce: float = 0.0,
        window: int | None = None,
        brain_apart: bool = False,
    ) -> None:
        if not 0 <= t1_in_t1ce <= 1:
            raise ValueError(f"The share of the T1 in the T1ce must be from 0 to 1, not {t1_in_t1ce}.")
        if window is not None and (window < _LARGEST_BLOCK or window % _LARGEST_BLOCK):
            raise ValueError(f"The edge of the windows must be a multiple of {_LARGEST_BLOCK}, not {window}.")
        stage = build_first_stage(first_stage)
        if outlined and not isinstance(stage, HaarFirstStage):
            raise ValueError("Sources can be outlined in voxels and Haar latents only: others see beyond a block.")
        super().__init__(modalities, stage, network_factor=_LARGEST_BLOCK, width=3 * unet["features"][0])
        self.outlined = outlined
        self.mirrored = mirrored
        self.window = window
        self.brain_apart = brain_apart
        self.kept = {"T1ce": ("T1", t1_in_t1ce)} if t1_in_t1ce else {}
        slots = len(modalities)
        self.unet = build_unet(slots * (stage.channels + 1), slots * stage.channels, **unet)

    def inputs(self, latents: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Slots of latents and availability channels, (B, M * (C + 1), x, y, z)."""
        like = next(iter(latents.values()))
        absent = torch.zeros_like(like)
        slots = [latents.get(modality, absent) for modality in self.modalities]
        flags = [self._available(latents.get(modality), like) for modality in self.modalities]
        return torch.cat(slots + flags, dim=1)

    def _available(self, latents: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """1 where a source is there, (B, 1, x, y, z); background is what has the latents of an image that is all -1."""
        if latents is None or not self.outlined:
            return torch.full_like(like[:, :1], float(latents is not None))
        block = torch.full((1, 1, *3 * (self.first_stage.factor,)), -1.0, device=like.device)
        background = self.first_stage.encode(block)
        return ((latents - background).abs().amax(1, keepdim=True) > _SAME).to(like.dtype)

    def predict(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Latents (B, C, x, y, z) of every modality."""
        return self._by_name(self.unet(inputs).float())

    def _by_name(self, slots: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.modalities, slots.chunk(len(self.modalities), dim=1), strict=True))

    def _predict_in_windows(self, inputs: torch.Tensor, begin: Callable[[], None]) -> dict[str, torch.Tensor]:
        """As :meth:`predict`, by windows that are blended with Gaussian weights; ``begin`` is called before each."""

        def predict(crop: torch.Tensor) -> torch.Tensor:
            begin()
            return self.unet(crop).float()

        edges = self._edges(inputs.shape[2:])
        if edges == list(inputs.shape[2:]):
            return self._by_name(predict(inputs))
        made = sliding_window_inference(
            inputs, edges, 1, predict, overlap=_WINDOW_OVERLAP, mode="gaussian", sigma_scale=_WINDOW_SPREAD
        )
        return self._by_name(made)

    def passes(self, size: Sequence[int]) -> int:
        """Windows of an image, twice where the mirror image is translated too."""
        sides = [side // self.first_stage.factor for side in size]
        axes = zip(sides, self._edges(sides), strict=True)
        windows = math.prod(1 + math.ceil((side - edge) / int(edge * (1 - _WINDOW_OVERLAP))) for side, edge in axes)
        return windows * (1 + self.mirrored)

    def working_bytes(self, voxels: int, bytes_per_value: int) -> int:
        """Activations of one window, and what goes in and comes out of the whole image."""
        if self.window is None:
            return super().working_bytes(voxels, bytes_per_value)
        window = (self.window * self.first_stage.factor) ** 3
        slots = len(self.modalities) * (2 * self.first_stage.channels + 1)
        whole = voxels // self.first_stage.factor**3 * 4 * (slots + 1)  # and the sum of the weights
        return super().working_bytes(min(voxels, window), bytes_per_value) + whole

    def _edges(self, sides: Sequence[int]) -> list[int]:
        """Of a window in latents of such sides."""
        return list(sides) if self.window is None else [min(self.window, side) for side in sides]

    def condition(self, latents: Mapping[str, torch.Tensor], target: str) -> Condition:
        """The same for every target."""
        return Condition(self.inputs(latents))

    def stochastic(self, steps: int) -> bool:
        """Never."""
        return False

    def sample(
        self, condition: Condition, target: str, *, steps: int, generator: torch.Generator, on_step: OnStep
    ) -> torch.Tensor:
        """One pass of the UNet (mirrored: two) for all targets of a condition, whatever ``steps``; none is random.

        ``on_step`` is called before each window.
        """
        if condition.made is None:
            passes = self.passes([side * self.first_stage.factor for side in condition.inputs.shape[2:]])
            numbers = iter(range(passes))

            def begin() -> None:
                on_step(next(numbers), passes)

            made = self._predict_in_windows(condition.inputs, begin)
            if self.mirrored:
                mirror = self._predict_in_windows(condition.inputs.flip(_LEFT_RIGHT), begin)
                made = {name: (z + mirror[name].flip(_LEFT_RIGHT)) / 2 for name, z in made.items()}
            condition.made, condition.inputs = made, None
        return condition.made[target]
