"""Subjects on the canonical grid, prepared by the engine's own functions and kept on disk.

The cache is safetensors with 16-bit integers, complete or not there, and never a pickle (as MONAI's PersistentDataset
would write). In memory, MONAI's CacheDataset keeps what was loaded (``pairs.in_memory``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from MissingModalitySynthLib import __version__
from MissingModalitySynthLib.canonical import canonical_grid, check_overlap, mask_to_canonical, to_canonical
from MissingModalitySynthLib.errors import InputError, OutputError
from MissingModalitySynthLib.intensity import BRIGHTEST, head_mask, normalise
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import read_header, read_volume

from .atomic import replacing
from .registration import cached_transform, moved
from .subjects import Subject, same_grid

_STEPS = int(32767 / BRIGHTEST)  # of an integer from 0 to 1: an error of at most 3.4e-5, 84 dB below the range


@dataclass(frozen=True, eq=False)
class CanonicalSubject:
    """A subject as the networks see it, axes R, A, S.

    Attributes:
        name: of the subject.
        images: by contrast, float32 (X, Y, Z) in [-1, BRIGHTEST]; the engine's sources end at 1.
        mask: head, or brain where skull-stripped, of any of the contrasts; bool (X, Y, Z).
        segmentation: labels int16 (X, Y, Z), where the subject has them.
        geometry: the canonical grid.
    """

    name: str
    images: Mapping[str, np.ndarray]
    mask: np.ndarray
    segmentation: np.ndarray | None
    geometry: Geometry


def load_subject(
    subject: Subject,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    multiple: int = 16,
    register: bool = False,
    cache: Path | None = None,
) -> CanonicalSubject:
    """Prepare a subject as the engine prepares its sources: crop, canonical grid, percentiles to -1 and 1.

    Args:
        spacing: voxel size in mm along R, A, S.
        multiple: every axis of the grid is a multiple of this many voxels.
        register: rigidly register the contrasts that are on another grid than the reference; those that share a grid
            move together.
        cache: folder of prepared subjects and transforms; a changed file or setting is prepared anew. None prepares
            every time.

    Raises:
        InputError: a file is missing or can't be used, or (GeometryError) the volumes do not show the same head; the
            message names the subject.
        OutputError: the cache can't be written.
    """
    try:
        if cache is None:
            return _prepare(subject, spacing, multiple, register, None)
        settings = [list(map(float, spacing)), multiple, register, BRIGHTEST]
        path = cache / f"{_file_name(subject)}-{_key(subject, settings)}.safetensors"
        prepared = _read(path, subject.name)
        if prepared is None:
            _write(path, _prepare(subject, spacing, multiple, register, cache))
            prepared = _read(path, subject.name)  # rounded as it will be the next time
        if prepared is None:
            raise OutputError(f"'{path}' was written, but can't be read: check the disk.")
        return prepared
    except InputError as error:
        raise type(error)(f"Subject '{subject.name}': {error}") from error


def _prepare(
    subject: Subject, spacing: Sequence[float], multiple: int, register: bool, cache: Path | None
) -> CanonicalSubject:
    volumes = {name: read_volume(path) for name, path in subject.files.items()}
    if register:
        volumes = registered(subject, volumes, cache)
    reference = volumes[subject.reference]
    check_overlap([volume for volume in volumes.values() if volume is not reference], reference)
    head = head_mask(reference.array)
    grid = canonical_grid(reference, spacing, multiple, mask=head)
    mask = mask_to_canonical(head, reference.geometry, grid)
    images = {}
    for name, volume in volumes.items():
        array = to_canonical(volume, grid)
        if volume is not reference:
            mask |= head_mask(array)
        images[name] = normalise(array, brightest=BRIGHTEST, native=volume.array)[0]
    labels = read_labels(subject.segmentation, grid.geometry) if subject.segmentation else None
    return CanonicalSubject(subject.name, images, mask, labels, grid.geometry)


def registered(subject: Subject, volumes: Mapping[str, Volume], cache: Path | None) -> dict[str, Volume]:
    """A subject's volumes by contrast, those on another grid rigidly registered to the reference; grids move together.

    Args:
        cache: folder of the transforms; None computes them every time.

    Raises:
        GeometryError: two volumes cannot be registered. OutputError: the cache can't be written.
    """
    reference = volumes[subject.reference]
    result: dict[str, Volume] = {}
    transforms: list[tuple[Geometry, sitk.Euler3DTransform]] = []
    for name, volume in volumes.items():
        if same_grid(volume.geometry, reference.geometry):
            result[name] = volume
            continue
        transform = next((known for grid, known in transforms if same_grid(grid, volume.geometry)), None)
        if transform is None:
            pair = replace(
                subject, files={key: subject.files[key] for key in (subject.reference, name)}, segmentation=None
            )
            label = f"{_file_name(subject)}-{name}-to-{subject.reference}-{_key(pair, [])}.tfm"
            transform = cached_transform(reference, volume, cache / "transforms" / label if cache else None)
            transforms.append((volume.geometry, transform))
        result[name] = moved(volume, transform)
    return result


def read_labels(path: Path, geometry: Geometry) -> np.ndarray:
    """A label map on a grid, int16, by nearest neighbour; 0 outside. Raises InputError when it can't be read."""
    read_header(path)  # for its checks; a map without any lesion is constant, and fine
    try:
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    except RuntimeError as error:
        raise InputError(f"'{path}' is damaged or no valid image.") from error
    image = sitk.Resample(
        image,
        list(geometry.size),
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        geometry.origin,
        geometry.spacing,
        np.ravel(geometry.direction).tolist(),
        0.0,
    )
    return np.ascontiguousarray(np.rint(sitk.GetArrayViewFromImage(image)).T.astype(np.int16))


def _key(subject: Subject, settings: Sequence) -> str:
    """Changes with the files (size and time), the settings and the version of the engine."""
    paths = dict(subject.files) | ({"segmentation": subject.segmentation} if subject.segmentation else {})
    stats = []
    for role, path in paths.items():
        if not path.exists():
            raise InputError(f"'{path}' does not exist.")
        stats.append([role, str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns])
    return sha256(json.dumps([__version__, settings, stats]).encode()).hexdigest()[:16]


def _file_name(subject: Subject) -> str:
    return re.sub(r"[^\w.-]", "_", subject.name)


def _write(path: Path, subject: CanonicalSubject) -> None:
    tensors = {f"image.{name}": np.rint(image * _STEPS).astype(np.int16) for name, image in subject.images.items()}
    tensors["mask"] = subject.mask
    if subject.segmentation is not None:
        tensors["segmentation"] = subject.segmentation
    grid = subject.geometry
    geometry = json.dumps([grid.size, grid.spacing, grid.origin, grid.direction])
    with replacing(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary, {"geometry": geometry}
        )


def _read(path: Path, name: str) -> CanonicalSubject | None:
    """What the cache holds; None where it holds nothing or a file that is damaged, which is prepared anew."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            geometry = Geometry(*json.loads(file.metadata()["geometry"]))
    except (OSError, SafetensorError):
        return None
    images = {
        key.removeprefix("image."): array.astype(np.float32) / _STEPS
        for key, array in tensors.items()
        if key.startswith("image.")
    }
    return CanonicalSubject(name, images, tensors["mask"], tensors.get("segmentation"), geometry)
