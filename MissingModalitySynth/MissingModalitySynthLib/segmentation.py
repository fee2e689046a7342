"""Tissues of an image, by the segmenter of a model package. Importing this imports nothing heavy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import Cancelled, ModelPackageError, OutOfMemoryError
from .progress import Progress

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from .model_package import ModelPackage
    from .volume import Volume

CLASSES = ("background", "CSF", "grey matter", "white matter", "deep grey matter", "lesion")
_SPACING, _MULTIPLE = (1.0, 1.0, 1.0), 32
_WINDOW = 96  # voxels along an axis that the network sees at once, about as many as in training
_OVERLAP = 0.25


@dataclass(frozen=True)
class Segmented:
    """Label maps.

    Attributes:
        labels: by the volumes' keys: uint8 indices of ``CLASSES`` on each volume's exact grid, 0 outside the head.
        provenance: by the same keys, where the label map came from, as plain data.
        notices: sentences about what was done differently from what was asked.
    """

    labels: dict[str, Volume]
    provenance: dict[str, dict[str, Any]]
    notices: tuple[str, ...] = ()


def segment(volume: Volume, package: ModelPackage, *, device: str = "auto") -> Volume:
    """The label map of one volume, see :func:`segment_all`."""
    return segment_all({"": volume}, package, device=device).labels[""]


def segment_all(
    volumes: Mapping[str, Volume],
    package: ModelPackage,
    *,
    device: str = "auto",
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Segmented:
    """Tell the tissues of volumes, each on its own grid and in any units.

    Args:
        volumes: acquired or synthetic, by any key; what they show is not asked.
        package: one with a segmenter.
        device: ``auto``, ``cpu``, ``cuda:N`` or ``mps``.
        progress: called at the beginning of every stage and window; its target is the volume's key.
        cancelled: asked at the same moments; the run stops when it returns true.

    Raises:
        InputError: a volume or the device cannot be used.
        ModelPackageError: the package has no segmenter, or a damaged one.
        OutOfMemoryError: the device has too little memory.
        Cancelled: ``cancelled`` returned true.
    """
    import torch

    from .device import choose_device, is_out_of_memory
    from .volume import check_usable

    started = time.monotonic()

    def announce(stage: str, fraction: float, key: str | None = None) -> None:
        if cancelled():
            raise Cancelled("Cancelled; nothing was kept.")
        left = (time.monotonic() - started) * (1 - fraction) / fraction if fraction > 0.1 else None
        progress(Progress(stage, fraction, key, left))

    for volume in volumes.values():
        check_usable(volume)
    chosen, notice = choose_device(device)
    announce("load model", 0.0)
    network = load_segmenter(package).to(chosen)
    labels, provenance = {}, {}
    for number, (key, volume) in enumerate(volumes.items()):
        announce("prepare", number / len(volumes), key)

        def on_window(share: float, number: int = number, key: str = key) -> None:
            announce("segment", (number + share) / len(volumes), key)

        try:
            labels[key] = label(network, volume, on_window=on_window)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"The memory of {chosen} does not suffice to segment '{volume.name}'; crop it, or use the CPU."
            ) from error
        provenance[key] = {
            "quantity": "tissue classes",
            "labels": {str(index): name for index, name in enumerate(CLASSES)},
            "segmented": volume.name,
            "package": package.name,
            "package_version": package.metadata["version"],
            "package_sha256": package.digest,
            "software": f"MissingModalitySynth {__version__}",
            "torch": torch.__version__,
            "device": str(chosen),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "notice": "Made by a network, not for diagnosis",
        }
    return Segmented(labels, provenance, (notice,) if notice else ())


def dice_by_class(labels: Volume, others: Volume) -> dict[str, float]:
    """Dice coefficient of two label maps by the name of the class, without background; NaN where neither has it.

    Where the grids differ, the voxels of ``others`` nearest to those of ``labels`` are compared.
    """
    import SimpleITK as sitk

    from .metrics import dice
    from .volume import to_sitk

    array = others.array
    if not others.geometry.matches(labels.geometry):
        images = to_sitk(others), to_sitk(labels)
        array = sitk.GetArrayFromImage(sitk.Resample(*images, sitk.Transform(), sitk.sitkNearestNeighbor)).T
    return {name: dice(labels.array, array, index) for index, name in enumerate(CLASSES) if index}


def load_segmenter(package: ModelPackage) -> nn.Module:
    """The frozen segmenter of a package.

    Raises:
        ModelPackageError: there is none, or its weights are damaged or of another network.
    """
    from .networks.segmenter import Segmenter
    from .package_format import SEGMENTER

    if not package.has_segmenter:
        raise ModelPackageError(f"The package '{package.name}' has no segmenter: choose a package that has one.")
    try:
        network = Segmenter(**package.configuration(SEGMENTER))
        network.load_state_dict({name: tensor.float() for name, tensor in package.weights(SEGMENTER).items()})
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelPackageError(
            f"The segmenter of the package '{package.name}' does not fit its weights; reinstall the package."
        ) from error
    return network.requires_grad_(False).eval()


def label(
    network: nn.Module,
    volume: Volume,
    *,
    mask: np.ndarray | None = None,
    on_window: Callable[[float], None] = lambda share: None,
) -> Volume:
    """Indices of ``CLASSES`` (uint8) on the volume's grid, as a segmenter tells them at 1 mm; 0 outside the head.

    Args:
        network: (1, 1, X, Y, Z) in [-1, 1] to logits (1, 6, X, Y, Z).
        mask: the head, or brain, on the volume's grid; found where left out.
        on_window: called before each window of the volume with the share that is done, 0 to 1.
    """
    import numpy as np
    import torch

    from .canonical import canonical_grid, from_canonical, to_canonical
    from .device import autocast_dtype
    from .intensity import head_mask, normalise
    from .volume import Volume

    head = head_mask(volume.array) if mask is None else mask
    grid = canonical_grid(volume, _SPACING, _MULTIPLE, mask=head)
    image = torch.from_numpy(normalise(to_canonical(volume, grid), native=volume.array)[0])[None, None]
    device = next(network.parameters()).device
    dtype = autocast_dtype(device)
    with torch.inference_mode(), torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        shares = tissue_shares(network, image.to(device), on_window=on_window)[0].cpu().numpy()
    best = from_canonical(shares[0], grid).array
    labels = np.zeros(best.shape, np.uint8)
    for index in range(1, len(CLASSES)):
        share = from_canonical(shares[index], grid).array
        better = share > best
        labels[better & head], best = index, np.where(better, share, best)
    return Volume(labels, volume.geometry, volume.name)


def tissue_shares(
    network: nn.Module, image: torch.Tensor, *, on_window: Callable[[float], None] = lambda share: None
) -> torch.Tensor:
    """Probabilities (1, 6, X, Y, Z) of ``CLASSES``, told window by window of an image (1, 1, X, Y, Z) in [-1, 1]."""
    from monai.inferers.utils import sliding_window_inference

    window = [min(_WINDOW, size) for size in image.shape[2:]]
    steps = zip(image.shape[2:], window, strict=True)
    count = math.prod(1 + math.ceil((n - w) / int(w * (1 - _OVERLAP))) for n, w in steps)
    done = 0

    def predict(crop: torch.Tensor) -> torch.Tensor:
        nonlocal done
        on_window(min(done / count, 1.0))
        done += 1
        return network(crop).float().softmax(dim=1)

    return sliding_window_inference(image, window, 1, predict, overlap=_OVERLAP, mode="gaussian")
