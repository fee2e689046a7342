"""A tissue segmenter trained on simulated contrast: it judges synthetic images, and its features compare images.

Trained on contrasts of all kinds it knows anatomy, not intensities. It stands in for the pretrained networks of
perceptual losses, which are two-dimensional and made for photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from monai.networks.utils import pixelunshuffle
from torch import nn
from torch.nn import functional as F

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.networks.segmenter import Segmenter

from .batches import Pair, choose
from .checkpoint import averaged_weights
from .pseudo_sources import pseudo_source
from .simulation.randomness import chance
from .tissue_classes import classes_of


def load_segmenter(checkpoint: Path) -> Segmenter:
    """The averaged segmenter of a run, frozen. Raises InputError when there is none."""
    if not checkpoint.exists():
        raise InputError(f"'{checkpoint}' does not exist: train the stage 'segmenter' first.")
    weights, _ = averaged_weights(checkpoint)
    segmenter = Segmenter(weights["final_conv.weight"].shape[1])
    segmenter.load_state_dict(weights)
    return segmenter.requires_grad_(False).eval()


def segmenter_losses(
    model: nn.Module,
    pair: Pair,
    generator: torch.Generator,
    *,
    class_weights: Sequence[float],
    made_up_share: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Dice + cross-entropy on the target or one of its sources, drawn evenly, or on the target in a made-up contrast.

    Without ``smooth_nr`` the Dice term of a class that the crop lacks has no gradient: every crop without a lesion
    would else push all lesions away.

    Args:
        class_weights: of ``CLASSES``. Where small classes count more they are found sooner, and drawn too large.
        made_up_share: of the examples that :func:`~.pseudo_sources.pseudo_source` makes of the target.
    """
    if pair.labels is None:
        raise InputError("The segmenter learns from simulated heads only: set data.real=null.")
    target = pair.image.clamp(max=1)  # as the engine shows images to the segmenter
    images = [target, *pair.sources.values()]
    image = images[choose(generator, len(images))]
    if chance(generator, made_up_share):
        with torch.autocast(image.device.type, enabled=False):  # the simulator computes in float32
            image = pseudo_source(target, generator, labels=pair.labels)
    logits = model(image).float()
    weights = torch.tensor(class_weights, dtype=torch.float32, device=logits.device)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, smooth_nr=0.0, weight=weights)
    return {"segmentation": loss(logits, classes_of(pair.labels))}


class SegmenterFeatures(nn.Module):
    """Distance of two images in the features of a frozen segmenter (in the manner of LPIPS: Zhang et al. 2018, eq. 1).

    The features of the first three levels are scaled to unit length at each voxel and their squared distances averaged.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, 1, X, Y, Z) to three maps (B, channels, X / 2^k, ...), k from 1."""
        first = self.segmenter.conv_0(pixelunshuffle(image, 3, 2))
        second = self.segmenter.down_1(first)
        return [F.normalize(f.float(), dim=1) for f in (first, second, self.segmenter.down_2(second))]

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.features(a), self.features(b), strict=True)
        return torch.stack([(x - y).square().sum(dim=1).mean() for x, y in pairs]).mean()
