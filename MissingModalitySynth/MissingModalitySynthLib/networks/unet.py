"""MONAI's BasicUNet as the translators on voxels use it."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.basic_unet import BasicUNet, UpCat

from . import norms  # noqa: F401  (makes its layers known to MONAI)


def build_unet(in_channels: int, out_channels: int, *, features: Sequence[int]) -> BasicUNet:
    """A three-dimensional UNet with group norms; the sizes of what it is given must be multiples of 16.

    Args:
        features: the six widths of MONAI's BasicUNet, multiples of eight.
    """
    norm = ("group_keeping_layout", {"num_groups": 8})
    unet = BasicUNet(3, in_channels=in_channels, out_channels=out_channels, features=features, norm=norm)
    for module in unet.modules():
        if isinstance(module, UpCat):
            module.is_pad = False  # sizes are multiples of 16; to pad by nothing is a third of a training step
    return unet
