"""How voxels get from one process to the other: as .npy files in a private temporary folder.

A file is as fast as memory here, as it rarely leaves the operating system's cache. Reading and writing are generators
that do a few milliseconds of work between two ``yield``, so that an event loop can run them without being blocked.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from ..errors import InputError, OutputError

if TYPE_CHECKING:
    from ..volume import Volume

_SLAB_BYTES = 2 << 20
# Temporary folders may be shared with other computers and containers, whose process numbers mean nothing here.
_HOST = f"{crc32(socket.gethostname().encode(errors='replace')):08x}"


def create_folder(root: Path) -> Path:
    """A new folder that only this user can open (mode 0700), named after this computer and process.

    Raises:
        OutputError: ``root`` cannot be written.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=f"mms-{_HOST}-{os.getpid()}-", dir=root))
    except OSError as error:
        raise OutputError(
            f"The temporary folder '{root}' cannot be written ({error.strerror}): free space on its disk, or let the "
            "variable TMPDIR name another one."
        ) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it, also while another thread still writes into it; what stays is swept later."""
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.005)


def sweep(root: Path) -> None:
    """Remove the folders that this user's dead processes left on this computer."""
    import psutil

    for folder in root.glob(f"mms-{_HOST}-*"):
        owner = re.fullmatch(r"mms-[0-9a-f]{8}-(\d+)-\w+", folder.name)
        try:
            status = folder.lstat()
            if not owner or not stat.S_ISDIR(status.st_mode) or (os.name == "posix" and status.st_uid != os.getuid()):
                continue
            # A process that is younger than the folder only has the number of the one that made it.
            alive = psutil.Process(int(owner[1])).create_time() <= status.st_mtime + 1
        except (FileNotFoundError, psutil.AccessDenied):  # just removed; or alive, and somebody else's
            continue
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            remove_folder(folder)


def describe(volume: Volume, file: Path) -> dict[str, Any]:
    """A volume as plain data, its voxels in a file. JSON keeps the geometry exactly."""
    geometry = volume.geometry
    return {
        "file": file.name,
        "name": volume.name,
        "spacing": geometry.spacing,
        "origin": geometry.origin,
        "direction": geometry.direction,
    }


def restore(description: Mapping[str, Any], array: np.ndarray) -> Volume:
    """The volume of a description and its voxels."""
    from ..volume import Geometry, Volume

    geometry = Geometry(array.shape, *(description[name] for name in ("spacing", "origin", "direction")))
    return Volume(array, geometry, description["name"])


def write_array(array: np.ndarray, path: Path) -> Generator[None, None, None]:
    """Write an array of real numbers of any layout, in slabs, as ``numpy.save`` would.

    Raises:
        InputError: the voxels are no real numbers.
        OSError: the file cannot be written.
    """
    if array.dtype.kind not in "biuf":
        raise InputError(f"The voxels are of type {array.dtype}, not plain numbers: convert the volume first.")
    fortran = array.ndim > 1 and abs(array.strides[0]) < abs(array.strides[-1])
    rows = array.T if fortran else array
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": fortran,
        "shape": array.shape,
    }
    with open(path, "xb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for slab in _slabs(rows):
            file.write(np.ascontiguousarray(slab).data)
            yield


def read_array(path: Path) -> Generator[None, None, np.ndarray]:
    """Read an array that ``numpy.save`` wrote, in slabs; returns it.

    Raises:
        OSError: the file cannot be read, or is shorter than it says.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        rows = np.empty(shape[::-1] if fortran else shape, dtype)
        for slab in _slabs(rows):
            if file.readinto(slab.data) != slab.nbytes:
                raise OSError(f"{path.name} is incomplete")
            yield
    return rows.T if fortran else rows


def _slabs(rows: np.ndarray) -> list[np.ndarray]:
    """The array in pieces along its first axis, of at least one row each."""
    count = max(1, _SLAB_BYTES // max(1, rows.nbytes // max(1, len(rows))))
    return [rows[start : start + count] for start in range(0, len(rows), count)]
