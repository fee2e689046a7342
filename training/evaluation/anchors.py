"""What a method's numbers are held against: predictions that need no translation model, or that cheat.

The copy of the source needs no function: every protocol brings a prediction to the target by one gain and one offset,
so the source itself is scored as its best affine copy. The fourth anchor, regression, is a method of the package.
"""

from __future__ import annotations

import numpy as np
import torch

from MissingModalitySynthLib.canonical import canonical_grid, from_canonical, to_canonical
from MissingModalitySynthLib.decoding import decode
from MissingModalitySynthLib.device import free_memory
from MissingModalitySynthLib.intensity import BRIGHTEST, normalise, unscale
from MissingModalitySynthLib.translators import Translator
from MissingModalitySynthLib.volume import Volume

COPY = "affine copy"
ORACLE = "voxel-wise oracle"
TISSUE_MEAN = "tissue mean"
CEILING = "first stage"
ANCHORS = (COPY, ORACLE, TISSUE_MEAN, CEILING)
_BINS = 256


def voxelwise_oracle(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean of the target at each intensity of the source: no map of single intensities is closer (in squares).

    It is fitted on the answer itself, with 256 bins between the source's 0.5th and 99.5th percentile in the mask.
    """
    inside = mask.astype(bool)
    low, high = np.percentile(source[inside], [0.5, 99.5])
    position = (source[inside] - low) / max(high - low, 1e-6) * _BINS
    index = np.clip(position, 0, _BINS - 1).astype(int)
    return _means(index, target, inside, _BINS)


def tissue_mean(target: np.ndarray, tissues: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Every voxel has the mean of the target in its tissue: all contrast between tissues, no texture within.

    Args:
        tissues: class indices; voxels of the mask without a tissue (0) are a class as well.
    """
    inside = mask.astype(bool)
    return _means(tissues[inside].astype(int), target, inside, int(tissues.max()) + 1)


@torch.inference_mode()
def first_stage_ceiling(translator: Translator, acquired: Volume, spacing: tuple[float, float, float]) -> np.ndarray:
    """The acquired target, encoded and decoded: no method that shares the first stage gets far beyond.

    The way is that of synthesis: canonical grid, scaling, first stage, and back; float32 (i, j, k).
    """
    grid = canonical_grid(acquired, spacing, translator.multiple)
    image, intensities = normalise(to_canonical(acquired, grid), brightest=BRIGHTEST, native=acquired.array)
    stage = translator.first_stage
    latents = stage.encode(torch.from_numpy(image)[None, None].to(stage.latent_mean.device))
    decoded = decode(translator, latents, free_memory(latents.device), [])
    return from_canonical(unscale(decoded[0, 0].float().cpu().numpy(), intensities), grid).array


def _means(index: np.ndarray, target: np.ndarray, inside: np.ndarray, count: int) -> np.ndarray:
    """By class, the mean of the target; 0 outside."""
    totals = np.bincount(index, weights=target[inside].astype(np.float64), minlength=count)
    sizes = np.bincount(index, minlength=count)
    result = np.zeros(target.shape, np.float32)
    result[inside] = (totals / np.maximum(sizes, 1))[index]
    return result
