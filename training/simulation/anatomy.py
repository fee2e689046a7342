"""Anatomies: label maps of heads with tissue classes at 1 mm in RAS order, from files, from nilearn or made up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from MissingModalitySynthLib.errors import InputError
from training.simulation.tissues import BRAIN, CLASS

DISTANCE_STEP = 8  # `brain_distance` stores 128 + 8 x mm, clipped to a byte
SHADE_STEP = 32  # `shade` stores 32 x texture standard deviations
SHADE = 4.0  # shift in texture standard deviations per share of the other tissue nearby
SULCAL_SHADE = -2.2  # label maps have sulci of a voxel or more, real ones are thinner and share voxels with cortex
HEAD_MARGIN = 2  # voxels of air around a head
VENTRICLE_DEPTH = 22  # mm below the brain's surface, beyond which fluid is that of ventricles
MNI_NOISE = 0.5  # SD of the noise added to log probabilities
# Centre and half axes of the nuclei on the right side, in mm of MNI space (x to the right, y to the front, z upwards).
DEEP_GREY = {
    "thalamus": ((11, -19, 8), (10, 15, 10)),
    "caudate": ((13, 12, 10), (7, 16, 12)),
    "putamen": ((26, 3, 1), (8, 19, 12)),
    "pallidum": ((19, -5, -1), (6, 9, 8)),
}

# FreeSurfer numbers, with those of the segmentation of the whole head (500 and above) that SynthSeg's maps use.
SYNTHSEG_CLASSES = {
    "white matter": (2, 41),
    "cortex": (3, 42),
    "cerebellar white matter": (7, 46),
    "cerebellar cortex": (8, 47),
    "thalamus": (10, 49),
    "caudate": (11, 50, 26, 58),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus and amygdala": (17, 18, 53, 54),
    "brainstem": (16, 28, 60),
    "ventricular CSF": (4, 5, 14, 15, 43, 44, 72),
    "subarachnoid CSF": (24,),
    "choroid plexus": (31, 63, 136, 137, 163, 164),
    "vessel": (30, 62, 502, 514),
    "lesion": (25, 57),
    "muscle": (507, 508),
    "skin": (511,),
    "marrow": (516,),
    "cortical bone": (515,),
    "eye": (506,),
    "mucosa": (509,),
    "nerve and cord": (85, 512, 530),
}


@dataclass(frozen=True)
class Anatomy:
    """A head at 1 mm, axes R, A, S.

    labels: uint8 (I, J, K), tissue class numbers of `tissues.TISSUES`.
    brain_distance: uint8 (I, J, K), 128 + DISTANCE_STEP x signed distance in mm to the smooth hull of the brain
    (negative inside); its level sets are the edges of skull-stripping masks.
    shade: int8 (I, J, K), SHADE_STEP x the mean of the texture in standard deviations: myelin thins out gradually from
    white matter into the cortex, so that their border is no sharp step; fluid between gyri is partly cortex.
    white_matter, periventricular, juxtacortical: int16 (N, 3), voxels in which lesions may start.
    brain_box: lowest and highest index of the brain per axis.
    """

    name: str
    labels: Tensor
    brain_distance: Tensor
    shade: Tensor
    white_matter: Tensor
    periventricular: Tensor
    juxtacortical: Tensor
    brain_box: tuple[tuple[int, int, int], tuple[int, int, int]]


def box_of(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The smallest box around a mask, with a margin within the array."""
    slices = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(
        slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(slices, mask.shape, strict=True)
    )


def _half_distance(mask: np.ndarray) -> np.ndarray:
    """Distance in mm to the nearest voxel of `mask`, at half resolution."""
    return 2 * ndimage.distance_transform_edt(~mask[::2, ::2, ::2])


