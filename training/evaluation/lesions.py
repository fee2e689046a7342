"""Lesions that the source shows should survive: their contrast to the white matter around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

NEAR_MM = (2.0, 12.0)  # from a lesion: beyond its rim and partial volume, and under the same receive field
CLEAR = 0.05  # of the target's range: an acquired contrast below it has no sign that could be missed
_ENOUGH = 50  # voxels of white matter that a lesion is compared with, else with that around all lesions


@dataclass(frozen=True, eq=False)
class Lesions:
    """Where lesions are and what they are compared with; voxels are indices into the flattened array.

    Attributes:
        voxels, owners: voxels of lesions, and the number of the lesion, from 0, that each belongs to (connected by
            faces, edges or corners).
        around, nearest: voxels of normal-appearing white matter, and the number of the lesion next to each.
    """

    voxels: np.ndarray
    owners: np.ndarray
    around: np.ndarray
    nearest: np.ndarray

    def contrasts(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By lesion, its mean minus that of the white matter around it, in the image's units; and its voxels."""
        values = image.ravel()
        sizes, means = _by_lesion(self.owners, values[self.voxels], len(self))
        counts, white = _by_lesion(self.nearest, values[self.around], len(self))
        return means - np.where(counts >= _ENOUGH, white, values[self.around].mean()), sizes

    def __len__(self) -> int:
        return int(self.owners.max()) + 1


def find_lesions(lesion: np.ndarray, white: np.ndarray, spacing: Sequence[float]) -> Lesions | None:
    """The single lesions of a mask and the white matter near them; None without any of either.

    Args:
        lesion, white: bool, of one shape. Of white matter, what is 2 to 12 mm off the lesions counts, without the
            voxels at its own border, which share volume with cortex or fluid.
        spacing: mm.
    """
    labels, _ = ndimage.label(lesion, np.ones((3, 3, 3)))
    distance, indices = ndimage.distance_transform_edt(~lesion, sampling=spacing, return_indices=True)
    near = ndimage.binary_erosion(white & ~lesion) & (distance > NEAR_MM[0]) & (distance <= NEAR_MM[1])
    voxels, around = np.flatnonzero(lesion), np.flatnonzero(near)
    if not voxels.size or not around.size:
        return None
    owners = labels.ravel() - 1
    nearest = owners[np.ravel_multi_index(tuple(axis.ravel()[around] for axis in indices), lesion.shape)]
    return Lesions(voxels, owners[voxels], around, nearest)


def lesion_scores(lesions: Lesions, synthetic: np.ndarray, acquired: np.ndarray) -> dict[str, float]:
    """Contrasts of lesions in two images on one scale.

    Returns:
        lesion_contrast, lesion_contrast_acquired: mean over the lesions, weighted by their volume.
        lesions_clear: how many have an acquired contrast of 5 % of the range or more.
        lesions_right: how many of these have a synthetic contrast of the same sign.
    """
    (made, sizes), (true, _) = (lesions.contrasts(image) for image in (synthetic, acquired))
    clear = np.abs(true) >= CLEAR
    return {
        "lesion_contrast": float(np.average(made, weights=sizes)),
        "lesion_contrast_acquired": float(np.average(true, weights=sizes)),
        "lesions_clear": int(clear.sum()),
        "lesions_right": int(np.sum(clear & (made * true > 0))),
    }


def _by_lesion(owners: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """By lesion, how many voxels it has and their mean."""
    counts = np.bincount(owners, minlength=count)
    return counts, np.bincount(owners, weights=values, minlength=count) / np.maximum(counts, 1)
