"""Which contrast an image shows: a small network on histograms, taken on a grid of 4 mm where all scanners look alike.

Contrasts differ in how bright the tissue is by its depth below the surface (cortex, white matter, ventricles), and in
whether fine structures are brighter or darker than what is around them (fluid in sulci). These histograms learn from
a few hundred heads, which a convolutional network does not, and do not mind how a head lies or is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

COARSE_MM = 4.0
DARK = -0.9  # of [-1, 1]: what is darker is taken for air
DEPTHS, LEVELS = 5, 16  # layers of 8 mm, and bins of the intensity in [-1, 1]
AROUND, DETAILS = 6, 9  # bins of the mean around a voxel, and of its difference from a mean
NEAR, FAR = (3, 0.3), (7, 0.6)  # voxels over which a mean goes, and the largest difference from it
FEATURES = DEPTHS * LEVELS + AROUND * DETAILS + DEPTHS * DETAILS


def coarse(image: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
    """(B, 1, X, Y, Z) of that spacing (mm) to averages over blocks of about 4 mm; incomplete blocks are left out."""
    blocks = [min(max(1, round(COARSE_MM / mm)), size) for mm, size in zip(spacing, image.shape[2:], strict=True)]
    return F.avg_pool3d(image, blocks)


def describe(image: torch.Tensor) -> torch.Tensor:
    """Coarse images (B, 1, x, y, z) in [-1, 1] to roots of shares, (B, FEATURES).

    The shares of the intensities in each layer below the surface, of the differences from the mean nearby in each bin
    of that mean, and of the differences from the mean far around in each layer; a layer or bin without voxels has 0.
    """
    image = F.pad(image, [n for size in reversed(image.shape[2:]) for n in (0, size % 2)], value=-1.0)
    inside = image > DARK
    layer = F.max_pool3d(inside.float(), 2)
    depth = layer.clone()
    for _ in range(DEPTHS - 1):
        layer = -F.max_pool3d(-layer, 3, stride=1, padding=1)  # beyond the field of view is no surface
        depth += layer
    depth = F.interpolate(depth, scale_factor=2) - 1
    near, far = (_mean(image, inside, size) for size, _ in (NEAR, FAR))
    fine, rough = (_bins((image - mean) / (2 * top) + 0.5, DETAILS) for mean, (_, top) in ((near, NEAR), (far, FAR)))
    shares = (
        _shares(inside, depth, DEPTHS, _bins((image + 1) / 2, LEVELS), LEVELS),
        _shares(inside, _bins((near + 1) / 2, AROUND), AROUND, fine, DETAILS),
        _shares(inside, depth, DEPTHS, rough, DETAILS),
    )
    return torch.cat(shares, dim=1).sqrt()


def _mean(image: torch.Tensor, inside: torch.Tensor, size: int) -> torch.Tensor:
    """Mean of the voxels inside, in a cube of so many voxels around each."""
    sums = torch.cat([image * inside, inside.to(image)], dim=1)
    for axis in range(3):
        window = [size if each == axis else 1 for each in range(3)]
        sums = F.avg_pool3d(sums, window, stride=1, padding=[n // 2 for n in window])
    return sums[:, :1] / sums[:, 1:].clamp(min=1e-6)


def _bins(values: torch.Tensor, count: int) -> torch.Tensor:
    return (values * count).long().clamp(0, count - 1)


def _shares(inside: torch.Tensor, rows: torch.Tensor, height: int, columns: torch.Tensor, width: int) -> torch.Tensor:
    """Joint histograms (B, height * width) of the voxels inside; every row that is not empty sums to 1."""
    index = (rows.long().clamp(0, height - 1) * width + columns).flatten(1)
    counts = torch.zeros(len(index), height * width, device=index.device)
    counts.scatter_add_(1, index, inside.flatten(1).float())
    counts = counts.unflatten(1, (height, width))
    return (counts / counts.sum(dim=2, keepdim=True).clamp(min=1)).flatten(1)


class ContrastClassifier(nn.Module):
    """Coarse images (B, 1, x, y, z) in [-1, 1], of any size, to logits (B, classes + 1); the last is "none of these".

    Args:
        classes: names of the contrasts, in the order of the logits.
        width: of the hidden layers.
    """

    def __init__(self, classes: Sequence[str], width: int = 64) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.decide = nn.Sequential(
            nn.Linear(FEATURES, width),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(width, len(self.classes) + 1),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.decide(describe(image.float()))
