"""Is a source like what the package was trained on? One sentence for each way in which it is not.

Nothing is refused: a result of what is out of range may still be worth looking at, by someone who was told. Importing
this does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .canonical import closest_ras_axes
from .errors import ModelPackageError
from .intensity import head_mask
from .model_package import ModelPackage
from .package_format import CLASSIFIER
from .volume import Volume

if TYPE_CHECKING:
    import torch

    from .networks.classifier import ContrastClassifier

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_DARK = -0.9  # of [-1, 1]: what is darker is taken for air, as by the classifier
_UNLIKELY = 0.05  # probability of the contrast that was said, below which a source is called another one
_TOLERANCE = 0.15  # of the range [-1, 1], beyond the quantiles that were seen in training
_EXTENT_TOLERANCE = 0.1  # share of the extents that were seen in training
_CUT = 0.4  # share of the head's largest cross-section that a face of the field of view cuts through
_PER_AXIS = 64  # voxels that show where a head is
LARGEST_BRAIN = 2.4  # litres: the inside of an adult's skull holds less than 2, a head has more than 3
_ALIKE = {"T1ce": "T1"}  # no one can tell them apart where nothing takes the agent up
_SIDES = (("left", "right"), ("back", "front"), ("below", "above"))


def range_warnings(
    package: ModelPackage,
    sources: Mapping[str, Volume],
    images: Mapping[str, torch.Tensor],
    spacing: Sequence[float],
    *,
    named: bool = True,
) -> list[str]:
    """Sentences on the sources that are unlike what the package was trained on; none if it does not know that.

    Args:
        sources: by contrast, on their own grids.
        images: the same (1, 1, X, Y, Z) as the networks see them, on the canonical grid of that spacing in mm.
        named: False where the contrasts' names do not matter, as to zero-shot methods; the grids are compared, and
            whether there is a skull, which these methods hardly know.
    """
    if package.trained_on is None:
        return []
    if not named:
        return [
            sentence
            for volume in sources.values()
            for sentence in grid_warnings(volume, package.trained_on, stripped=True)
        ]
    import torch

    from .networks.classifier import coarse

    classifier, said = load_classifier(package), []
    for modality, volume in sources.items():
        image = coarse(images[modality], spacing)
        with torch.inference_mode():
            shares = classifier(image).softmax(dim=1)[0].tolist()
        probabilities = dict(zip((*classifier.classes, ""), shares, strict=True))
        doubt = contrast_warning(volume.name, modality, image.numpy(), probabilities, package.trained_on)
        said += [doubt] * (doubt is not None) + grid_warnings(volume, package.trained_on)
    return said


def load_classifier(package: ModelPackage) -> ContrastClassifier:
    """The classifier of a package, on the CPU. Raises ModelPackageError if its weights are damaged or of another."""
    from .networks.classifier import ContrastClassifier

    try:
        classifier = ContrastClassifier(**package.configuration(CLASSIFIER))
        weights = package.weights(CLASSIFIER)
        classifier.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelPackageError(
            f"The classifier of the package '{package.name}' does not fit its weights; reinstall the package."
        ) from error
    return classifier.requires_grad_(False).eval()


def head_quantiles(image: np.ndarray) -> list[float]:
    """The QUANTILES of an image in [-1, 1], any shape, without air; all -1 where there is nothing else."""
    image = np.asarray(image)
    head = image[image > _DARK]
    return np.quantile(head, QUANTILES).tolist() if head.size else [-1.0] * len(QUANTILES)


def contrast_warning(
    name: str, modality: str, image: np.ndarray, probabilities: Mapping[str, float], trained: Mapping[str, Any]
) -> str | None:
    """A sentence if a source does not look like its contrast, or has intensities unlike all of that contrast.

    Args:
        name: of the volume.
        modality: what it is said to show; of a contrast that the classifier does not know nothing is said.
        image: on the classifier's coarse grid, in [-1, 1].
        probabilities: by contrast, and "" for none of them.
        trained: the package's ``trained_on``.
    """
    if modality not in probabilities:
        return None
    kinds: dict[str, float] = {}
    for each, probability in probabilities.items():
        kind = _ALIKE.get(each, each)
        kinds[kind] = kinds.get(kind, 0.0) + probability
    if kinds[_ALIKE.get(modality, modality)] < _UNLIKELY:
        other = max(kinds, key=kinds.__getitem__)
        if not other:
            return (
                f"'{name}' looks neither like a {modality} nor like another contrast that the model knows; check that "
                "it is a scan of the head, and the contrast you chose."
            )
        return f"'{name}' does not look like a {modality} (it looks like a {other}); check the contrast you chose."
    found = head_quantiles(image)
    for quantile, value, (low, high) in zip(QUANTILES, found, trained["quantiles"][modality], strict=True):
        if not low - _TOLERANCE <= value <= high + _TOLERANCE:
            here, least, most = (round(50 * (each + 1)) for each in (value, low, high))
            return (
                f"The intensities of '{name}' are unlike those of any {modality} in the training: {quantile:.0%} of "
                f"the head are below {here} % of the range, there below {least} to {most} %; look for clipping, metal "
                "or a filled background."
            )
    return None


def grid_warnings(volume: Volume, trained: Mapping[str, Any], *, stripped: bool = False) -> list[str]:
    """Sentences if the voxels are larger, or the head in the field of view another size, than those trained on.

    Args:
        stripped: the method is for brains without their skulls: a sentence if there is more than any brain.
    """
    name, spacing = volume.name, sorted(volume.geometry.spacing)
    said = []
    if spacing[2] > max(trained["slice_mm"], spacing[1]) * 1.001:
        said.append(
            f"'{name}' has slices {spacing[2]:.3g} mm apart, the model was trained on up to {trained['slice_mm']:.3g} "
            "mm: detail across the slices is a guess."
        )
    if spacing[1] > trained["pixel_mm"] * 1.001:
        said.append(
            f"'{name}' has voxels of {' x '.join(f'{mm:.3g}' for mm in volume.geometry.spacing)} mm, the model was "
            f"trained on up to {trained['pixel_mm']:.3g} mm within a slice: fine detail is a guess."
        )
    steps = [-(-n // _PER_AXIS) for n in volume.array.shape]
    mask = head_mask(volume.array[tuple(slice(None, None, step) for step in steps)])
    litres = mask.sum() * np.prod(steps) * np.prod(volume.geometry.spacing) / 1e6
    if stripped and litres > LARGEST_BRAIN:
        said.append(
            f"'{name}' shows more than a brain ({litres:.1f} litres): zero-shot synthesis is much less exact with the "
            "skull on; strip it first."
        )
    cut = []
    for (axis, sign), (first, last), (low, high) in zip(
        zip(*closest_ras_axes(volume.geometry), strict=True), _SIDES, trained["extent_mm"], strict=True
    ):
        areas = mask.sum(axis=tuple(each for each in range(3) if each != axis))[:: int(sign)]
        occupied = np.flatnonzero(areas)
        voxels = min((occupied[-1] - occupied[0] + 1) * steps[axis], volume.array.shape[axis])
        extent = voxels * volume.geometry.spacing[axis]
        if extent < low * (1 - _EXTENT_TOLERANCE):
            said.append(
                f"'{name}' shows only {extent:.0f} mm of the head from {first} to {last}, the model was trained on "
                f"{low:.0f} mm or more: its brightness may be off."
            )
        elif extent > high * (1 + _EXTENT_TOLERANCE):
            said.append(
                f"'{name}' shows {extent:.0f} mm from {first} to {last}, more than the {high:.0f} mm of a head that "
                "the model was trained on: crop it to the head."
            )
        else:
            ends = ((first, areas[0]), (last, areas[-1]))
            cut += [side for side, area in ends if side != "below" and area > _CUT * areas.max()]
    if cut:
        said.append(
            f"The field of view of '{name}' ends within the head ({', '.join(cut)}): the model was trained on whole "
            "heads, and brightness may be off near the cut."
        )
    return said
