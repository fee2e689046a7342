"""A trained UNet in a wider one of the same function, to go on learning with more channels (Net2Net)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

Weights = Mapping[str, torch.Tensor]

_JOINED = re.compile(r"(.*)upcat_(\d)\.convs\.conv_0\.conv\.weight")  # sees channels of the encoder, then the decoder's
_LEAST = 0.5  # of an even share: copies of a channel have unlike ones, so that they learn different things


def widen(weights: Weights, like: Weights, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The weights of MONAI's BasicUNet for one whose levels are whole times as wide, which computes the same.

    Copies of a channel lie side by side, so that the groups of a group norm keep their means and variances. What takes
    a channel takes random shares of its copies, which sum to one (Chen et al. 2016, "Net2Net", section 2.2).

    Args:
        weights: of the narrow network; names may have a prefix.
        like: of the wide one, whose values are not used.
        generator: on the CPU.

    Raises:
        ValueError: a level is not whole times as wide, or the networks differ in more than widths.
    """
    alike = weights.keys() == like.keys() and all(weights[name].shape[2:] == like[name].shape[2:] for name in weights)
    if not alike or any(_ends(name, weights) != _ends(name, like) for name in weights):
        raise ValueError("They differ in more than the widths of their levels.")
    return {name: _widened(name, weights, like, generator) for name in weights}


def _widened(name: str, weights: Weights, like: Weights, generator: torch.Generator) -> torch.Tensor:
    tensor, shape = weights[name], like[name].shape
    if tensor.shape == shape:
        return tensor
    if tensor.ndim == 1:
        return _copied(tensor, 0, shape[0])
    made, taken = (1, 0) if ".deconv." in name else (0, 1)  # axes of channels out and in
    tensor = _copied(tensor, made, shape[made])
    skipped = _skipped(name, weights)
    widths = (_skipped(name, like), shape[taken] - _skipped(name, like))
    parts = []
    for part, width in zip(tensor.tensor_split([skipped], taken), widths, strict=True):
        copies = width // part.shape[taken] if width else 1
        size = shape[made], part.shape[taken], copies
        shares = _LEAST + (2 - 2 * _LEAST) * torch.rand(size, generator=generator, dtype=tensor.dtype)
        shares = (shares / shares.sum(-1, keepdim=True)).flatten(1)
        shares = (shares.T if taken == 0 else shares)[(...,) + (None,) * (tensor.ndim - 2)]
        parts.append(_copied(part, taken, width) * shares)
    return torch.cat(parts, taken)


def _copied(tensor: torch.Tensor, axis: int, width: int) -> torch.Tensor:
    channels = tensor.shape[axis]
    if width and (width < channels or width % channels):
        raise ValueError(
            f"{width} channels cannot begin with the weights of {channels}, not being whole times as many."
        )
    return tensor.repeat_interleave(width // channels, axis) if width else tensor


def _ends(name: str, weights: Weights) -> int | None:
    """How many channels the whole network takes or makes, for the first and the last of its layers."""
    if name.endswith("conv_0.conv_0.conv.weight") and "convs." not in name:
        return weights[name].shape[1]
    return weights[name].shape[0] if "final_conv." in name else None


def _skipped(name: str, weights: Weights) -> int:
    """How many channels a layer of the decoder sees of the encoder, before the decoder's own."""
    if not (joined := _JOINED.fullmatch(name)):
        return 0
    level = int(joined[2]) - 1
    encoder = f"{joined[1]}{f'down_{level}.convs' if level else 'conv_0'}.conv_1.conv.weight"
    return weights[encoder].shape[0]
