"""What a model package may hold: safe paths, plain files, checksums, and the content of its two JSON files.

``model_package`` describes the format as a whole.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ModelPackageError
from .modality import MODALITIES
from .segmentation import CLASSES

FORMAT_VERSION = 1
ZERO_SHOT = "midiffusion"  # the method that is trained on its targets alone and starts from any contrast
SEGMENTER = "segmenter"
CLASSIFIER = "classifier"
EXTRAS = (SEGMENTER, CLASSIFIER)  # networks of a package beside its methods, under these keys of networks.json
CHECKSUMS, METADATA, NETWORKS = "SHA256SUMS", "configs/metadata.json", "configs/networks.json"
MODEL_CARD, LICENCE = "docs/README.md", "LICENSE"

_TEXT_KEYS = ("version", "name", "task", "description", "authors", "copyright", "license", "intended_use")
_TEXT_KEYS += ("data_source", "monai_version", "pytorch_version", "numpy_version")
# Largest sizes in bytes, by the ending of the file's name. Any other ending is no part of a package: above all pickled
# weights (.pt, .pth, .ckpt, .bin) and programs.
_SIZE_LIMITS = {".json": 1 << 20, ".safetensors": 8 << 30, "": 1 << 20}
_SIZE_LIMITS |= dict.fromkeys((".md", ".txt", ".png", ".jpg", ".svg"), 16 << 20)
MAX_FILES = 1000
_ASK = "ask its makers for a corrected one"
_JUNK = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\._.*", re.IGNORECASE)  # left by file managers
_UNSAFE = re.compile(r'[\\:*?"<>|\x00-\x1f\x7f]')
METHOD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def refusal(name: str, problem: str, advice: str = "reinstall it") -> ModelPackageError:
    """The error that names the package, its problem and what to do, in one sentence."""
    return ModelPackageError(f'The model package "{name}" {problem}; {advice}.')


def _too_large(name: str, path: str) -> ModelPackageError:
    return refusal(name, f"holds {path}, which is larger than such a file may be", _ASK)


def is_safe_path(path: str) -> bool:
    """Whether a relative POSIX path stays in its folder, and means the same file on Linux, macOS and Windows."""
    # Windows drops dots and spaces at the end of a name, so that ".. " climbs like "..".
    return not _UNSAFE.search(path) and all(part and part[-1] not in ". " for part in path.split("/"))


def size_limit(path: str) -> int | None:
    """Largest size in bytes of a file of a package, None if no such file belongs in one."""
    return _SIZE_LIMITS.get(Path(path).suffix)


def is_junk(path: str) -> bool:
    """Whether a file manager left this file there, so that it is no part of the package."""
    return _JUNK.fullmatch(path.rpartition("/")[2]) is not None


def list_files(folder: Path) -> set[str]:
    """Relative POSIX paths of the files under a package's folder, without SHA256SUMS and what file managers leave.

    Raises:
        ModelPackageError: a link, a file that is not plain, too large a file, too many files, or no permission.
    """
    files, pending = set(), [folder]
    try:
        while pending:
            for entry in os.scandir(pending.pop()):
                path = Path(entry.path).relative_to(folder).as_posix()
                details = entry.stat(follow_symlinks=False)
                if entry.is_symlink() or getattr(entry, "is_junction", bool)():  # junctions: Windows, Python >= 3.12
                    raise refusal(folder.name, f"holds a link ({path}), which could lead out of it")
                if stat.S_ISDIR(details.st_mode):
                    pending.append(Path(entry.path))
                elif not stat.S_ISREG(details.st_mode):
                    raise refusal(folder.name, f"holds {path}, which is no plain file")
                elif not is_junk(path) and path != CHECKSUMS:
                    if details.st_size > (size_limit(path) or math.inf):
                        raise _too_large(folder.name, path)
                    files.add(path)
                if len(files) + len(pending) > MAX_FILES:
                    raise refusal(folder.name, f"holds more than {MAX_FILES} files")
    except OSError as error:
        raise refusal(folder.name, f"cannot be read ({error.strerror})") from error
    return files


def read(folder: Path, path: str) -> bytes:
    """The file's bytes, no more than such a file may have."""
    try:
        with open(folder / path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > (size_limit(path) or 0):
                raise _too_large(folder.name, path)
            return file.read(size)
    except FileNotFoundError as error:
        raise refusal(folder.name, f"is incomplete, as {path} is missing") from error
    except OSError as error:
        raise refusal(folder.name, f"cannot be read, {path}: {error.strerror}") from error


def read_verified(folder: Path, path: str, checksum: str) -> bytes:
    """The file's bytes, read once, if their SHA-256 (hex) is ``checksum``; ModelPackageError if not."""
    data = read(folder, path)
    if hashlib.sha256(data).hexdigest() != checksum:
        raise refusal(folder.name, f"is damaged, as {path} is not what its checksum says")
    return data


def read_json(folder: Path, path: str, checksums: Mapping[str, str]) -> dict[str, Any]:
    """The object in a verified JSON file."""
    if path not in checksums:
        raise refusal(folder.name, f"is incomplete, as {path} is missing in {CHECKSUMS}")
    try:
        content = json.loads(read_verified(folder, path, checksums[path]))
    except (ValueError, RecursionError) as error:
        raise refusal(folder.name, f"is unusable, as {path} is not valid JSON", _ASK) from error
    if not isinstance(content, dict):
        raise refusal(folder.name, f"is unusable, as {path} is no JSON object", _ASK)
    return content


def parse_checksums(name: str, text: bytes) -> dict[str, str]:
    """SHA-256 (hex) per relative POSIX path, from the content of a package's SHA256SUMS."""
    checksums: dict[str, str] = {}
    for line in text.decode(errors="replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if not match or not is_safe_path(match[2]) or match[2] in checksums:
            raise refusal(name, f"is damaged, as {CHECKSUMS} has a line that is not valid ({line[:100]!r})")
        checksums[match[2]] = match[1]
    return checksums


def extras_of(networks: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of networks.json that are in ``EXTRAS``."""
    return {name: networks[name] for name in EXTRAS if name in networks}


def check_metadata(name: str, metadata: Mapping[str, Any]) -> None:
    """ModelPackageError unless metadata.json has every key that the program or its users rely on."""

    def need(fulfilled: bool, key: str, what: str) -> None:
        if not fulfilled:
            raise refusal(name, f"is unusable, as {key} in {METADATA} must be {what}", _ASK)

    def numbers(key: str, count: int) -> list[float]:
        values = metadata.get(key)
        valid = isinstance(values, list) and len(values) == count
        # A bool is an int for Python, hence type().
        valid = valid and all(type(value) in (int, float) and -1e9 < value < 1e9 for value in values)
        need(valid, key, f"{count} finite numbers")
        return values

    need(metadata.get("format_version") == FORMAT_VERSION, "format_version", str(FORMAT_VERSION))
    for key in _TEXT_KEYS:
        need(isinstance(metadata.get(key), str) and metadata[key].strip() != "", key, "a text that is not empty")
    zero_shot = metadata.get("zero_shot")
    lists = {key: metadata.get(key) for key in ("sources", "targets")}
    if zero_shot is not None:
        need(isinstance(zero_shot, dict), "zero_shot", "an object")
        if lists == {"sources": [], "targets": []}:  # nothing paired
            lists = {}
        lists["targets of zero_shot"] = zero_shot.get("targets")
    for key, names in lists.items():
        valid = isinstance(names, list) and names and all(each in MODALITIES for each in names)
        need(valid and len(set(names)) == len(names), key, f"a list of different names out of {', '.join(MODALITIES)}")
    if (segmenter := metadata.get(SEGMENTER)) is not None:
        classes = segmenter.get("classes") if isinstance(segmenter, dict) else None
        need(classes == list(CLASSES), f"classes of {SEGMENTER}", f"the list {', '.join(CLASSES)}")
    if (trained := metadata.get("trained_on")) is not None:
        need(_is_training_range(trained), "trained_on", "an object of rising ranges")
    need(metadata.get("shading") in (None, "removed"), "shading", '"removed", or not there')
    for key in ("changelog", "network_data_format"):
        need(isinstance(metadata.get(key), dict), key, "an object")
    need(min(numbers("spacing_mm", 3)) > 0, "spacing_mm", "greater than 0")
    low, high = numbers("intensity_range", 2)
    need(low < high, "intensity_range", "two rising numbers")
    low, high = numbers("percentiles", 2)
    need(0 <= low < high <= 100, "percentiles", "two rising numbers from 0 to 100")


def _is_training_range(trained: Any) -> bool:
    """Whether it has the largest voxels, the ranges of the head's extent, and those of five quantiles by contrast."""

    def rising(pairs: Any, count: int) -> bool:
        valid = isinstance(pairs, list) and len(pairs) == count
        valid = valid and all(isinstance(pair, list) and list(map(type, pair)) == [float, float] for pair in pairs)
        return valid and all(-1e9 < low <= high < 1e9 for low, high in pairs)

    if not isinstance(trained, dict) or not isinstance(quantiles := trained.get("quantiles"), dict):
        return False
    voxels = [trained.get(key) for key in ("slice_mm", "pixel_mm")]
    known = quantiles.keys() <= set(MODALITIES) and all(rising(pairs, 5) for pairs in quantiles.values())
    return known and rising(trained.get("extent_mm"), 3) and all(type(mm) is float and 0 < mm < 1e3 for mm in voxels)


def check_networks(
    name: str, networks: dict[str, Any], checksums: Mapping[str, str], metadata: Mapping[str, Any]
) -> None:
    """ModelPackageError unless networks.json is plain data, its weights are in the package, and it fits metadata."""

    def need(fulfilled: bool, what: str) -> None:
        if not fulfilled:
            raise refusal(name, f"is unusable, as {NETWORKS} {what}", _ASK)

    pending: list[tuple[Any, int]] = [(networks, 0)]
    while pending:
        value, depth = pending.pop()
        need(depth <= 32, "is nested too deeply")
        if isinstance(value, dict):
            pending += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            pending += [(part, depth + 1) for part in value]
        elif isinstance(value, str):  # MONAI's ConfigParser would instantiate, evaluate or resolve these
            asks = value == "_target_" or value.startswith(("$", "@"))
            need(not asks, f'asks for code to be run ("{value[:100]}")')

    methods = networks.get("methods")
    need(isinstance(methods, dict) and len(methods) > 0, "must have an object of methods")
    for method, settings in (methods | extras_of(networks)).items():
        need(METHOD_NAME.fullmatch(method) is not None, f'has a method name that is not plain ("{method[:100]}")')
        paths = settings.get("weights") if isinstance(settings, dict) else None
        need(isinstance(paths, list) and len(paths) > 0, f'lists no weights for "{method}"')
        for path in paths:
            listed = isinstance(path, str) and path in checksums and path.endswith(".safetensors")
            need(listed, f"wants weights that are no .safetensors file of this package ({path!r})")
    need((SEGMENTER in networks) == (SEGMENTER in metadata), f"must have a {SEGMENTER} if, and only if, {METADATA} has")
    need((CLASSIFIER in networks) == ("trained_on" in metadata), f"must have a {CLASSIFIER} if trained_on is there")
    zero_shot = "zero_shot" in metadata
    need((ZERO_SHOT in methods) == zero_shot, f'must have the method "{ZERO_SHOT}" if, and only if, zero_shot is there')
    paired = methods.keys() != {ZERO_SHOT}
    need(paired == bool(metadata["sources"]), f"must have a paired method if, and only if, {METADATA} has sources")
    default = networks.get("default_method")
    need(isinstance(default, str) and default in methods, "must name one of its methods as default_method")
