"""Checks of raw file headers, where SimpleITK says nothing about what is wrong with a file.

SimpleITK fills a truncated NIfTI with zeros, reads NaN and infinite voxels of a NIfTI as zeros, makes a negative or
zero spacing positive, reads a NaN spacing as 1, ignores a sheared NIfTI sform, and chooses between a sform and a qform
that contradict each other otherwise than FSL, FreeSurfer and nibabel do. All of that changes or moves anatomy without a
word, so it is refused here, before reading.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from .errors import GeometryError, InputError
from .volume import Geometry

FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha")
_NIFTI_FLOATS = {16: "=f4", 64: "=f8"}
# Of a voxel, between sform and qform: float32 leaves a quaternion of about 180 degrees no better than 0.7 mrad.
_PLACE_TOLERANCE = 0.5
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}


def file_format(path: str | os.PathLike) -> str:
    """The suffix of a supported file format (one of ``FORMATS``, lower case), or "" for anything else."""
    return next((suffix for suffix in FORMATS if os.fspath(path).lower().endswith(suffix)), "")


def check_file(path: Path) -> None:
    """Refuse a file that is not what its suffix says, not complete, or on an impossible grid.

    Raises:
        InputError: the file is missing, not readable, truncated or damaged, of an unsupported format, or has NaN or
            infinite voxels that SimpleITK would hide.
        GeometryError: a spacing is not positive, or the direction not orthonormal.
    """
    if not path.exists():
        raise InputError(f"'{path}' does not exist.")
    check = _CHECKS.get(file_format(path))
    try:
        if check is None:
            advice = ": name the folder of the series instead" if _is_dicom(path) else ""
            raise InputError(
                f"'{path}' is in no supported format ({', '.join(FORMATS)}, or a DICOM series folder){advice}."
            )
        check(path)
    except (EOFError, OverflowError, ValueError, gzip.BadGzipFile, struct.error, zlib.error) as error:
        raise InputError(f"'{path}' is truncated or damaged: copy or export it again.") from error
    except OSError as error:
        raise InputError(f"'{path}' can't be read: {error.strerror or error}.") from error


def _check_nifti(path: Path) -> None:
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as file:
        header = file.read(348)
        order = next((order for order in "<>" if struct.unpack_from(f"{order}i", header)[0] in (348, 540)), None)
        if order is None:
            raise InputError(f"'{path}' is no NIfTI file.")
        if struct.unpack_from(f"{order}i", header)[0] == 540:
            raise InputError(f"'{path}' is a NIfTI-2 file: convert it to NIfTI-1.")
        dim = struct.unpack_from(f"{order}8h", header, 40)
        datatype, bits = struct.unpack_from(f"{order}2h", header, 70)
        spacing = struct.unpack_from(f"{order}3f", header, 80)
        offset = int(struct.unpack_from(f"{order}f", header, 108)[0])
        size = dim[1 : dim[0] + 1]
        if not 1 <= dim[0] <= 7 or min(size) < 1 or bits < 1 or offset < 0:
            raise ValueError("impossible header")

        file.seek(offset)
        length = math.prod(size) * bits // 8
        _check_nifti_voxels(file, length, _NIFTI_FLOATS.get(datatype, "").replace("=", order), path)
    _require_positive_spacing(spacing, path)
    _check_nifti_place(header, order, path)


def _check_nifti_place(header: bytes, order: str, path: Path) -> None:
    """Refuse a place that is not finite, a sheared sform, and one that contradicts the voxel spacing or the qform."""
    size = struct.unpack_from(f"{order}3h", header, 42)
    qfac, *spacing = struct.unpack_from(f"{order}4f", header, 76)
    qform_code, sform_code = struct.unpack_from(f"{order}2h", header, 252)
    *quaternion, x, y, z = struct.unpack_from(f"{order}6f", header, 256)
    sform = np.reshape(struct.unpack_from(f"{order}12f", header, 280), (3, 4))
    if (qform_code > 0 and not np.isfinite((*quaternion, x, y, z)).all()) or (
        sform_code > 0 and not np.isfinite(sform).all()
    ):
        raise GeometryError(f"'{path}' states a place in space that is not finite: export it again.")
    if sform_code <= 0:
        return
    norms = np.linalg.norm(sform[:, :3], axis=0)
    try:
        Geometry((1, 1, 1), norms, direction=sform[:, :3] / np.where(norms > 0, norms, 1))
    except GeometryError as error:
        raise GeometryError(f"'{path}': {error}") from error
    agree = np.allclose(norms, spacing, rtol=1e-3)
    if qform_code > 0:  # a unit quaternion of which the first element is left out, and a flip of the last axis
        first = math.sqrt(max(0.0, 1 - sum(value**2 for value in quaternion)))
        rotation = np.reshape(sitk.VersorTransform((*quaternion, first)).GetMatrix(), (3, 3))
        steps = np.array(spacing) * (1, 1, -1 if qfac < 0 else 1)
        difference = sform - np.column_stack((rotation * steps, (x, y, z)))
        apart = np.abs(difference[:, :3]) @ size + np.abs(difference[:, 3])  # at most, anywhere in the volume, in mm
        agree = agree and apart.max() <= _PLACE_TOLERANCE * min(spacing)
    if not agree:
        raise GeometryError(
            f"'{path}' states two places in space (sform against qform or voxel spacing), of which programs choose "
            "differently: keep one, for instance with fslorient -copysform2qform."
        )


def _check_nifti_voxels(file: BinaryIO, length: int, dtype: str, path: Path) -> None:
    """Read a file's voxels and, if packed, on to the checksum at its end; count what is not finite in floats."""
    bad = 0
    while block := file.read(1 << 20):
        if dtype:
            voxels = block[: max(length, 0)]
            values = np.frombuffer(voxels, dtype, count=len(voxels) // np.dtype(dtype).itemsize)
            bad += values.size - np.count_nonzero(np.isfinite(values))
        length -= len(block)
    if length > 0:
        raise EOFError
    if bad:
        raise InputError(f"'{path}' has {bad} voxels that are NaN or infinite: repair them first.")


def _check_nrrd(path: Path) -> None:
    spacings = _text_header(path, ":").get("spacings", "")
    _require_positive_spacing([float(word) for word in spacings.split()], path)


def _check_metaimage(path: Path) -> None:
    header = _text_header(path, "=")
    _require_positive_spacing([float(word) for word in header.get("elementspacing", "").split()], path)
    if header.get("compresseddata", "").lower() == "true":
        expected = int(header.get("compresseddatasize", 0))
    else:
        bytes_each = _META_BYTES.get(header.get("elementtype", "").removeprefix("MET_").removeprefix("U"), 0)
        channels = int(header.get("elementnumberofchannels", 1))
        expected = math.prod(int(n) for n in header.get("dimsize", "0").split()) * bytes_each * channels
    if path.stat().st_size < int(header["length"]) + expected:
        raise EOFError


def _text_header(path: Path, separator: str) -> dict[str, str]:
    """The fields of an NRRD or MetaImage header in lower case, and its "length" in bytes."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(1 << 20), b""):
            key, _, value = line.decode("utf-8", "replace").strip().partition(separator)
            fields[key.strip().lower()] = value.strip()
            if key.strip() in ("", "ElementDataFile"):
                break
        fields["length"] = str(file.tell())
    return fields


def _require_positive_spacing(spacing: Sequence[float], path: Path) -> None:
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        shown = ", ".join(f"{value:g}" for value in spacing)
        raise GeometryError(f"'{path}' states a voxel spacing of {shown} mm: every spacing must be positive.")


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


_CHECKS = {".nii": _check_nifti, ".nii.gz": _check_nifti, ".nrrd": _check_nrrd, ".mha": _check_metaimage}
