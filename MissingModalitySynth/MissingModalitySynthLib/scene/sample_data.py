"""The simulated case that comes with the extension, for Slicer's module Sample Data; loading it needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from ..package_format import CHECKSUMS, parse_checksums
from .translation import _

CATEGORY = "MissingModalitySynth"
SAMPLE_NAME = "MissingModalitySynthSimulatedT1"
THUMBNAIL = f"{SAMPLE_NAME}.png"

# File, node name, and the reader of Slicer that loads it.
FILES = (
    ("MissingModalitySynth-simulated-T1.nrrd", "T1 (simulated case)", "VolumeFile"),
    ("MissingModalitySynth-simulated-lesions.seg.nrrd", "Lesions (simulated case)", "SegmentationFile"),
)


def sample_folder() -> Path:
    """Folder of the sample data, in an installed extension or in a source checkout.

    Raises:
        InputError: it is in neither.
    """
    library = Path(__file__).resolve().parents[1]
    candidates = [parent / "Resources" / "SampleData" for parent in (library.parent, library.parents[1])]
    for folder in candidates:
        if (folder / CHECKSUMS).is_file():
            return folder
    raise InputError(f"The sample data are missing: there is no folder {candidates[0]}; install the extension again.")


def register(sample_data_logic: Any, icons: Path) -> None:
    """Offer the case in Sample Data, once however often this is called.

    Sample Data copies the files into its cache, compares their checksums there, and loads them.

    Args:
        sample_data_logic: the class ``SampleData.SampleDataLogic``.
        icons: folder of the thumbnail.

    Raises:
        InputError: the files are missing.
    """
    folder = sample_folder()
    checksums = parse_checksums(CATEGORY, (folder / CHECKSUMS).read_bytes())
    sample_data_logic.registerCustomSampleDataCategory(CATEGORY, title=_("Missing Modality Synth"))
    sample_data_logic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=SAMPLE_NAME,
        thumbnailFileName=str(Path(icons) / THUMBNAIL),
        uris=[(folder / name).as_uri() for name, *_rest in FILES],
        fileNames=[name for name, *_rest in FILES],
        nodeNames=[node_name for _name, node_name, _reader in FILES],
        loadFileTypes=[reader for *_rest, reader in FILES],
        checksums=[f"SHA256:{checksums[name]}" for name, *_rest in FILES],
    )
