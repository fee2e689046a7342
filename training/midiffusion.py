"""MIDiffusion's training: the target contrast alone. What stands in for the unseen source is made of the target."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from MissingModalitySynthLib.diffusion.schedules import add_noise
from MissingModalitySynthLib.translators.midiffusion import MidiffusionTranslator, slices_of

from .batches import Pair, choose
from .losses import Terms, squared_error
from .simulation.artefacts import acquire
from .simulation.randomness import chance, device_generator, smooth_field, uniform

KNOTS = 7  # of a map of intensities
DARKEST = 0.05  # of mapped tissue, background being 0: a source shows its head
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
) -> Terms:
    """Clean estimates from noisy states and what :func:`pseudo_source` shows of the head: squared errors.

    At two times: T - 1, where every sampler from noise begins, and one drawn from all. Its error is taken over
    1 - alpha_bar (0.05 at least), so that each time is about as hard as any other. In ``hidden_share`` of the examples
    the second estimate sees nothing of the source, so that the same network knows the target by itself (SDEdit).
    """
    stage = model.first_stage
    with torch.no_grad(), torch.autocast(pair.image.device.type, enabled=False):  # the simulator computes in float32
        latents = stage.encode(pair.image)
        condition = model.describe(pseudo_source(pair.image, generator, artefacts))
    last = len(model.alpha_bar) - 1
    loss = 0.0
    for t, seen in (
        (last, condition),
        (choose(generator, last), condition.hidden() if chance(generator, hidden_share) else condition),
    ):
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        alpha_bar = model.alpha_bar[t].item()
        x = add_noise(latents, noise, latents.new_tensor([alpha_bar]))
        time = torch.full((1,), t, device=x.device)
        clean = model.clean(x, seen, time, model.index(pair.target, x))
        error = squared_error(stage, clean, latents, pair.image, latent_weight, image_weight)
        loss = loss + error / max(1 - alpha_bar, 0.05) / 2
    return {"midiffusion": loss}


def published_losses(model: MidiffusionTranslator, pair: Pair, generator: torch.Generator) -> Terms:
    """E |epsilon - epsilon_theta([x_t, LMI(x_0, x_(t+1)), LMI(x_0, x_0)], t)|^2 (Wang et al. 2024), one epsilon in both
    states. In two dimensions on a few slices of the head."""
    image = pair.image
    if model.spatial_dims == 2:
        slices = slices_of(image)
        full = slices.amax(dim=(1, 2, 3)) > -1  # of air nothing can be learned
        slices = slices[full] if full.any() else slices
        image = slices[torch.randperm(len(slices), generator=generator)[:SLICES].to(slices.device)]
    t = torch.randint(len(model.alpha_bar) - 1, image.shape[:1], generator=generator)
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    x, state = (add_noise(image, noise, model.alpha_bar[s].float().to(image.device)) for s in (t, t + 1))
    with torch.no_grad():
        channels = model.describe(image).channels
    predicted = model.noise(x, image, channels, t.to(image.device), model.index(pair.target, x), state)
    return {"midiffusion": F.mse_loss(predicted, noise)}


def pseudo_source(image: torch.Tensor, generator: torch.Generator, artefacts: float = 0.6) -> torch.Tensor:
    """The target (1, 1, X, Y, Z) in [-1, 1] as another contrast might show the head; exact background stays so.

    Its intensities are mapped by :func:`intensity_map`, in half of the draws by two maps that take turns in space, as
    other contrasts tell apart what is alike in the target; then comes what an acquisition does to an image.

    Args:
        artefacts: factor on those of :func:`~.simulation.artefacts.acquire`.
    """
    signal = (image[0, 0] + 1) / 2
    mapped = _interpolate(intensity_map(generator), signal)
    if chance(generator, 0.5):
        field = smooth_field(generator, signal.shape, uniform(generator, 16, 40), signal.device)
        mapped = mapped.lerp(_interpolate(intensity_map(generator), signal), torch.sigmoid(4 * field))
    mapped *= signal > 0
    acquired, _ = acquire(mapped, generator, device_generator(generator, image.device), strength=artefacts)
    return (2 * acquired * (signal > 0) - 1).clamp(max=1)[None, None]


def intensity_map(generator: torch.Generator) -> torch.Tensor:
    """Values of a random continuous map of [0, 1] at KNOTS even places, from DARKEST to 1.

    A quarter rises, a quarter falls, as proton density against T1; half does neither, as FLAIR against T1.
    """
    values = torch.rand(KNOTS, generator=generator)
    kind = uniform(generator, 0, 1)
    if kind < 0.5:
        values = (values + 0.1).cumsum(0)
    if kind < 0.25:
        values = values.flip(0)
    values = (values - values.min()) / (values.max() - values.min())
    return DARKEST + (1 - DARKEST) * values


def _interpolate(values: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """The map at each intensity of the signal, linear between its knots."""
    values = values.to(signal.device)
    position = signal.clamp(0, 1) * (len(values) - 1)
    lower = position.floor().clamp(max=len(values) - 2).long()
    return values[lower].lerp(values[lower + 1], position - lower)
