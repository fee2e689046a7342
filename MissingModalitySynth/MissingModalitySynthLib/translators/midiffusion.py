"""MIDiffusion (Wang et al. 2023, 2024): zero-shot translation, by networks that have seen images of the target alone.

As published, local mutual information, which one-to-one maps of intensity do not change, says what a source of any
contrast shows. Guided, a segmenter that knows made-up contrasts says it, and local mutual information pulls the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from monai.networks.utils import pixelunshuffle
from torch import nn
from torch.nn import functional as F

from ..diffusion.guidance import descending_times, sample_guided, towards_information
from ..diffusion.mutual_information import PUBLISHED, local_mutual_information, self_information
from ..diffusion.samplers import OnStep, ddpm, gaussian
from ..diffusion.schedules import add_noise, alphas_cumprod
from ..errors import DivergenceError, InputError
from ..intensity import DARKEST, head_mask
from ..modality import shown_name
from ..networks.configurations import build_first_stage
from ..networks.segmenter import Segmenter
from ..networks.unet import build_unet
from ..segmentation import CLASSES, tissue_shares
from ..tissue_mixture import refine_tissues
from .base import Translator

MODES = ("guided", "published")
SCHEDULES = {"guided": {"schedule": "cosine"}, "published": {"schedule": "linear_beta"}}
# Windows that a window is compared with, in blocks of COARSE voxels: its neighbours along the axes.
OFFSETS = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
SELF_WINDOW, SELF_STRIDE, SELF_BINS = 5, 2, 8  # in blocks
RANKED = 4096
STRIDE = 3  # of the windows' centres in the image; windows of a multiple of it leave no lattice in the gradient
NO_STRUCTURE = 0.02  # nats: what neighbouring windows of a constant image or of noise share, and less
COARSE = 2  # voxels of the image along each axis whose mean is compared
SLICES = 16  # that are computed at once
# Shares of the head that are darker than its dark and its bright. Where the dark has so much of the bright's signal, as
# in proton density, the contrast is flat, and the dark becomes SPREAD_FROM and the bright 1.
DARK, BRIGHT = 0.1, 0.98
FLAT = 0.6
SPREAD_FROM = -0.8


class Condition(NamedTuple):
    """What the sampler is told about a source.

    Attributes:
        channels: what the UNet sees beside the noisy state, whatever that is.
        image: as acquired, (B, 1, X, Y, Z) in [-1, 1], or its slices (N, 1, X, Y).
        ranks, mask: the ranks of the intensities in the head, in [-1, 1], and the head, bool; for the pull.
    """

    channels: torch.Tensor
    image: torch.Tensor
    ranks: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def hidden(self) -> Condition:
        """The same, but nothing of the source reaches the UNet: all that it could know is 0."""
        return self._replace(channels=torch.zeros_like(self.channels))


def ranks(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Intensities (1, 1, X, Y, Z) to their ranks in the mask, in [-1, 1]; 0 outside.

    Increasing maps of the intensities change nothing, and decreasing ones the sign alone. The ranks are those among
    about RANKED voxels of the mask.
    """
    inside = image[mask]
    table = _table(inside)
    below, upto = (torch.searchsorted(table, inside, right=right) for right in (False, True))
    result = torch.zeros_like(image)
    result[mask] = ((below + upto) / len(table) - 1).to(image.dtype)
    return result


def spread_flat(image: torch.Tensor) -> torch.Tensor:
    """An image (1, 1, X, Y, Z) in [-1, 1] with its intensities spread out, where the contrast is flat.

    Else it is what it was. Exact background (-1) stays so. A segmenter tells by how tissues differ which of them is
    white matter; where all are near the brightest, little of the range is left for that. Of a whole head the bone and
    the air count as well, so that it is hardly ever taken for flat.
    """
    inside = image > -1
    values = _table(image[inside].float())
    if not len(values):
        return image
    dark, bright = (values[int(share * (len(values) - 1))] for share in (DARK, BRIGHT))
    if (dark + 1) < FLAT * (bright + 1) or not dark < bright:
        return image
    spread = SPREAD_FROM + (1 - SPREAD_FROM) * (image - dark) / (bright - dark)
    return torch.where(inside, spread.clamp(DARKEST, 1), image)


