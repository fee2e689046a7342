"""Checks of raw file headers, where SimpleITK says nothing about what is wrong with a file.

SimpleITK fills a truncated NIfTI with zeros, makes a negative or zero spacing positive, reads a NaN spacing as 1, and
ignores a sheared NIfTI sform. All of that moves anatomy without a word, so it is refused here, before reading.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MissingModalitySynthLib.errors import GeometryError, InputError
from MissingModalitySynthLib.volume import Geometry

FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha")
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}


def file_format(path: str | os.PathLike) -> str:
    """The suffix of a supported file format (one of ``FORMATS``, lower case), or "" for anything else."""
    return next((suffix for suffix in FORMATS if os.fspath(path).lower().endswith(suffix)), "")


def check_file(path: Path) -> None:
    """Refuse a file that is not what its suffix says, not complete, or on an impossible grid.

    Raises:
        InputError: the file is missing, not readable, truncated or damaged, or of an unsupported format.
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
        header = file.read(540)
        order = "<" if header[:4] in (struct.pack("<i", 348), struct.pack("<i", 540)) else ">"
        version = {348: 1, 540: 2}.get(struct.unpack_from(order + "i", header)[0])
        if version is None:
            raise InputError(f"'{path}' is no NIfTI file.")
        if version == 1:
            dim, bits = struct.unpack_from(order + "8h", header, 40), struct.unpack_from(order + "h", header, 72)[0]
            pixdim, offset = (
                struct.unpack_from(order + "8f", header, 76),
                struct.unpack_from(order + "f", header, 108)[0],
            )
            sform_code = struct.unpack_from(order + "h", header, 254)[0]
            sform = struct.unpack_from(order + "12f", header, 280)
        else:
            dim, bits = struct.unpack_from(order + "8q", header, 16), struct.unpack_from(order + "h", header, 14)[0]
            pixdim, offset = (
                struct.unpack_from(order + "8d", header, 104),
                struct.unpack_from(order + "q", header, 168)[0],
            )
            sform_code = struct.unpack_from(order + "i", header, 348)[0]
            sform = struct.unpack_from(order + "12d", header, 400)
        expected = int(offset) + math.prod(dim[1 : 1 + max(0, min(dim[0], 7))]) * bits // 8
        length = file.seek(0, os.SEEK_END) if not zipped else _length(file, len(header))
    if length < expected:
        raise EOFError
    _require_positive_spacing(pixdim[1:4], path)
    if sform_code > 0:
        matrix = np.reshape(sform, (3, 4))[:, :3]
        norms = np.linalg.norm(matrix, axis=0)
        try:
            Geometry((1, 1, 1), norms, direction=matrix / np.where(norms > 0, norms, 1))
        except GeometryError as error:
            raise GeometryError(f"'{path}': {error}") from error


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


def _length(file: gzip.GzipFile, already: int) -> int:
    """Bytes of a compressed file to its end, which also verifies its checksum."""
    total = already
    while block := file.read(1 << 20):
        total += len(block)
    return total


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


_CHECKS = {".nii": _check_nifti, ".nii.gz": _check_nifti, ".nrrd": _check_nrrd, ".mha": _check_metaimage}
