"""Writing, installing and removing model packages: each change happens whole and verified, or not at all."""

import copy
import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import ModelPackageError, OutputError
from .model_package import ModelPackage, load_package, package_folders, user_folder, verify
from .package_format import (
    CHECKSUMS,
    FORMAT_VERSION,
    LICENCE,
    MAX_FILES,
    METADATA,
    METHOD_NAME,
    MODEL_CARD,
    NETWORKS,
    extras_of,
    is_junk,
    is_safe_path,
    list_files,
    refusal,
    size_limit,
)

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 16_000_000
_MAX_UNPACKED_BYTES = 16 << 30
_MAX_COMPRESSION = 100  # float16 weights hardly shrink; text shrinks ten times at most


def write_package(
    folder: str | Path,
    *,
    metadata: Mapping[str, Any],
    networks: Mapping[str, Any],
    tensors: "Mapping[str, Mapping[str, torch.Tensor]]",
    model_card: str,
    licence: str,
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
) -> ModelPackage:
    """Write a package whole or not at all, verified before it takes its place.

    Args:
        folder: the package to make; its last part is the package's name.
        metadata: content of metadata.json; ``format_version`` and the versions of MONAI, torch and numpy are added.
        networks: content of networks.json; the ``weights`` of each method, and of a segmenter, are added.
        tensors: per method, and for a segmenter, its tensors by name; floating ones are stored as float16.
        model_card: content of docs/README.md.
        licence: content of LICENSE.
        shard_bytes: size in bytes that no weights file exceeds, unless a single tensor does.
        replace: put it in the place of an existing package.

    Raises:
        ModelPackageError: the content makes no valid package, or the folder exists and ``replace`` is False.
        OutputError: the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    networks = copy.deepcopy(dict(networks))
    if not _is_plain_name(folder.name):
        raise refusal(folder.name, "is not written under that name", "use letters, digits, - and _")
    parts = networks.get("methods", {}) | extras_of(networks)
    if parts.keys() != tensors.keys() or not all(map(METHOD_NAME.fullmatch, tensors)):
        raise refusal(folder.name, "is not written, as a method lacks tensors or a plain name", "give each method both")
    versions = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
    metadata = {"format_version": FORMAT_VERSION} | {key: version(name) for key, name in versions.items()} | metadata
    with staging(folder.parent) as stage:
        staged = stage / folder.name
        for part in ("configs", "models", "docs"):
            (staged / part).mkdir(parents=True)
        for method, named in tensors.items():
            shards = _shards(folder.name, named, shard_bytes)
            parts[method]["weights"] = paths = []
            for number, shard in enumerate(shards, 1):
                suffix = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
                paths.append(f"models/{method}{suffix}.safetensors")
                _save(staged / paths[-1], shard)
        texts = {METADATA: _to_json(metadata), NETWORKS: _to_json(networks), MODEL_CARD: model_card, LICENCE: licence}
        for path, text in texts.items():
            (staged / path).write_bytes(text.encode())
        sums = {path: hashlib.sha256((staged / path).read_bytes()).hexdigest() for path in sorted(list_files(staged))}
        (staged / CHECKSUMS).write_bytes("".join(f"{sums[path]}  {path}\n" for path in sums).encode())
        verify(staged)
        put_in_place(staged, folder, replace=replace)
    return load_package(folder)


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A temporary folder in ``parent`` (made if absent), gone at the end; OutputError if it cannot be written."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".package-", dir=parent, ignore_cleanup_errors=True) as stage:
            yield Path(stage)
    except OSError as error:
        raise OutputError(
            f"The folder {parent} cannot be written ({error.strerror}); free space or allow writing."
        ) from error


def put_in_place(staged: Path, folder: Path, *, replace: bool) -> None:
    """Rename the package ``staged`` to ``folder`` on the same disk; what was there goes back if that fails."""
    if not os.path.lexists(folder):
        os.replace(staged, folder)
        return
    if not replace:
        raise refusal(folder.name, "is there already", "remove it first or choose to replace it")
    previous = staged.parent / ".previous"
    os.replace(folder, previous)
    try:
        os.replace(staged, folder)
    finally:
        if not os.path.lexists(folder):
            os.replace(previous, folder)


def install_package(source: str | Path, *, replace: bool = False) -> ModelPackage:
    """Copy a package into the user's folder, verified before and after.

    Args:
        source: the package's folder, or a zip file of it: of the folder (which names the package) or of its content
            (the zip file names the package).
        replace: put it in the place of the installed package of that name.

    Raises:
        ModelPackageError: damaged or unsafe; there already while ``replace`` is False; named like a bundled package.
        OutputError: the user's folder cannot be written.
    """
    source = Path(os.path.abspath(source))
    if source.is_dir():
        verify(source)
        with staging(user_folder()) as stage:
            staged = stage / _installable_name(source.name)
            for path in sorted({CHECKSUMS} | list_files(source)):
                (staged / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / path, staged / path, follow_symlinks=False)
            return _finish(staged, replace)
    if not source.is_file():
        raise ModelPackageError(
            f"There is no folder or zip file {source} to install a model package from; check the path."
        )
    with _reading(source):
        archive = zipfile.ZipFile(source)
    with archive, staging(user_folder()) as stage:
        return _finish(_unpack(archive, source, stage), replace)


def remove_package(name: str) -> None:
    """Delete an installed package.

    Raises:
        ModelPackageError: there is no installed package of that name, or it is bundled with the program.
        OutputError: the user's folder cannot be written.
    """
    if folder := _find(name, bundled=False):
        with staging(folder.parent) as stage:
            os.replace(folder, stage / "removed")
    elif _find(name, bundled=True):
        raise refusal(name, "comes with the program and cannot be removed", "only installed packages can")
    else:
        raise refusal(name, "is not installed", "check its name in the list of packages")


def _find(name: str, *, bundled: bool) -> Path | None:
    return next(
        (folder for folder, is_bundled in package_folders() if (folder.name, is_bundled) == (name, bundled)), None
    )


def _is_plain_name(name: str) -> bool:
    return is_safe_path(name) and "/" not in name and not name.startswith(".")


def _installable_name(name: str) -> str:
    if not _is_plain_name(name):
        raise refusal(name, "cannot be installed under that name", "rename it to letters, digits, - and _")
    if _find(name, bundled=True):
        raise refusal(name, "comes with the program and cannot be replaced", "rename the one to install")
    return name


def _finish(staged: Path, replace: bool) -> ModelPackage:
    verify(staged)
    put_in_place(staged, user_folder() / staged.name, replace=replace)
    return load_package(user_folder() / staged.name)


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Turns what ``zipfile`` raises on a damaged file into one sentence."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise ModelPackageError(f"The file {source} is no zip file that can be read; download it again.") from error


def _unpack(archive: zipfile.ZipFile, source: Path, stage: Path) -> Path:
    """Extract the package in a zip file to a folder in ``stage``, each entry judged before the first is written."""

    def refuse(problem: str) -> ModelPackageError:
        return ModelPackageError(
            f"The zip file {source.name} is refused, as {problem}; get the package from its makers."
        )

    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        path = entry.orig_filename  # unlike ``filename``, still has the backslashes on Windows
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if not is_safe_path(path.removesuffix("/")):
            raise refuse(f"its entry {path[:200]!r} could be written outside the package's folder")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refuse(f"its entry {path!r} is a link or another special file")
        if entry.flag_bits & 0x1:
            raise refuse("it is encrypted")
        if entry.is_dir() or path.startswith("__MACOSX/") or is_junk(path):
            continue
        if path in entries:
            raise refuse(f"it holds {path!r} twice")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(f"its entry {path!r} is compressed in an unusual way")
        if (limit := size_limit(path)) is None:
            raise refuse(f"it holds {path!r}, and weights must be .safetensors")
        if entry.file_size > limit:
            raise refuse(f"its entry {path!r} would unpack to {entry.file_size} bytes")
        entries[path] = entry
    unpacked = sum(entry.file_size for entry in entries.values())
    packed = sum(entry.compress_size for entry in entries.values())
    if len(entries) > MAX_FILES or unpacked > min(_MAX_UNPACKED_BYTES, _MAX_COMPRESSION * packed + (16 << 20)):
        raise refuse(f"it would unpack to {len(entries)} files of {unpacked} bytes")

    roots = {PurePosixPath(path).parent for path in entries if PurePosixPath(path).name == CHECKSUMS}
    root = roots.pop() if len(roots) == 1 else None
    if root is None or len(root.parts) > 1 or not all(PurePosixPath(path).is_relative_to(root) for path in entries):
        raise refuse(f"it must hold one package, with its {CHECKSUMS}, and nothing beside it")
    staged = stage / _installable_name(root.name or source.stem)
    for path, entry in entries.items():
        target = staged / PurePosixPath(path).relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:
            for block in _blocks(archive, entry, source):
                file.write(block)
    return staged


def _blocks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, source: Path) -> Iterator[bytes]:
    with _reading(source), archive.open(entry) as content:
        while block := content.read(1 << 20):  # file_size bytes in all, whatever the entry really holds
            yield block


def _to_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _shards(package: str, tensors: "Mapping[str, torch.Tensor]", shard_bytes: int) -> "list[dict[str, torch.Tensor]]":
    """Split into shards that fit ``shard_bytes`` as files, in the order given; floating tensors become float16."""
    import torch

    shards: list[dict[str, torch.Tensor]] = [{}]
    size = header = 256
    for name, tensor in tensors.items():
        kept = tensor.detach().to("cpu", torch.float16 if tensor.is_floating_point() else None)
        kept = kept.clone(memory_format=torch.contiguous_format)  # safetensors refuses tensors that share memory
        if kept.is_floating_point() and not kept.isfinite().all():
            raise refusal(package, f'is not written, as "{name}" is not finite as float16', "check the training")
        # The header's entry: name, type, shape and two offsets, as JSON.
        needed = kept.numel() * kept.element_size() + len(json.dumps(name)) + 100 + 20 * kept.ndim
        if shards[-1] and size + needed > shard_bytes:
            shards.append({})
            size = header
        shards[-1][name] = kept
        size += needed
    return shards


def _save(path: Path, tensors: "Mapping[str, torch.Tensor]") -> None:
    from safetensors.torch import save

    path.write_bytes(save(dict(tensors), metadata={"format": "pt"}))
