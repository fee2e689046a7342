"""Losses of the translators: each a function that reads like its equation.

Images are (B, 1, X, Y, Z), sources in [-1, 1], targets from -1 to the engine's BRIGHTEST.
"""

from __future__ import annotations

import torch
from monai.losses import GlobalMutualInformationLoss
from torch.nn import functional as F

from MissingModalitySynthLib.diffusion.bridge import interpolate, preconditioning
from MissingModalitySynthLib.diffusion.schedules import add_noise
from MissingModalitySynthLib.networks.first_stage import FirstStage
from MissingModalitySynthLib.networks.spade import fuse
from MissingModalitySynthLib.translators.aldm import AldmTranslator
from MissingModalitySynthLib.translators.regression import RegressionTranslator

from .batches import Pair, choose

Terms = dict[str, torch.Tensor]


def squared_error(
    stage: FirstStage,
    predicted: torch.Tensor,
    latents: torch.Tensor,
    image: torch.Tensor,
    latent_weight: float,
    image_weight: float,
    lesions: torch.Tensor | None = None,
    lesion_weight: float = 0.0,
) -> torch.Tensor:
    """w_l |z' - z|_2^2 + w_i |decode(z') - x|_2^2, means over elements: whitened latents for detail, image for PSNR.

    Squared, not absolute: fine detail is sparse, and the absolute error, whose best answer is the median, leaves the
    wavelet's bands of detail at zero for thousands of steps. Without the image (weight 0) nothing is decoded, which is
    the dearest part where the first stage is large.
    """
    predicted = predicted.float()
    loss = latent_weight * F.mse_loss(predicted, latents)
    return loss + image_weight * image_error(stage, predicted, image, lesions, lesion_weight) if image_weight else loss


def image_error(
    stage: FirstStage,
    predicted: torch.Tensor,
    image: torch.Tensor,
    lesions: torch.Tensor | None = None,
    lesion_weight: float = 0.0,
) -> torch.Tensor:
    """|decode(z') - x|_2^2, mean over voxels.

    Voxels of ``lesions``, bool (B, 1, X, Y, Z), weigh 1 + ``lesion_weight``: they are few, and what is looked at.
    """
    error = (stage.decode(predicted) - image).square()
    if lesions is not None:
        error = error * (1 + lesion_weight * lesions)
    return error.mean()


def structural_similarity(
    a: torch.Tensor, b: torch.Tensor, *, spread: float = 1.5, reach: int = 5, data_range: float = 2.0
) -> torch.Tensor:
    """Mean SSIM of images (B, 1, X, Y, Z) over the Gaussian windows that fit into them (Wang et al. 2004, eq. 13).

    MONAI's SSIMLoss convolves in three dimensions at once, which takes longer than all else of a training step; here
    each axis is multiplied by a band matrix.

    Args:
        spread, reach: standard deviation and half width of the window in voxels.
        data_range: of the images.
    """
    moments = torch.cat([a, b, a * a, b * b, a * b]).float()
    with torch.autocast(a.device.type, enabled=False):  # differences of nearly equal squares
        for axis in (2, 3, 4):
            places = torch.arange(moments.shape[axis], device=a.device)
            offset = places - places[: -2 * reach, None] - reach
            window = torch.exp(-((offset / spread) ** 2) / 2) * (offset.abs() <= reach)
            moments = (moments.movedim(axis, -1) @ (window / window.sum(1, keepdim=True)).T).movedim(-1, axis)
    mean_a, mean_b, aa, bb, ab = moments.chunk(5)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    together = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    apart = (mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2)
    return (together / apart).mean()


