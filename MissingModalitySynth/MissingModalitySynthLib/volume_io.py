"""Volumes on disk: NIfTI, NRRD and MetaImage files and DICOM series folders in; files with provenance out.

SimpleITK reads and writes; ``file_headers`` first refuses the files that SimpleITK would repair without a word.
"""

import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from . import __version__
from .errors import GeometryError, InputError, OutputError
from .file_headers import FORMATS, check_file, file_format
from .volume import Geometry, Volume, check_usable, from_sitk, to_sitk

PROVENANCE_KEY = "MissingModalitySynth"

# Nothing here identifies a person.
_DICOM_TAGS = {
    "Modality": "0008|0060",
    "Manufacturer": "0008|0070",
    "SeriesDescription": "0008|103e",
    "ContrastBolusAgent": "0018|0010",
    "ScanningSequence": "0018|0020",
    "SequenceName": "0018|0024",
    "RepetitionTime": "0018|0080",
    "EchoTime": "0018|0081",
    "InversionTime": "0018|0082",
    "MagneticFieldStrength": "0018|0087",
    "ProtocolName": "0018|1030",
    "FlipAngle": "0018|1314",
    "SeriesInstanceUID": "0020|000e",
    "FrameOfReferenceUID": "0020|0052",
}
_GAP_TOLERANCE = 0.01  # of the slice spacing


def read_volume(path: str | os.PathLike, series_uid: str | None = None) -> Volume:
    """Read an acquired volume.

    Args:
        path: a NIfTI, NRRD or MHA file, or a folder with a DICOM series.
        series_uid: SeriesInstanceUID of the series to read, for a folder that holds several.

    Returns:
        A usable volume: float32 with any rescaling applied, named after the file or folder; its metadata is what the
        header says (DICOM attributes by keyword).

    Raises:
        InputError: the file is missing, unreadable, truncated, of an unsupported format, or no scalar 3D image; the
            folder has no DICOM series or several; the voxels are not finite or constant.
        GeometryError: spacing, direction or size cannot be used, or DICOM slices are unevenly spaced.
    """
    path = Path(path)
    with _quiet():
        if path.is_dir():
            volume = _read_series(path, series_uid)
        else:
            reader = _open(path)
            try:
                image = reader.Execute()
            except RuntimeError as error:
                raise _unreadable(path, error) from error
            if image.GetDimension() == 4:
                image = image[:, :, :, 0]
            with _naming(path):
                volume = from_sitk(image, _stem(path), _metadata(reader))
    check_usable(volume)
    return volume


def read_header(path: str | os.PathLike, series_uid: str | None = None) -> tuple[Geometry, dict[str, str]]:
    """Geometry and metadata of a file or DICOM folder without its voxels; arguments and errors as ``read_volume``."""
    path = Path(path)
    with _quiet():
        if path.is_dir():
            _, geometry, metadata = _series(path, series_uid)
            return geometry, metadata
        reader = _open(path)
        n = reader.GetDimension()
        direction = np.reshape(reader.GetDirection(), (n, n))[:3, :3]
        with _naming(path):
            geometry = Geometry(reader.GetSize()[:3], reader.GetSpacing()[:3], reader.GetOrigin()[:3], direction)
        return geometry, _metadata(reader)


