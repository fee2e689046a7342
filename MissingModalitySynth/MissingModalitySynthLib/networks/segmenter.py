"""The network that tells tissues: a U-Net on 2x2x2 blocks of voxels."""

from __future__ import annotations

from monai.networks.nets import BasicUNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor

from ..segmentation import CLASSES
from .unet import protect_smallest_level


class Segmenter(BasicUNet):
    """(B, 1, X, Y, Z) in [-1, 1] to logits (B, 6, X, Y, Z) of ``CLASSES``; every axis even, and 32 or more.

    The blocks' voxels are channels (Shi et al., CVPR 2016), as full-size feature maps would cost three times as much.

    Args:
        width: channels at the first level, a multiple of eight.
    """

    def __init__(self, width: int = 32) -> None:
        features = (width, width, 2 * width, 3 * width, 4 * width, width)
        super().__init__(
            spatial_dims=3,
            in_channels=8,
            out_channels=8 * len(CLASSES),
            features=features,
            norm=("group", {"num_groups": 8}),
        )
        protect_smallest_level(self)

    def forward(self, image: Tensor) -> Tensor:
        return pixelshuffle(super().forward(pixelunshuffle(image, 3, 2)), 3, 2)
