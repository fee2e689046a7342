"""The shading of a scan by its receive coil: smooth, and shared by all contrasts of a session.

Models that have learned from simulated contrast make images without any. The acquired image would have had it, and
beside the source an image without it looks brighter here and darker there for no reason of the anatomy.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

_COARSE_MM = 4.0  # the spacing at which a field is estimated
_ITERATIONS = (20, 20, 20)  # by level; the control points of the last are some 40 mm apart
_DARKEST = 0.02  # of the images' range of 2: N4 takes logarithms
_SMALLEST = 1000  # coarse voxels of a head; splines through fewer would take the anatomy for shading
ORDINARY = 0.15  # standard deviation of the logarithm; scans of gliomas have 0.07 to 0.14


def estimate_field(image: np.ndarray, mask: np.ndarray, spacing: Iterable[float]) -> np.ndarray:
    """The factors of a receive field, by N4 (Tustison et al., IEEE TMI 2010) on a coarse grid.

    Args:
        image: (X, Y, Z), positive where ``mask``.
        mask: bool, the head.
        spacing: mm.

    Returns:
        The factors (X, Y, Z), whose mean is arbitrary.
    """
    zoom = [min(step / _COARSE_MM, 1.0) for step in spacing]
    coarse, inside = (ndimage.zoom(array.astype(np.float32), zoom, order=1) for array in (image, mask))
    images = [sitk.GetImageFromArray(array) for array in (coarse, (inside > 0.5).astype(np.uint8))]
    for each in images:
        each.SetSpacing([_COARSE_MM] * 3)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(_ITERATIONS)
    corrector.Execute(*images)
    field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(images[0]))
    steps = [fine / rough for fine, rough in zip(image.shape, field.shape, strict=True)]
    return np.exp(ndimage.zoom(field, steps, order=1))


def shared_shading(images: Iterable[np.ndarray], mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The factors by which to shade an image that is to lie beside some sources.

    The geometric mean of the sources' fields. Of a field stronger than an ordinary one less is kept, and none of one
    that is twice as strong: that is a fault of the source, which its synthetic neighbour need not have.

    Args:
        images: the sources, (X, Y, Z) in [-1, 1] with the background at -1, on one grid.
        mask: bool, the head.
        spacing: mm.

    Returns:
        float32 (X, Y, Z), with a geometric mean of 1 in the mask; 1 everywhere for a head of less than 64 ml.
    """
    if mask.sum() * np.prod(spacing) < _SMALLEST * _COARSE_MM**3:
        return np.ones(mask.shape, np.float32)
    fields = []
    for image in images:
        inside = mask & (image > -1)
        fields.append(np.log(estimate_field(np.maximum(image + 1, 2 * _DARKEST), inside, spacing)))
    field = np.mean(fields, axis=0)
    field -= field[mask].mean()
    strength = field[mask].std()
    return np.exp(field * np.clip(2 - strength / ORDINARY, 0, 1)).astype(np.float32)