def write_volume(volume: Volume, path: str | os.PathLike, provenance: Mapping | None = None) -> None:
    """Write a volume, all or nothing: under a temporary name first, checked by reading it back, then renamed.

    NRRD and MHA carry the provenance as JSON in the header field "MissingModalitySynth", NIfTI a short form in its
    ``descrip`` field; a JSON sidecar of the same name has it under the same key in every case. NIfTI keeps the grid in
    float32, that is within 1e-6 of its value; the others keep it exactly.

    Args:
        volume: voxels float32.
        path: .nii, .nii.gz, .nrrd or .mha; an existing file is replaced.
        provenance: how the volume was made (JSON-serialisable, "target" is the contrast); None for a volume that is
            not synthetic.

    Raises:
        OutputError: the format is unknown, the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    suffix = file_format(path)
    if not suffix:
        raise OutputError(f"'{path}' can't be written: use one of the formats {', '.join(FORMATS)}.")
    if not path.parent.is_dir() or path.is_dir():
        raise OutputError(f"'{path}' can't be written: its folder does not exist, or it is a folder itself.")
    image = to_sitk(volume)
    unique = uuid.uuid4().hex[:12]
    new_image, new_sidecar = path.parent / f".{unique}{suffix}", path.parent / f".{unique}.json"
    try:
        if provenance is not None:
            record = json.dumps({PROVENANCE_KEY: provenance}, indent=2, ensure_ascii=False)
            new_sidecar.write_text(record + "\n", encoding="utf-8")
            image.SetMetaData(PROVENANCE_KEY, json.dumps(provenance))  # NIfTI drops it
            image.SetMetaData("ITK_FileNotes", _short_provenance(provenance))  # NIfTI's descrip
        with _quiet():
            sitk.WriteImage(image, str(new_image), True)
            _check_written(new_image, volume.geometry)
        if provenance is not None:
            os.replace(new_sidecar, _sidecar(path))  # first: no synthetic volume ever lies there without its provenance
        os.replace(new_image, path)
    except (OSError, RuntimeError, InputError) as error:
        raise OutputError(f"'{path}' can't be written: {_why_not_written(path, volume, error)}.") from error
    finally:
        new_image.unlink(missing_ok=True)
        new_sidecar.unlink(missing_ok=True)


def read_provenance(path: str | os.PathLike) -> dict | None:
    """The provenance that ``write_volume`` left with a file; None for a file that is not synthetic.

    It is read from the header (NRRD, MHA), else from the sidecar, else (a NIfTI that lost its sidecar) no more than
    ``{"description": ..., "target": ...}`` is left of it.

    Raises:
        InputError: the file is unreadable, or the provenance in its header damaged.
    """
    path = Path(path)
    metadata = read_header(path)[1] if file_format(path) else {}
    if PROVENANCE_KEY in metadata:
        try:
            return json.loads(metadata[PROVENANCE_KEY])
        except ValueError as error:
            raise InputError(f"The provenance of '{path}' is damaged: it is no valid JSON.") from error
    record = _foreign_or_own(_sidecar(path))
    if isinstance(record, dict) and PROVENANCE_KEY in record:
        return record[PROVENANCE_KEY]
    description = metadata.get("descrip", "")
    short = re.match(r"SYNTHETIC (\w+)", description)  # as _short_provenance has it
    return {"description": description, "target": short[1]} if short else None


def _foreign_or_own(sidecar: Path) -> object:
    """Content of a sidecar; None where there is none that can be read: one that isn't ours may be anything."""
    try:
        return json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else None
    except (ValueError, OSError):
        return None


# --- files ----------------------------------------------------------------------------------------------------------


def _open(path: Path) -> sitk.ImageFileReader:
    """A reader that has read the header of what is surely a complete, scalar 3D image."""
    check_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    _require_scalar_3d(reader, path)
    return reader


def _require_scalar_3d(reader: sitk.ImageFileReader, path: Path) -> None:
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    problem = None
    if "complex" in pixel:
        problem = "has complex voxels: export the magnitude image"
    elif components in (3, 4) and "8-bit unsigned" in pixel:
        problem = "is a colour (RGB) image: the original grey-value scan is needed"
    elif components > 1:
        problem = f"is a vector image with {components} components a voxel: a scalar image is needed"
    elif len(size) == 2 or (len(size) == 3 and 1 in size):
        problem = "is a 2D image: a 3D volume is needed"
    elif len(size) > 3 and math.prod(size[3:]) > 1:
        problem = f"is a {len(size)}D image with {math.prod(size[3:])} volumes: extract the one to use"
    elif len(size) > 4:
        problem = f"is a {len(size)}D image: a 3D volume is needed"
    if problem:
        raise InputError(f"'{path}' {problem}.")


def _check_written(path: Path, geometry: Geometry) -> None:
    written, _ = read_header(path)
    if not written.matches(geometry):
        raise InputError("the grid was not kept")


def _why_not_written(path: Path, volume: Volume, error: Exception) -> str:
    if not os.access(path.parent, os.W_OK):
        return "its folder is not writable"
    if shutil.disk_usage(path.parent).free < volume.array.nbytes:
        return "the disk is full"
    return f"check that the folder is writable and the disk has room ({_reason(error)})"


# --- DICOM ----------------------------------------------------------------------------------------------------------


def _read_series(folder: Path, series_uid: str | None) -> Volume:
    files, geometry, metadata = _series(folder, series_uid)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.SetOutputPixelType(sitk.sitkFloat32)  # every slice has its own rescale slope
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(folder, error) from error
    array = sitk.GetArrayFromImage(image).T
    return Volume(array, geometry, folder.resolve().name, metadata)


