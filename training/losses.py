"""Training losses: each a function that reads like its equation. Images are (B, 1, X, Y, Z) in [-1, 1]."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from MissingModalitySynthLib.diffusion.bridge import interpolate
from MissingModalitySynthLib.networks.first_stage import FirstStage
from MissingModalitySynthLib.networks.spade import fuse
from MissingModalitySynthLib.translators.aldm import TIME_SCALE, AldmTranslator
from MissingModalitySynthLib.translators.regression import RegressionTranslator

from .batches import Pair


def latent_and_image_l1(
    stage: FirstStage, predicted: torch.Tensor, latents: torch.Tensor, image: torch.Tensor, latent_weight: float
) -> torch.Tensor:
    """|decode(z') - x|_1 + w |z' - z|_1: the image for accuracy, the whitened latents for detail.

    In whitened wavelet latents the bands of fine detail weigh as much as the mean, in the image they hardly count.
    """
    predicted = predicted.float()
    return F.l1_loss(stage.decode(predicted), image) + latent_weight * F.l1_loss(predicted, latents)


def regression_losses(
    model: RegressionTranslator, pair: Pair, generator: torch.Generator, *, latent_weight: float = 0.1
) -> dict[str, torch.Tensor]:
    """The baseline: one pass from the sources to the target."""
    with torch.no_grad():
        sources = model.encode(pair.sources)
        latents = model.first_stage.encode(pair.image)
    condition = model.condition(sources, pair.target)
    predicted = model.sample(condition, pair.target, steps=1, generator=generator, on_step=lambda *_: None)
    return {"regression": latent_and_image_l1(model.first_stage, predicted, latents, pair.image, latent_weight)}


def spade_loss(model: AldmTranslator, pair: Pair, *, latent_weight: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of the target-like latents of each source from the target (ALDM section 3.1), and the fused latents."""
    target_like = []
    for image in pair.sources.values():
        with torch.no_grad():
            z = model.first_stage.encode(image)
        target_like.append(model.spade(z, model.index(pair.target, z)).float())
    with torch.no_grad():
        latents = model.first_stage.encode(pair.image)
    terms = [latent_and_image_l1(model.first_stage, z, latents, pair.image, latent_weight) for z in target_like]
    return torch.stack(terms).mean(), fuse(target_like)


def bridge_losses(
    model: AldmTranslator,
    pair: Pair,
    generator: torch.Generator,
    *,
    latent_weight: float = 0.1,
    spade_weight: float = 0.5,
    start_share: float = 0.5,
) -> dict[str, torch.Tensor]:
    """MS-SPADE and bridge trained together, the gradient of the bridge flowing into MS-SPADE.

    The velocity v = z_tar - z_src^tar is judged by the end that it points to, in latents and image. ``start_share`` of
    the times are tau = 0, where every sampler begins; the others are uniform in [0, 1].
    """
    spade, start = spade_loss(model, pair, latent_weight=latent_weight)
    with torch.no_grad():
        latents = model.first_stage.encode(pair.image)
        tau = torch.rand(start.shape[0], generator=generator)
        tau = torch.where(torch.rand(start.shape[0], generator=generator) < start_share, 0.0, tau).to(start.device)
        noise = torch.randn(start.shape, generator=generator).to(start.device)
    x = interpolate(start, latents, tau, model.sigma, noise)
    velocity = model.denoiser(x, start, tau * TIME_SCALE, model.index(pair.target, x))
    bridge = latent_and_image_l1(model.first_stage, start + velocity.float(), latents, pair.image, latent_weight)
    return {"spade": spade_weight * spade, "bridge": bridge}