def _upsample(half: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = torch.from_numpy(half.astype(np.float32))[None, None]
    size = [2 * n for n in half.shape]
    full = torch.nn.functional.interpolate(values, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()
    return full[: shape[0], : shape[1], : shape[2]]


def finish_anatomy(name: str, labels: np.ndarray) -> Anatomy:
    """Crop to the head, ``box_of(labels > 0, HEAD_MARGIN)``, and add the brain hull and the seeds of lesions."""
    labels = labels[box_of(labels > 0, HEAD_MARGIN)]
    brain = np.isin(labels, BRAIN)
    closed = _half_distance(_half_closing(brain, labels.shape))
    inside = _half_distance(~_half_closing(brain, labels.shape))
    signed = _upsample(closed - inside, labels.shape)
    white = labels == CLASS["white matter"]
    near_ventricle = _upsample(_half_distance(labels == CLASS["ventricular CSF"]), labels.shape) < 7
    deep = ndimage.binary_erosion(white)
    beside_cortex = white & ndimage.binary_dilation(labels == CLASS["cortex"])
    box = box_of(brain, 0)
    return Anatomy(
        name=name,
        labels=torch.from_numpy(np.ascontiguousarray(labels, dtype=np.uint8)),
        brain_distance=torch.from_numpy((128 + DISTANCE_STEP * signed).clip(0, 255).astype(np.uint8)),
        shade=torch.from_numpy(_shade(labels)),
        white_matter=torch.from_numpy(np.argwhere(deep)[::5].astype(np.int16)),
        periventricular=torch.from_numpy(np.argwhere(deep & near_ventricle)[::2].astype(np.int16)),
        juxtacortical=torch.from_numpy(np.argwhere(beside_cortex)[::5].astype(np.int16)),
        brain_box=(tuple(s.start for s in box), tuple(s.stop for s in box)),
    )


def _shade(labels: np.ndarray) -> np.ndarray:
    """White matter near the cortex is shaded towards grey, deep cortical layers towards white, sulci towards cortex."""
    shade = np.zeros(labels.shape, np.float32)
    pairs = (
        ("white matter", "cortex", 1.0),
        ("cortex", "white matter", -1.0),
        ("cerebellar white matter", "cerebellar cortex", 1.0),
        ("cerebellar cortex", "cerebellar white matter", -1.0),
        ("subarachnoid CSF", "cortex", SULCAL_SHADE),
        ("subarachnoid CSF", "cerebellar cortex", SULCAL_SHADE),
    )
    for own, other, weight in pairs:
        nearby = ndimage.gaussian_filter((labels == CLASS[other]).astype(np.float32), 1.0, truncate=2.5)
        shade += np.where(labels == CLASS[own], weight * SHADE * nearby, 0)
    return (SHADE_STEP * shade).clip(-127, 127).astype(np.int8)


def _half_closing(brain: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The brain with its sulci and fissures filled (closing by 8 mm), at full resolution."""
    grown = _half_distance(brain) < 8
    eroded = 2 * ndimage.distance_transform_edt(grown) > 7
    return _upsample(eroded, shape) > 0.5


def synthseg_anatomy(path: str | Path) -> Anatomy:
    """Read a label map with FreeSurfer numbers (SynthSeg's whole-head maps) of 1 mm voxels in any orientation.

    Specks outside the head are removed; what the map calls other soft tissue is split into subcutaneous fat, fat
    between the muscles, and muscle; the border of cerebrospinal fluid to bone becomes dura in places.
    Raises InputError if the file cannot be read, is not 3D at 1 mm, or holds no brain labels.
    """
    import nibabel

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        numbers = np.asarray(image.dataobj)
    except (OSError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path} cannot be read as a label map: {error}.") from error
    if numbers.ndim != 3 or not np.allclose(image.header.get_zooms()[:3], 1, atol=0.05):
        raise InputError(f"{path} is not a 3D label map of 1 mm voxels.")
    table = np.zeros(1024, np.uint8)
    for tissue, values in SYNTHSEG_CLASSES.items():
        table[list(values)] = CLASS[tissue]
    labels = table[numbers.astype(np.int32).clip(0, 1023)]
    if not np.isin(labels, BRAIN).any():
        raise InputError(f"{path} holds no brain labels.")
    labels = labels[box_of(labels > 0, HEAD_MARGIN)]
    parts, count = ndimage.label(labels > 0)
    if count > 1:
        labels = np.where(parts == np.bincount(parts.ravel())[1:].argmax() + 1, labels, 0)
    return finish_anatomy(Path(path).name.split(".")[0], _soft_tissue(labels))


def _soft_tissue(labels: np.ndarray) -> np.ndarray:
    """Split unspecific soft tissue into fat and muscle, and mark dura along the inner table of the skull."""
    rng = np.random.default_rng(0)
    air, muscle, skin = CLASS["air"], CLASS["muscle"], CLASS["skin"]
    depth = _upsample(_half_distance((labels == air) | (labels == skin)), labels.shape)
    coarse = [(n + 15) // 8 for n in labels.shape]
    field = ndimage.gaussian_filter(rng.standard_normal(coarse), 0.7)
    field = ndimage.zoom(field / field.std(), 8, order=1)[: labels.shape[0], : labels.shape[1], : labels.shape[2]]
    labels = labels.copy()
    soft = labels == muscle
    labels[soft & ((depth < 4 + field) | (field > 1))] = CLASS["fat"]
    bone = labels == CLASS["cortical bone"]
    rim = (labels == CLASS["subarachnoid CSF"]) & ndimage.binary_dilation(bone)
    labels[rim & (field[::-1] > -0.3)] = CLASS["dura"]
    return labels


def _wrap_head(labels: np.ndarray) -> np.ndarray:
    """Add cerebrospinal fluid, dura, skull, fat and skin in layers around a brain."""
    labels = np.pad(labels, 18)
    depth = ndimage.distance_transform_edt(labels == 0)
    layers = (
        (2.5, "subarachnoid CSF"),
        (3.5, "dura"),
        (5.5, "cortical bone"),
        (8, "marrow"),
        (9.5, "cortical bone"),
        (13.5, "fat"),
        (16, "skin"),
    )
    inner = 0.0
    for outer, tissue in layers:
        labels[(depth > inner) & (depth <= outer)] = CLASS[tissue]
        inner = outer
    return labels


def mni_anatomy() -> Anatomy:
    """The MNI152 average brain from the tissue maps that nilearn carries, wrapped in layers of a head.

    Classes are drawn from the maps' probabilities with noise of 3 mm, always the same: the likeliest class
    everywhere would be smoother than any head, and fluid, that is nowhere the likeliest class in the average of many
    sulci, would be lost. Ventricles are the fluid that the brain encloses deep inside; deep grey matter, which the maps
    call half grey and half white, lies in ellipsoids. Use label maps of individuals where they are at hand.
    """
    from nilearn import datasets

    maps = (
        datasets.load_mni152_gm_template(1),
        datasets.load_mni152_wm_template(1),
        datasets.load_mni152_brain_mask(1),
    )
    affine = maps[0].affine
    grey, white, mask = (np.asarray(image.dataobj, np.float32) for image in maps)
    box = box_of(mask > 0.5, 2)
    grey, white, mask = grey[box], white[box], ndimage.binary_fill_holes(mask[box] > 0.5)
    rng = np.random.default_rng(0)
    scores = []
    for probability in (grey, white, np.clip(1 - grey - white, 0, 1)):
        noise = ndimage.gaussian_filter(rng.standard_normal(mask.shape, np.float32), 1.2)
        scores.append(np.log(probability + 0.01) + MNI_NOISE * noise / noise.std())
    classes = np.array([CLASS["cortex"], CLASS["white matter"], CLASS["subarachnoid CSF"]], np.uint8)
    labels = classes[np.argmax(scores, axis=0)] * mask.astype(np.uint8)
    deep = ndimage.distance_transform_edt(mask)
    labels[(labels == CLASS["subarachnoid CSF"]) & (deep > VENTRICLE_DEPTH)] = CLASS["ventricular CSF"]
    # the axes of the maps are those of MNI space
    grid = np.ogrid[box]
    x, y, z = (affine[k, k] * grid[k].astype(np.float32) + affine[k, 3] for k in range(3))
    for tissue, (centre, radii) in DEEP_GREY.items():
        offsets = zip((abs(x), y, z), centre, radii, strict=True)
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in offsets) < 1
        labels[inside & (grey > 0.15) & (grey + white > 0.6)] = CLASS[tissue]
    return finish_anatomy("mni152", _wrap_head(labels[box_of(mask, 0)]))


def procedural_head(shape: tuple[int, int, int] = (96, 112, 96), seed: int = 0) -> Anatomy:
    """A made-up head for tests: a folded cortex, ventricles, deep grey matter, cerebellum, skull, fat and skin."""
    rng = np.random.default_rng(seed)
    size = [n - 36 for n in shape]
    if min(size) < 16:
        raise InputError(f"A procedural head needs at least 52 voxels in each direction, not {shape}.")
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    fold = ndimage.gaussian_filter(rng.standard_normal(size), 2.2)
    fold /= fold.std()
    radius = np.sqrt(x**2 + y**2 + z**2)
    edge = 1 - radius
    labels = np.zeros(size, np.uint8)
    labels[edge > 0] = CLASS["subarachnoid CSF"]
    labels[edge > 0.05 + 0.05 * (fold > 0.8)] = CLASS["cortex"]
    labels[edge > 0.2 + 0.07 * fold] = CLASS["white matter"]

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float], tissue: str) -> None:
        squares = [((a - c) / r) ** 2 for a, c, r in zip((x, y, z), centre, radii, strict=True)]
        labels[sum(squares) < 1] = CLASS[tissue]

    for side in (-1, 1):
        ellipsoid((0.12 * side, 0.05, 0.12), (0.09, 0.42, 0.13), "ventricular CSF")
        ellipsoid((0.16 * side, -0.1, -0.1), (0.1, 0.18, 0.12), "thalamus")
        ellipsoid((0.36 * side, 0.12, -0.05), (0.08, 0.25, 0.16), "putamen")
        ellipsoid((0.22 * side, 0.3, 0.05), (0.06, 0.14, 0.14), "caudate")
        ellipsoid((0.3 * side, -0.5, -0.6), (0.26, 0.2, 0.18), "cerebellar cortex")
        ellipsoid((0.3 * side, -0.5, -0.6), (0.17, 0.12, 0.1), "cerebellar white matter")
    ellipsoid((0, -0.15, -0.6), (0.12, 0.14, 0.32), "brainstem")
    return finish_anatomy(f"procedural-{seed}", _wrap_head(labels))
