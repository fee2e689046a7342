"""Stage 1, the autoencoder (ALDM section 3.1, after VQGAN): reconstruction against regularised latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.losses import JukeboxLoss, PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.networks.autoencoder import Codebook, VQAutoencoder
from MissingModalitySynthLib.networks.configurations import build_first_stage

from . import distributed
from .batches import Pair, choose


def build_autoencoder(first_stage: dict[str, Any], *, adversarial: bool, channels: int = 32) -> nn.ModuleDict:
    """The first stage and, for the adversarial loss, a patch discriminator of ``channels``."""
    model = nn.ModuleDict({"first_stage": build_first_stage(first_stage)})
    if not list(model.parameters()):
        raise InputError(f"The first stage '{first_stage['kind']}' has nothing to train; go on with the next stage.")
    if adversarial:
        model["discriminator"] = PatchDiscriminator(spatial_dims=3, in_channels=1, channels=channels, norm="INSTANCE")
    if isinstance(model["first_stage"], VQAutoencoder):
        model["first_stage"].codebook.ema_cluster_size.zero_()  # all codes are dead: the first batch will seed them
    return model


def autoencoder_losses(
    model: nn.ModuleDict,
    pair: Pair,
    generator: torch.Generator,
    *,
    quantisation_weight: float = 1.0,
    kl_weight: float = 1e-6,
    perceptual_weight: float = 0.0,
    adversarial_weight: float = 0.0,
    spectral_weight: float = 0.0,
    perceptual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    dead_below: float = 0.05,
) -> dict[str, torch.Tensor]:
    """|x' - x|_1 + the other terms, of the target or one of its sources, drawn evenly.

    The discriminator learns in the same pass: its own loss sees x' without gradient, the autoencoder's loss sees its
    weights without gradient.

    Args:
        quantisation_weight: of the commitment to the codebook (VQ).
        kl_weight: of KL(q(z|x) || N(0, 1)) per latent element (KL).
        perceptual: distance of two images, where its weight is not 0.
        spectral_weight: of the squared distance of the Fourier amplitudes (Dhariwal et al. 2020).
        dead_below: codes that are used less often than this, in voxels per batch, begin anew.
    """
    stage = model["first_stage"]
    images = [pair.image, *pair.sources.values()]
    x = images[choose(generator, len(images))]
    terms: dict[str, torch.Tensor] = {}
    if isinstance(stage, VQAutoencoder):
        revived = revive_dead_codes(stage.codebook, lambda: stage.raw_encode(x), dead_below) if stage.training else 0
        reconstruction, commitment, indices = stage(x)
        terms["quantisation"] = quantisation_weight * commitment
        terms["perplexity"] = perplexity(indices, stage.codebook.num_embeddings)
        terms["revived_codes"] = torch.tensor(float(revived))
    else:
        reconstruction, kl = stage(x)
        terms["kl"] = kl_weight * kl
    reconstruction = reconstruction.float()
    terms["reconstruction"] = F.l1_loss(reconstruction, x)
    if perceptual_weight:
        terms["perceptual"] = perceptual_weight * perceptual(reconstruction, x)
    if spectral_weight:
        terms["spectral"] = spectral_weight * JukeboxLoss(spatial_dims=3)(reconstruction, x)
    if adversarial_weight:
        terms |= adversarial_losses(model["discriminator"], reconstruction, x, adversarial_weight)
    return terms


def adversarial_losses(
    discriminator: nn.Module, fake: torch.Tensor, real: torch.Tensor, weight: float
) -> dict[str, torch.Tensor]:
    """Least-squares patch losses (Isola et al. 2017; Mao et al. 2017) of the generator and of the discriminator."""
    criterion = PatchAdversarialLoss(criterion="least_squares")
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    fooled = functional_call(discriminator, fixed, (fake,))[-1]
    seen_fake, seen_real = discriminator(fake.detach())[-1], discriminator(real)[-1]
    judged = [criterion(seen_fake, False, True), criterion(seen_real, True, True)]
    return {"adversarial": weight * criterion(fooled, True, False), "discriminator": torch.stack(judged).mean()}


def perplexity(indices: torch.Tensor, codes: int) -> torch.Tensor:
    """exp(entropy) of the use of codes: 1 when one code is used, ``codes`` when all are used alike."""
    share = torch.bincount(indices.flatten(), minlength=codes).double() / indices.numel()
    return torch.exp(-torch.xlogy(share, share).sum())


@torch.no_grad()
def revive_dead_codes(codebook: Codebook, encode: Callable[[], torch.Tensor], dead_below: float) -> int:
    """Move the codes that are hardly used to random ones of the latents (B, C, X, Y, Z) (Dhariwal et al. 2020).

    Returns:
        How many there were.
    """
    dead = torch.nonzero(codebook.ema_cluster_size < dead_below).flatten()
    if len(dead):
        flat = encode().float().movedim(1, -1).flatten(0, -2)
        chosen = flat[torch.randint(len(flat), (len(dead),), device=flat.device)]
        codebook.embedding.weight[dead] = chosen
        codebook.ema_w[dead] = chosen
        codebook.ema_cluster_size[dead] = 1.0
        distributed.copy_from_first([codebook.embedding.weight, codebook.ema_w, codebook.ema_cluster_size])
    return len(dead)