def _table(inside: torch.Tensor) -> torch.Tensor:
    """About RANKED of these values in rising order."""
    return inside[:: max(len(inside) // RANKED, 1)].sort().values


def _shared(ranked: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What neighbouring windows in the head share, in nats, of the means of blocks of COARSE voxels."""
    coarse, inside = (F.avg_pool3d(x.float(), COARSE) for x in (ranked, mask))
    coarse = coarse / inside.clamp_min(1e-3)
    options = {"window": SELF_WINDOW, "bins": SELF_BINS, "stride": SELF_STRIDE, "mask": inside > 0.5}
    return self_information(coarse, OFFSETS, **options).mean() / mask.float().mean()


def slices_of(image: torch.Tensor) -> torch.Tensor:
    """(B, 1, X, Y, Z) to its slices across the axis S, (Z B, 1, X, Y)."""
    return image.movedim(-1, 0).flatten(0, 1)


class MidiffusionTranslator(Translator):
    """One source of any contrast to the targets that the networks have learned.

    ``published``: images without a first stage, whole or slice by slice across the axis S. The UNet predicts the noise
    from [x_t, LMI(source, x_t), LMI(source, source)] and is sampled by DDPM from pure noise, T = 1000, beta linear from
    1e-4 to 0.02, variance "fixed large" (Wang et al. 2024).

    ``guided``: in the latents of the first stage, best the Haar stage of no level, the voxels themselves. A segmenter
    tells the tissues of the source, whatever its contrast (as SynthSeg, Billot et al. 2023), and the brightness that
    they have there tells them more sharply (``tissue_mixture.py``); the UNet sees the source and both. Segmenter and
    UNet have learned from the target in made-up contrasts (``training/pseudo_sources.py``; as SynthSR, Iglesias et al.
    2021, made its inputs). Each estimate is pulled towards the source by the gradient of the local mutual information
    (``diffusion/guidance.py``), which needs no training.

    Args:
        modalities: the targets, in the order of the networks' indices. The source's name is not known to the networks.
        first_stage: options of :func:`~..networks.configurations.build_first_stage`.
        unet: ``guided``: ``features`` of MONAI's BasicUNet, which learns time and target from constant channels, and
            the width of the segmenter, ``tissues``;
            ``published``: ``channels``, ``attention`` and other options of MONAI's DiffusionModelUNet.
        mode: one of :data:`MODES`, for which the UNet was trained.
        spatial_dims: 3, or 2 for slices (``published`` only).
        steps: default number of steps.
        start: where the sampler begins, as a fraction of time: 1 at pure noise, less at the noised source.
        guidance: RMS change of each clean estimate by the pull, in intensities of [-1, 1] over the head; 0: none.
        guidance_range: fractions of time between which there is a pull.
        window, bins: of its local mutual information.
        conditioned: False hides the source from the UNet; without guidance and from ``start`` < 1 this is SDEdit.
    """

    method = "midiffusion"
    iterative = True

    def __init__(
        self,
        modalities: Sequence[str],
        first_stage: Mapping[str, Any],
        unet: Mapping[str, Any],
        mode: str = "guided",
        spatial_dims: int = 3,
        steps: int = 1,
        start: float = 1.0,
        guidance: float = 0.1,
        guidance_range: Sequence[float] = (0.0, 1.0),
        window: int = 9,
        bins: int = 8,
        conditioned: bool = True,
    ) -> None:
        if mode not in MODES or (mode == "guided" and spatial_dims != 3):
            raise ValueError(f"No mode '{mode}' in {spatial_dims} dimensions: guided works in 3, published in 2 and 3.")
        if not 0 < start <= 1:
            raise ValueError(f"The start must be a fraction of time above 0 and up to 1, not {start}.")
        stage = build_first_stage(first_stage)
        options = dict(unet)
        if mode == "guided":
            tissues = options.pop("tissues")
            super().__init__(modalities, stage, network_factor=32, width=3 * options["features"][0])
            self.tissues = Segmenter(tissues)
            told = stage.channels + (1 + 2 * len(CLASSES)) * stage.factor**3 + 2 + len(modalities)
            self.unet = build_unet(told, stage.channels, **options)
            # logarithm of how far the targets are from what the source tells of them, by channel of the latents
            self.log_spread = nn.Parameter(torch.full((stage.channels,), -0.7))
        else:
            super().__init__(modalities, stage, 2 ** (len(options["channels"]) - 1), options["channels"][0])
            self.unet = DiffusionModelUNet(
                spatial_dims=spatial_dims,
                in_channels=3,
                out_channels=1,
                channels=tuple(options.pop("channels")),
                attention_levels=tuple(options.pop("attention")),
                num_class_embeds=len(modalities),
                use_flash_attention=True,
                **options,
            )
        self.mode, self.spatial_dims = mode, spatial_dims
        self.default_steps = steps
        self.start, self.conditioned = start, conditioned
        self.guidance, self.guidance_range = guidance, tuple(guidance_range)
        self.window, self.bins = window, bins
        with torch.device("cpu"):  # numbers, also where the networks are built without any
            self.alpha_bar = alphas_cumprod(**SCHEDULES[mode])

    def working_bytes(self, voxels: int, bytes_per_value: int) -> int:
        """As :meth:`Translator.working_bytes`, and the histograms: weights of two images and their gradients."""
        return super().working_bytes(voxels, bytes_per_value) + 6 * 4 * self.bins * voxels

    def encode(self, images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The images as they are: the first stage knows the targets, and no other contrast."""
        return dict(images)

    def condition(self, latents: Mapping[str, torch.Tensor], target: str) -> Condition:
        """From one source image (1, 1, X, Y, Z) in [-1, 1] under any name; the same for all targets.

        Raises:
            InputError: there are several sources, or this one shows nothing: it is constant, or noise.
        """
        if len(latents) != 1:
            raise InputError(f"Zero-shot translation takes one source, not {', '.join(latents)}: choose the best one.")
        ((name, image),) = latents.items()
        prepared = self.prepare(image)
        if not _shared(prepared.ranks, prepared.mask) > NO_STRUCTURE:
            raise InputError(
                f"The source, {shown_name(name)}, shows no structure that could guide: it is constant, or only noise."
            )
        return prepared

    def prepare(self, image: torch.Tensor) -> Condition:
        """:meth:`condition` of an image without its check."""
        mask = torch.from_numpy(head_mask(image[0, 0].cpu().numpy()))[None, None].to(image.device)
        return self.describe(image)._replace(ranks=ranks(image, mask), mask=mask)

    def describe(self, image: torch.Tensor) -> Condition:
        """What the UNet sees of an image, or of slices in the mode that works on slices, and no more."""
        if self.mode == "published":
            if self.spatial_dims == 2 and image.ndim == 5:
                image = slices_of(image)
            parts = [local_mutual_information(part, part, **PUBLISHED) for part in image.split(SLICES)]
            return Condition(torch.cat(parts), image)
        with torch.no_grad():  # the segmenter has learned before
            shares = tissue_shares(self.tissues, spread_flat(image))
            seen = torch.cat([image, shares, refine_tissues(shares, image)], dim=1)
        return Condition(pixelunshuffle(seen, 3, self.first_stage.factor), image)

    def clean(self, x: torch.Tensor, condition: Condition, t: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Estimate of the clean latents, float32, from x_t (1, C, x, y, z) at the times ``t`` (1,), 0 to T - 1.

        The UNet makes c of what it sees, and the state has its say according to its noise::

            x_0 = c + s^2 / (s^2 + (1 - a) / a) (x_t / sqrt(a) - c),       a = alpha_bar_t

        the mean of what both c, with a learned variance of s^2, and x_t say.
        """
        a = self.alpha_bar.float().to(x.device)[t].view(-1, 1, 1, 1, 1)
        one_hot = F.one_hot(target, len(self.modalities)).float()[:, :, None, None, None]
        told = torch.cat([a.sqrt(), (1 - a).sqrt(), one_hot], dim=1).expand(-1, -1, *x.shape[2:])
        found = self.unet(torch.cat([a.sqrt() * x, condition.channels, told], dim=1)).float()
        spread = a * (2 * self.log_spread).exp().view(1, -1, 1, 1, 1)
        return found + spread / (spread + 1 - a) * (x / a.sqrt().clamp_min(1e-3) - found)

    def noise(
        self,
        x: torch.Tensor,
        image: torch.Tensor,
        channels: torch.Tensor,
        t: torch.Tensor,
        target: torch.Tensor,
        state: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``published``: estimate of the noise in x_t (N, 1, X, Y) or (B, 1, X, Y, Z), float32.

        Args:
            image: the source, of the same shape.
            channels: LMI(source, source).
            state: what is compared with the source; x_t by default, x_(t+1) in training.
        """
        shared = local_mutual_information(image, x if state is None else state, **PUBLISHED)
        return self.unet(torch.cat([x, shared, channels], dim=1), timesteps=t.float(), class_labels=target).float()

    def stochastic(self, steps: int) -> bool:
        """Yes, but for one guided step from pure noise, which is a regression."""
        return self.mode == "published" or steps > 1 or self.start < 1

    def sample(
        self, condition: Condition, target: str, *, steps: int, generator: torch.Generator, on_step: OnStep
    ) -> torch.Tensor:
        """See :meth:`Translator.sample`.

        Raises:
            DivergenceError: the guidance, or the network itself, ran away.
        """
        last = max(round(self.start * len(self.alpha_bar)), 1)
        alpha_bar = self.alpha_bar[:last]
        begin = condition.image if self.mode == "published" else self.first_stage.encode(condition.image)
        # of pure noise one step sees nothing, up to rounding
        x = gaussian(begin, generator) if self.stochastic(steps) else torch.zeros_like(begin)
        if self.start < 1:
            x = add_noise(begin, x, alpha_bar[-1:].float().to(x.device))
        if self.mode == "published":
            return self._sample_published(condition, target, x, alpha_bar, steps, generator, on_step)
        seen = condition if self.conditioned else condition.hidden()

        def pull(clean: torch.Tensor, time: float) -> torch.Tensor:
            if not self.guidance or not self.guidance_range[0] <= time <= self.guidance_range[1]:
                return clean
            options = {"window": self.window, "bins": self.bins, "stride": STRIDE, "mask": condition.mask}
            return towards_information(clean, condition.ranks, self.first_stage, weight=self.guidance, **options)

        def estimate(x: torch.Tensor, t: int) -> torch.Tensor:
            time = torch.full((x.shape[0],), t, device=x.device)
            return self.clean(x, seen, time, self.index(target, x))

        times = descending_times(last, steps)
        return sample_guided(estimate, x, self.alpha_bar, times=times, pull=pull, on_step=on_step)

    def _sample_published(self, condition, target, x, alpha_bar, steps, generator, on_step):
        def predict(x: torch.Tensor, t: int) -> torch.Tensor:
            parts = zip(*(whole.split(SLICES) for whole in (x, condition.image, condition.channels)), strict=True)
            return torch.cat(
                [
                    self.noise(*part, part[0].new_full(part[0].shape[:1], t), self.index(target, part[0]))
                    for part in parts
                ]
            )

        def whole(x: torch.Tensor) -> torch.Tensor:
            return x.movedim(0, -1)[:, None] if self.spatial_dims == 2 else x

        try:
            x = ddpm(predict, x, alpha_bar, steps=steps, large=True, generator=generator, on_step=on_step)
        except DivergenceError as error:
            good = error.last_good
            raise DivergenceError(error.step, error.steps, None if good is None else whole(good)) from error
        return whole(x)
