"""Model packages: a trained model on disk, as a MONAI bundle folder that is read without running anything from it.

::

    <name>/configs/metadata.json   what the model is, in MONAI's bundle keys, plus the keys of this program
           configs/networks.json   plain data: per method, its weights and the keywords its translator is built from
           models/*.safetensors    weights, one or several shards a method; and of the segmenter, where there is one
           docs/README.md          model card
           LICENSE
           SHA256SUMS              "<hex>  <path>" of every other file; ``sha256sum -c SHA256SUMS`` checks the folder

Every byte is compared with SHA256SUMS before it is parsed; weights are safetensors only; ``networks.json`` never meets
MONAI's ``ConfigParser``, which could instantiate what it names. The checksums find damage. They are no signature: who
rewrites SHA256SUMS makes another package, which :attr:`ModelPackage.digest` tells apart.

In metadata.json, ``sources`` and ``targets`` are those of the paired methods, and ``"zero_shot": {"targets": [...]}``
says what the method ``ZERO_SHOT`` makes from any contrast; a package without paired methods has empty lists. A package
with a segmenter has its keywords as ``"segmenter"`` in networks.json, and in metadata.json ``"segmenter"`` with the
``classes`` that it tells and the ``contrasts`` that it was trained on, null for all. One that can tell what is unlike
its training has a ``"classifier"`` in networks.json and ``"trained_on"`` in metadata.json: the largest distance of
slices and of voxels within one (``slice_mm``, ``pixel_mm``), the range of the head's extent along R, A and S
(``extent_mm``), and by contrast those of the quantiles of the intensities in the head (see ``input_range``). One
whose training had targets without the shading of coils says ``"shading": "removed"`` (see ``shading``).

Writing, installing and removing packages is in ``package_store``. Importing this module does not import torch.
"""

