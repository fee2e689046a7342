"""Sharper tissues by the intensities that they have in this very image, whatever its contrast.

A network that has to know every contrast is unsure at the edges of tissues. Where it is sure it tells how bright each
tissue is here, and that tells the tissue of the other voxels: expectation maximisation of a mixture of Gaussians, whose
prior in every voxel is what the network says (as atlases are used by Ashburner and Friston, NeuroImage 2005, and, for
unknown contrasts, by Puonti et al., NeuroImage 2016)::

    mu_k(x)  = G * (p_k y) / G * p_k         brightness of tissue k near x
    s_k^2    = sum p_k (y - mu_k)^2 / sum p_k
    p_k(x)   = pi_k(x) N(y(x); mu_k(x), s_k^2) / sum over the tissues,       pi_k = g * (what the network says)

with a wide Gaussian G, since coils make one tissue brighter here than there, and g the mean of the nearest voxels.
"""

from __future__ import annotations

import torch
from monai.networks.layers.simplelayers import GaussianFilter
from torch.nn import functional as F

ROUNDS = 4
COIL = 24.0  # SD in voxels of G
BLOCK = 4  # voxels along each axis whose mean is all that G sees
EDGE = 3  # voxels along each axis that g averages
FIRM = 0.01  # how much p_k, of 1, a tissue's mean over the whole image counts for everywhere
LEAST_VARIANCE = 4e-4  # in [-1, 1]
POSSIBLE = 1e-4  # no tissue is excluded anywhere


@torch.no_grad()
def refine_tissues(shares: torch.Tensor, image: torch.Tensor, rounds: int = ROUNDS) -> torch.Tensor:
    """Probabilities (1, K, X, Y, Z) of tissues after what an image (1, 1, X, Y, Z) in [-1, 1] says of their brightness.

    Where the image is exact background (-1) they stay as they are. Neither gain nor offset of the image matters, nor
    whether it is inverted, but for LEAST_VARIANCE. Every axis is a multiple of BLOCK.

    Args:
        shares: probabilities of a network for the same voxels.
    """
    with torch.autocast(image.device.type, enabled=False):
        shares, image = shares.float(), image.float()
        inside = (image > -1).float()
        wide = GaussianFilter(3, COIL / BLOCK, truncated=3).to(image.device)
        prior = F.avg_pool3d(shares, EDGE, stride=1, padding=EDGE // 2, count_include_pad=False) + POSSIBLE
        found = shares * inside
        for _ in range(rounds):
            amount, sums = F.avg_pool3d(found, BLOCK), F.avg_pool3d(found * image, BLOCK)
            overall = (_total(sums) / _total(amount).clamp_min(1e-6)) * FIRM
            means = F.interpolate((wide(sums) + overall) / (wide(amount) + FIRM), scale_factor=BLOCK, mode="trilinear")
            squares = (image - means).square()
            variance = _total(found * squares) / _total(found).clamp_min(1.0) + LEAST_VARIANCE
            found = prior * (-squares / (2 * variance)).exp() / variance.sqrt()
            found = found / found.sum(dim=1, keepdim=True).clamp_min(1e-12) * inside
        return torch.where(inside > 0, found, shares)


def _total(values: torch.Tensor) -> torch.Tensor:
    return values.sum(dim=(2, 3, 4), keepdim=True)
