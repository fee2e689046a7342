"""MIDiffusion's training: of images the target contrast alone, see ``pseudo_sources.py``."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from MissingModalitySynthLib.diffusion.schedules import add_noise
from MissingModalitySynthLib.translators.midiffusion import MidiffusionTranslator, slices_of

from .batches import Pair, choose
from .losses import Terms, squared_error
from .pseudo_sources import pseudo_source
from .simulation.randomness import chance

SMALL_NOISE = 0.25  # 1 - alpha_bar
SLICES = 4  # of a head in a training step of the published form


def midiffusion_losses(
    model: MidiffusionTranslator,
    pair: Pair,
    generator: torch.Generator,
    *,
    latent_weight: float = 1.0,
    image_weight: float = 4.0,
    hidden_share: float = 0.15,
    artefacts: float = 0.6,
    monotone_share: float = 0.2,
) -> Terms:
    """A clean estimate from a noisy state and what :func:`pseudo_source` shows of the head: squared error.

    In half of the examples at the time T - 1, where every sampler from noise begins, else at one drawn from all. The
    error is taken over 1 - alpha_bar (SMALL_NOISE at least), so that each time is about as hard as any other. In
    ``hidden_share`` of the examples nothing is shown of the source, so that the same network knows the target by itself
    (SDEdit).
    """
    stage = model.first_stage
    with torch.no_grad(), torch.autocast(pair.image.device.type, enabled=False):  # the simulator computes in float32
        latents = stage.encode(pair.image)
        source = pseudo_source(pair.image, generator, artefacts, pair.labels, monotone_share)
    condition = model.describe(source)
    last = len(model.alpha_bar) - 1
    t = last if chance(generator, 0.5) else choose(generator, last)
    if chance(generator, hidden_share):
        condition = condition.hidden()
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    alpha_bar = model.alpha_bar[t].item()
    x = add_noise(latents, noise, latents.new_tensor([alpha_bar]))
    clean = model.clean(x, condition, torch.full((1,), t, device=x.device), model.index(pair.target, x))
    error = squared_error(stage, clean, latents, pair.image, latent_weight, image_weight)
    return {"midiffusion": error / max(1 - alpha_bar, SMALL_NOISE)}


def published_losses(model: MidiffusionTranslator, pair: Pair, generator: torch.Generator) -> Terms:
    """E |epsilon - epsilon_theta([x_t, LMI(x_0, x_(t+1)), LMI(x_0, x_0)], t)|^2 (Wang et al. 2024), one epsilon in both
    states. In two dimensions on a few slices of the head."""
    image = pair.image
    if model.spatial_dims == 2:
        slices = slices_of(image)
        full = slices.amax(dim=(1, 2, 3)) > -1  # of air nothing can be learned
        slices = slices[full] if full.any() else slices
        image = slices[torch.randperm(len(slices), generator=generator)[:SLICES].to(slices.device)]
    t = torch.randint(len(model.alpha_bar), image.shape[:1], generator=generator)
    after = (t + 1).clamp(max=len(model.alpha_bar) - 1)
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    x, state = (add_noise(image, noise, model.alpha_bar[s].float().to(image.device)) for s in (t, after))
    with torch.no_grad():
        channels = model.describe(image).channels
    predicted = model.noise(x, image, channels, t.to(image.device), model.index(pair.target, x), state)
    return {"midiffusion": F.mse_loss(predicted, noise)}