import copy
import hashlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelPackageError
from .package_format import (
    CHECKSUMS,
    FORMAT_VERSION,
    LICENCE,
    METADATA,
    MODEL_CARD,
    NETWORKS,
    SEGMENTER,
    ZERO_SHOT,
    check_metadata,
    check_networks,
    extras_of,
    list_files,
    parse_checksums,
    read,
    read_json,
    read_verified,
    refusal,
    size_limit,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelPackage:
    """A package whose small files were verified; its weights are verified when they are read.

    Attributes:
        path: the folder, absolute.
        name: the folder's name.
        digest: SHA-256 of SHA256SUMS, in hex: one number for the content of every file.
        metadata: content of configs/metadata.json.
        networks: content of configs/networks.json.
        checksums: SHA-256 in hex per relative POSIX path.
    """

    path: Path
    name: str
    digest: str
    metadata: dict[str, Any] = field(repr=False, compare=False)
    networks: dict[str, Any] = field(repr=False, compare=False)
    checksums: dict[str, str] = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        return self.metadata["name"]

    @property
    def description(self) -> str:
        return self.metadata["description"]

    @property
    def sources(self) -> tuple[str, ...]:
        """Canonical names of the modalities that the paired methods can start from; empty if there are none."""
        return tuple(self.metadata["sources"])

    @property
    def targets(self) -> tuple[str, ...]:
        """Canonical names of the modalities that the paired methods can make; empty if there are none."""
        return tuple(self.metadata["targets"])

    @property
    def zero_shot_targets(self) -> tuple[str, ...]:
        """Canonical names of the modalities that the method ``ZERO_SHOT`` makes from any contrast; mostly empty."""
        return tuple(self.metadata.get("zero_shot", {}).get("targets", ()))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, along R, A and S, that the model was trained on."""
        return tuple(float(value) for value in self.metadata["spacing_mm"])

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.networks["methods"])

    @property
    def default_method(self) -> str:
        return self.networks["default_method"]

    @property
    def trained_on(self) -> dict[str, Any] | None:
        """The ranges of what the model was trained on, None if the package does not know them."""
        return self.metadata.get("trained_on")

    @property
    def unshaded(self) -> bool:
        """Whether the model makes images without the shading of coils."""
        return self.metadata.get("shading") == "removed"

    @property
    def has_segmenter(self) -> bool:
        """Whether there is a segmenter; ``configuration`` and ``weights`` have it under the name ``SEGMENTER``."""
        return SEGMENTER in self.networks

    def targets_of(self, method: str) -> tuple[str, ...]:
        """Canonical names of the modalities that a method can make."""
        return self.zero_shot_targets if method == ZERO_SHOT else self.targets

    def methods_from(self, sources: Iterable[str]) -> tuple[str, ...]:
        """The methods that know these contrasts: paired ones their own sources, ``ZERO_SHOT`` any."""
        paired = set(sources) <= set(self.sources)
        return tuple(method for method in self.methods if paired or method == ZERO_SHOT)

    def method_for(self, sources: Iterable[str]) -> str:
        """The method where none was chosen: the default one, unless only ``ZERO_SHOT`` knows the sources' contrasts."""
        methods = self.methods_from(sources)
        return self.default_method if self.default_method in methods else next(iter(methods), self.default_method)

    def _method(self, method: str | None) -> dict[str, Any]:
        method = method or self.default_method
        known = self.networks["methods"] | extras_of(self.networks)
        if method not in known:
            raise refusal(self.name, f'has no method "{method}"', f"choose one of {', '.join(self.methods)}")
        return known[method]

    def configuration(self, method: str | None = None) -> dict[str, Any]:
        """A copy of the method's keywords (None: the default method), without the list of its weights."""
        return {key: copy.deepcopy(value) for key, value in self._method(method).items() if key != "weights"}

    def weights(self, method: str | None = None) -> "dict[str, torch.Tensor]":
        """The method's tensors (None: the default method) on the CPU, in the stored type: float16 where floating.

        Each shard is read once, and the bytes that were hashed are the bytes that are parsed.

        Raises:
            ModelPackageError: a shard is missing, damaged, no safetensors file, or repeats a tensor of another shard.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        tensors: dict[str, torch.Tensor] = {}
        for path in self._method(method)["weights"]:
            data = read_verified(self.path, path, self.checksums[path])
            try:
                shard = load(data)
            except (SafetensorError, KeyError) as error:  # KeyError: a number type that this torch does not have
                raise refusal(self.name, f"is unusable, as {path} is no safetensors file that can be read") from error
            if repeated := tensors.keys() & shard.keys():
                raise refusal(self.name, f'is damaged, as {path} repeats the tensor "{min(repeated)}"')
            tensors.update(shard)
        return tensors


@dataclass(frozen=True)
class ListedPackage:
    """One row of :func:`list_packages`: ``package`` is None and ``problem`` the sentence if it cannot be used."""

    name: str
    path: Path
    bundled: bool
    package: ModelPackage | None = None
    problem: str = ""


def user_folder() -> Path:
    """Folder of the packages that the user installed; it need not exist."""
    if folder := os.environ.get("MISSING_MODALITY_SYNTH_MODELS"):
        return Path(os.path.abspath(folder))
    # No library for it: Slicer lists packages before anything beyond its own Python packages is installed.
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Application Support"
    else:
        parent = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(parent) / "MissingModalitySynth" / "Models"


def bundled_folder() -> Path | None:
    """Folder of the packages that came with the program, None if there is none."""
    library = Path(__file__).resolve().parent
    candidates = (
        library / "Models",  # installed with pip
        library.parent / "Resources" / "Models",  # installed Slicer extension
        library.parents[1] / "Resources" / "Models",  # source checkout
    )
    return next((folder for folder in candidates if folder.is_dir()), None)


def package_folders() -> list[tuple[Path, bool]]:
    """Folders of all packages, and whether each is bundled: bundled ones first, by name; hidden ones left out."""
    bundled = bundled_folder()
    folders = []
    for parent in (bundled, user_folder()):
        try:
            if parent and parent.is_dir():
                found = sorted(each for each in parent.iterdir() if each.is_dir() and not each.name.startswith("."))
                folders += [(each, parent == bundled) for each in found]
        except OSError as error:
            raise ModelPackageError(
                f"The folder of models {parent} cannot be read ({error.strerror}); allow reading it."
            ) from error
    return folders


def list_packages() -> list[ListedPackage]:
    """Bundled packages, then the user's, by name; damaged ones carry their problem. Weights are not hashed."""
    rows = []
    for folder, bundled in package_folders():
        try:
            rows.append(ListedPackage(folder.name, folder, bundled, load_package(folder)))
        except ModelPackageError as error:
            rows.append(ListedPackage(folder.name, folder, bundled, problem=str(error)))
    return rows


def find_package(name: str) -> ModelPackage:
    """The bundled or installed package of that name, bundled first.

    Raises:
        ModelPackageError: there is none of that name, or it is damaged.
    """
    folders = {folder.name: folder for folder, _ in reversed(package_folders())}
    if name not in folders:
        known = ", ".join(sorted(folders)) or "none, install one first"
        raise ModelPackageError(f'There is no model package "{name}"; known ones: {known}.')
    return load_package(folders[name])


def load_package(package: str | Path) -> ModelPackage:
    """Read a package and verify all its files but the weights, which are verified when they are read.

    Args:
        package: the name of a bundled or installed package (``str``), or a folder; a known name comes first.

    Raises:
        ModelPackageError: missing, damaged, unsafe, or made for a newer version of the program.
    """
    folder = Path(os.path.abspath(package))
    if isinstance(package, str) and (not folder.is_dir() or package in (known.name for known, _ in package_folders())):
        return find_package(package)
    name = folder.name
    if not folder.is_dir():
        raise refusal(name, "is not there", "install it")
    if not (folder / CHECKSUMS).is_file():
        raise refusal(name, f"is no model package or is incomplete, as it has no {CHECKSUMS}")
    files = list_files(folder)
    sums = read(folder, CHECKSUMS)
    checksums = parse_checksums(name, sums)
    metadata = read_json(folder, METADATA, checksums)
    # Before anything else is judged, as a newer format may differ in everything else.
    found = metadata.get("format_version")
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise refusal(
            name, f"has format {found}, newer than format {FORMAT_VERSION} of this program", "update the program"
        )
    if extra := files - checksums.keys():
        raise refusal(name, f"holds a file that {CHECKSUMS} does not list ({min(extra)})")
    for path, checksum in checksums.items():
        if size_limit(path) is None:
            raise refusal(name, f"holds {path}, and weights must be .safetensors", "ask its makers for such a package")
        if path not in files:
            raise refusal(name, f"is incomplete, as {path} is missing")
        if not path.endswith(".safetensors"):
            read_verified(folder, path, checksum)
    for path in (MODEL_CARD, LICENCE):
        if path not in checksums:
            raise refusal(name, f"is incomplete, as {path} is missing")
    check_metadata(name, metadata)
    networks = read_json(folder, NETWORKS, checksums)
    check_networks(name, networks, checksums, metadata)
    return ModelPackage(folder, name, hashlib.sha256(sums).hexdigest(), metadata, networks, checksums)


def verify(package: str | Path) -> ModelPackage:
    """:func:`load_package`, and the weights too: their checksums, and that they are safetensors."""
    from safetensors import SafetensorError, safe_open

    loaded = load_package(package)
    for path, checksum in loaded.checksums.items():
        if not path.endswith(".safetensors"):
            continue
        digest = hashlib.sha256()
        try:
            with open(loaded.path / path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != checksum:
                raise refusal(loaded.name, f"is damaged, as {path} is not what its checksum says")
            with safe_open(loaded.path / path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise refusal(loaded.name, f"is unusable, as {path} is no safetensors file") from error
        except OSError as error:
            raise refusal(loaded.name, f"cannot be read, {path}: {error.strerror}") from error
    return loaded