def _series(folder: Path, series_uid: str | None) -> tuple[list[str], Geometry, dict[str, str]]:
    """Files in the order of space, geometry and metadata of one DICOM series, from the headers alone."""
    uids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not uids:
        raise InputError(f"Folder '{folder}' holds no DICOM series.")
    if series_uid is None and len(uids) > 1:
        listed = "; ".join(f"{uid} ({_description(folder, uid)})" for uid in uids)
        raise InputError(f"Folder '{folder}' holds {len(uids)} DICOM series, name one of them: {listed}.")
    if series_uid is not None and series_uid not in uids:
        raise InputError(f"Folder '{folder}' holds no DICOM series {series_uid}, only {', '.join(uids)}.")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series_uid or uids[0])
    slices = [_open_slice(file, folder) for file in files]
    first = slices[0]
    in_plane = Geometry(first.GetSize(), first.GetSpacing(), first.GetOrigin(), first.GetDirection())
    normal = np.asarray(in_plane.direction)[:, 2]
    for reader in slices:
        if reader.GetSize() != first.GetSize() or not np.allclose(reader.GetSpacing()[:2], first.GetSpacing()[:2]):
            raise GeometryError(f"The DICOM series in '{folder}' mixes slices of different sizes or pixel spacings.")
        if not np.allclose(reader.GetDirection(), first.GetDirection(), atol=1e-4):
            raise GeometryError(
                f"The DICOM series in '{folder}' mixes slices of different orientations (a localizer?)."
            )
    positions = np.array([reader.GetOrigin() for reader in slices])
    order = np.argsort(positions @ normal)
    origin, gap = positions[order[0]], _slice_gap(positions[order], normal, folder)
    geometry = Geometry(
        (*first.GetSize()[:2], len(files)), (*first.GetSpacing()[:2], gap), origin, first.GetDirection()
    )
    metadata = {keyword: _text(first, tag) for keyword, tag in _DICOM_TAGS.items() if first.HasMetaDataKey(tag)}
    return [files[index] for index in order], geometry, metadata


def _open_slice(file: str, folder: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(folder, error) from error
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"The DICOM series in '{folder}' is a colour image: the original grey-value scan is needed.")
    if reader.GetDimension() != 3 or reader.GetSize()[2] != 1:
        raise InputError(f"'{file}' is a multi-frame DICOM file: convert it to NIfTI first.")
    return reader


def _slice_gap(positions: np.ndarray, normal: np.ndarray, folder: Path) -> float:
    """The one distance of neighbouring slices in mm, of positions (n, 3) in order."""
    if len(positions) < 2:
        raise InputError(f"The DICOM series in '{folder}' is a single 2D slice: a 3D volume is needed.")
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    gap = float(gaps.mean())
    if gaps.min() < _GAP_TOLERANCE * gaps.max():
        raise GeometryError(
            f"The DICOM series in '{folder}' has several slices at one position (echoes or time points?): "
            "export the one to use."
        )
    if np.ptp(gaps) > 2 * _GAP_TOLERANCE * gap:
        raise GeometryError(
            f"The DICOM series in '{folder}' has uneven slice distances ({gaps.min():.3f} to {gaps.max():.3f} mm): "
            "slices are missing or the acquisition is not a regular volume."
        )
    if np.abs(steps - np.outer(gaps, normal)).max() > _GAP_TOLERANCE * gap:
        raise GeometryError(f"The slices of the DICOM series in '{folder}' are sheared (tilted): resample it first.")
    return gap


def _description(folder: Path, uid: str) -> str:
    reader = sitk.ImageFileReader()
    reader.SetFileName(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)[0])
    reader.ReadImageInformation()
    tag = _DICOM_TAGS["SeriesDescription"]
    return _text(reader, tag) if reader.HasMetaDataKey(tag) else "no description"


# --- small helpers --------------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ITK's warnings off the console; what matters is raised."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before the message of a GeometryError."""
    try:
        yield
    except GeometryError as error:
        raise GeometryError(f"'{path}': {error}") from error


def _unreadable(path: Path, error: RuntimeError) -> InputError:
    if "orthonormal" in str(error):
        return GeometryError(f"'{path}' has a direction matrix that is not orthonormal (sheared): resample it first.")
    if "Zero-valued spacing" in str(error):
        return GeometryError(f"'{path}' states a voxel spacing of 0: every spacing must be positive.")
    return InputError(f"'{path}' is truncated, damaged or no valid image: copy or export it again ({_reason(error)}).")


def _reason(error: Exception) -> str:
    """The telling line of an error, without the source locations that ITK puts before it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in reversed(lines) if "ERROR" in line or "Reason" in line), lines[-1])
    return re.sub(r"^(ITK|sitk::)\s*ERROR:\s*(\w+\(0x[0-9a-f]+\): )?", "", telling).rstrip(".:")


def _metadata(reader: sitk.ImageFileReader) -> dict[str, str]:
    # a key that is no UTF-8 can't be asked for
    keys = [key for key in reader.GetMetaDataKeys() if key.isascii()]
    pairs = ((key, _text(reader, key)) for key in keys)
    return {key: value for key, value in pairs if value}


def _text(reader: sitk.ImageFileReader, key: str) -> str:
    """A header's text; what is no UTF-8 is taken for Latin-1, the commonest other character set of scanners."""
    raw = reader.GetMetaData(key).encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        return raw.decode("latin-1").strip()


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(file_format(path))]


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{_stem(path)}.json")


def _short_provenance(provenance: Mapping) -> str:
    """What fits into the 79 characters of NIfTI's ``descrip``."""
    text = f"SYNTHETIC {provenance.get('target', 'image')} by {PROVENANCE_KEY} {__version__}, not for diagnosis"
    return text.encode("ascii", "replace").decode()[:79]
