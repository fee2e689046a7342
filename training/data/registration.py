"""Rigid registration within a subject, for contrasts that are not aligned, such as IXI's T2 and PD to its T1.

The transform moves the grid, not the voxels: a registered volume is the acquired one at another place in space, so
the way to the canonical grid remains one interpolation.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MissingModalitySynthLib.canonical import check_overlap
from MissingModalitySynthLib.errors import GeometryError, InputError
from MissingModalitySynthLib.volume import Geometry, Volume, to_sitk

from .atomic import replacing

SHRINK = (4, 2, 1)
SMOOTHING_MM = (3.0, 1.5, 0.0)
HISTOGRAM_BINS = 32
SAMPLES = 60_000  # voxels drawn at each level; more gain no accuracy that matters on a 1 mm grid


def rigid_transform(fixed: Volume, moving: Volume, *, iterations: int = 100, seed: int = 0) -> sitk.Euler3DTransform:
    """The rigid transform from points of ``fixed`` to points of ``moving`` (LPS, mm).

    Mattes' mutual information (Mattes et al., IEEE TMI 2003) over three resolutions by regular-step gradient descent.
    It starts from the scanner's coordinates, or from the centres of mass where these place the heads apart.

    Args:
        iterations: at most, at each level.
        seed: of the voxels that are drawn for the metric.

    Raises:
        GeometryError: the heads do not overlap even after the registration.
    """
    fixed_image, moving_image = to_sitk(fixed), to_sitk(moving)
    transform = sitk.Euler3DTransform(
        sitk.CenteredTransformInitializer(
            fixed_image, moving_image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
        )
    )
    try:
        check_overlap([moving], fixed)
        transform.SetTranslation((0.0, 0.0, 0.0))
    except GeometryError:
        pass  # the centres of mass it is

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    voxels = fixed.array.size / np.power(SHRINK, 3.0)
    method.SetMetricSamplingPercentagePerLevel(np.minimum(1.0, SAMPLES / voxels).tolist(), seed + 1)  # 0 is the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel(SMOOTHING_MM)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    # Halved steps (0.5, the default) shrink before the rotation, on which little of the metric depends, has settled.
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, iterations, relaxationFactor=0.9)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed_image, moving_image)
    except RuntimeError as error:
        raise GeometryError(
            f"'{moving.name}' can't be registered to '{fixed.name}': check that both show one head."
        ) from error
    check_overlap([moved(moving, transform)], fixed)
    return transform


def moved(volume: Volume, transform: sitk.Euler3DTransform) -> Volume:
    """A volume where its registration puts it: the same voxels, another origin and direction.

    Args:
        transform: from points of the reference to points of the volume, as :func:`rigid_transform` gives.
    """
    geometry = volume.geometry
    rotation = np.reshape(transform.GetMatrix(), (3, 3))
    direction = rotation.T @ np.asarray(geometry.direction)
    origin = transform.GetInverse().TransformPoint(geometry.origin)
    return replace(volume, geometry=Geometry(geometry.size, geometry.spacing, origin, direction))


def cached_transform(fixed: Volume, moving: Volume, path: Path | None, **options) -> sitk.Euler3DTransform:
    """:func:`rigid_transform`, kept as text (.tfm) so that it is computed once and can be looked at.

    Raises:
        InputError: the file is damaged.
        OutputError: the file can't be written.
    """
    if path is None:
        return rigid_transform(fixed, moving, **options)
    if not path.exists():
        transform = rigid_transform(fixed, moving, **options)
        with replacing(path) as temporary:
            sitk.WriteTransform(transform, str(temporary))
    try:
        # read back when fresh as well, so that both have the digits of the file
        return sitk.Euler3DTransform(sitk.ReadTransform(str(path)))
    except RuntimeError as error:
        raise InputError(f"'{path}' is no rigid transform any more: delete it, it will be computed again.") from error
