"""Latents to images: at once, or in overlapping tiles where memory is short."""

from __future__ import annotations

import math

import torch
from monai.inferers.utils import sliding_window_inference

from .device import is_out_of_memory
from .translators import Translator

_TILE = 32  # voxels of the latents per tile and axis
_OVERLAP = 0.25


def decode(translator: Translator, latents: torch.Tensor, free_bytes: int, notices: list[str]) -> torch.Tensor:
    """Decode latents (1, C, x, y, z) to an image (1, 1, X, Y, Z).

    Tiles are blended with Gaussian weights. A decoder that sees further than the overlap gives slightly other values
    near the borders of tiles than it would at once, so tiles are used only when memory does not suffice: by the
    estimate, or by trial.

    Args:
        translator: its ``decode`` is used.
        latents: whitened latents.
        free_bytes: memory that may be used.
        notices: receives a sentence when tiles were used.
    """
    stage = translator.first_stage
    voxels = math.prod(latents.shape[2:]) * stage.factor**3
    needed = voxels * stage.decoder_bytes_per_voxel
    one_tile = max(latents.shape[2:]) <= _TILE
    if needed <= free_bytes or one_tile:
        try:
            return translator.decode(latents)
        except (RuntimeError, MemoryError) as error:
            if one_tile or not is_out_of_memory(error):
                raise
    notices.append("Decoded in overlapping tiles, because memory is short.")
    return decode_tiled(translator, latents)


def decode_tiled(translator: Translator, latents: torch.Tensor, tile: int = _TILE) -> torch.Tensor:
    """Decode latents (1, C, x, y, z) in overlapping tiles of ``tile`` voxels along each axis."""
    return sliding_window_inference(
        latents,
        roi_size=tuple(min(tile, n) for n in latents.shape[2:]),
        sw_batch_size=1,
        predictor=translator.decode,
        overlap=_OVERLAP,
        mode="gaussian",
    )