def mutual_information(
    a: torch.Tensor, b: torch.Tensor, *, bins: int = 32, reach: float = 4.0, samples: int = 16384
) -> torch.Tensor:
    """Mutual information I(a; b) in nats, the mean over channels, differentiable.

    MONAI's joint histogram with Gaussian Parzen windows, of a window's width half a bin (Thévenaz & Unser 2000). For
    Gaussians of correlation rho it is near -log(1 - rho^2) / 2, below it for rho near 1, where the windows blur.

    Args:
        a, b: whitened latents (B, C, X, Y, Z).
        bins: from -``reach`` to ``reach`` standard deviations.
        samples: voxels that are used, evenly spaced; their number sets the bias, about bins^2 / (2 samples).
    """
    flat = [z.float().transpose(0, 1).flatten(1) for z in (a, b)]
    step = max(flat[0].shape[1] // samples, 1)
    unit = [(z[:, None, ::step] + reach) / (2 * reach) for z in flat]
    with torch.autocast(a.device.type, enabled=False):
        return -GlobalMutualInformationLoss(num_bins=bins).to(a.device)(*unit)


def regression_losses(
    model: RegressionTranslator,
    pair: Pair,
    generator: torch.Generator,
    *,
    latent_weight: float = 1.0,
    image_weight: float = 4.0,
    lesion_weight: float = 0.0,
    structure_weight: float = 0.0,
) -> Terms:
    """The baseline: one pass from the sources to all contrasts of the head that are known, each judged alike.

    With ``structure_weight``, 1 - SSIM of the pair's target also counts: squared errors alone blur.
    """
    stage = model.first_stage
    images = pair.images or {pair.target: pair.image}
    with torch.no_grad():
        sources, latents = model.encode(pair.sources), model.encode(images)
    predicted = model.predict(model.inputs(sources))
    weights = (latent_weight, image_weight, pair.lesions, lesion_weight)
    terms = [squared_error(stage, predicted[name], latents[name], image, *weights) for name, image in images.items()]
    losses = {"regression": torch.stack(terms).mean()}
    if structure_weight:
        made = torch.where(pair.image > -1, stage.decode(predicted[pair.target]), -1)  # as the engine cuts the head out
        losses["structure"] = structure_weight * (1 - structural_similarity(made + 1, pair.image + 1))
    return losses


def spade_losses(
    model: AldmTranslator,
    pair: Pair,
    generator: torch.Generator,
    *,
    latent_weight: float = 1.0,
    image_weight: float = 4.0,
    lesion_weight: float = 0.0,
    self_weight: float = 0.0,
    cycle_weight: float = 0.0,
    information_weight: float = 0.0,
) -> Terms:
    """Target-like latents z_src^tar = S(z_src, tar) near the target's z_tar (ALDM section 3.1).

    The terms, each with its weight::

        spade        w_l |S(z_src, tar) - z_tar|^2 + w_i |D(S(z_src, tar)) - x_tar|^2, mean over the sources
        self         |S(z_tar, tar) - z_tar|, the source that is the target already
        cycle        |S(S(z_tar, src), tar) - z_tar|; it begins at the target, which has one protocol, since the
                     protocol of a source cannot be known on the way back to it
        information  -I(S(z_src, tar); z_tar), which aligns the latent spaces of the contrasts (Wang et al. 2023)
    """
    stage, spade = model.first_stage, model.spade
    with torch.no_grad():
        latents = stage.encode(pair.image)
        sources = model.encode(pair.sources)
    target = model.index(pair.target, latents)
    target_like = [spade(z, target).float() for z in sources.values()]
    weights = (latent_weight, image_weight, pair.lesions, lesion_weight)
    distances = [squared_error(stage, z, latents, pair.image, *weights) for z in target_like]
    terms = {"spade": torch.stack(distances).mean()}
    if self_weight:
        terms["self"] = self_weight * F.l1_loss(spade(latents, target).float(), latents)
    if cycle_weight:
        source = list(sources)[choose(generator, len(sources))]
        there = spade(latents, model.index(source, latents))
        terms["cycle"] = cycle_weight * F.l1_loss(spade(there, target).float(), latents)
    if information_weight:
        terms["information"] = -information_weight * mutual_information(fuse(target_like), latents)
    return terms


def bridge_losses(
    model: AldmTranslator,
    pair: Pair,
    generator: torch.Generator,
    *,
    latent_weight: float = 1.0,
    image_weight: float = 4.0,
    lesion_weight: float = 0.0,
    start_share: float = 0.5,
) -> Terms:
    """The bridge from the target-like latents of a trained MS-SPADE.

    ||(v - v*) / scale_out||^2 makes every time as hard as any other (Karras et al. 2022, equation 8), and the end that
    v points to is judged in the image. ``start_share`` of the times are tau = 0, where every sampler begins; the others
    are uniform in [0, 1).
    """
    start, latents = _ends(model, pair)
    tau = torch.rand(start.shape[0], generator=generator)
    tau = torch.where(torch.rand(start.shape[0], generator=generator) < start_share, 0.0, tau).to(start.device)
    noise = torch.randn(start.shape, generator=generator).to(start.device)
    x = interpolate(start, latents, tau, model.sigma, noise)
    end = start + model.velocity(x, start, tau, model.index(pair.target, x))
    _, _, scale_out = preconditioning(tau, model.sigma, model.spread)
    loss = latent_weight * ((end - latents) / scale_out).square().mean()
    if image_weight:
        error = image_error(model.first_stage, end, pair.image, pair.lesions, lesion_weight)
        loss = loss + image_weight * error
    return {"bridge": loss}


def diffusion_losses(
    model: AldmTranslator,
    pair: Pair,
    generator: torch.Generator,
    *,
    weighting: str = "none",
) -> Terms:
    """E ||epsilon - epsilon_theta(z_src^tar, z_t^tar, t, y)||^2 with t uniform in 0..T-1 (ALDM eq. 2 and 4).

    ``weighting="min_snr"`` multiplies by min(SNR, 5) / SNR, SNR = alpha_bar / (1 - alpha_bar): steps that are nearly
    free of noise no longer dominate (Hang et al. 2023, eq. 5 for the prediction of noise).
    """
    start, latents = _ends(model, pair)
    t = torch.randint(len(model.alpha_bar), (latents.shape[0],), generator=generator)
    alpha_bar = model.alpha_bar[t].float().to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    z_t = add_noise(latents, noise, alpha_bar)
    predicted = model.denoiser(z_t, start, t.to(latents.device, torch.float32), model.index(pair.target, z_t))
    error = (predicted.float() - noise).square().mean(dim=(1, 2, 3, 4))
    return {"diffusion": (step_weights(alpha_bar, weighting) * error).mean()}


def step_weights(alpha_bar: torch.Tensor, weighting: str, gamma: float = 5.0) -> torch.Tensor:
    """Weight of each time step in the loss of the predicted noise, "none" or "min_snr"."""
    if weighting == "none":
        return torch.ones_like(alpha_bar)
    if weighting != "min_snr":
        raise ValueError(f"Unknown weighting '{weighting}'; known are none, min_snr.")
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / snr


@torch.no_grad()
def _ends(model: AldmTranslator, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Target-like latents, and the target's latents."""
    return model.condition(model.encode(pair.sources), pair.target), model.first_stage.encode(pair.image)
