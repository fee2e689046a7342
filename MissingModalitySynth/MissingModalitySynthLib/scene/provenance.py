"""What a synthetic volume node says about itself: attributes, and references to the nodes that it was made from.

The whole record is the attribute ``MissingModalitySynth.provenance`` (JSON); every entry of it is an attribute of its
own as well, for people and for the filters of node selectors. References follow the nodes when a scene is saved,
loaded or merged into another one, which stored node IDs would not.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError

PREFIX = "MissingModalitySynth."
SYNTHETIC = PREFIX + "synthetic"
TARGET = PREFIX + "target"
_RECORD = PREFIX + "provenance"
_QUANTITY = PREFIX + "quantity"
_SOURCE_ROLE = PREFIX + "source."
_REFERENCE_ROLE = PREFIX + "reference"
_MEAN_ROLE = PREFIX + "mean"
_SEGMENTED_ROLE = PREFIX + "segmented"

_HEADER = 65536  # bytes; more than the header of any of the formats has

# as the command line says it
DEVIATION = {"quantity": "standard deviation over the samples"}


def mark(node, provenance: Mapping[str, Any]) -> None:
    """Make a node say that it is synthetic, and how it was made; what it said before is dropped.

    Args:
        node: a volume node.
        provenance: as the engine gives it, JSON-serialisable; a standard deviation has the entries of ``DEVIATION``.
    """
    record(node, provenance)
    node.SetAttribute(SYNTHETIC, "1")


def record(node, provenance: Mapping[str, Any]) -> None:
    """Make any node say how it was made; what it said before is dropped."""
    for name in node.GetAttributeNames():
        if name.startswith(PREFIX):
            node.RemoveAttribute(name)
    for key, value in provenance.items():
        node.SetAttribute(PREFIX + key, value if isinstance(value, str) else json.dumps(value))
    node.SetAttribute(_RECORD, json.dumps(provenance))


def refer(node, sources: Mapping[str, Any], reference: str, mean=None) -> None:
    """Point a synthetic node to the nodes that it was made from, and a standard deviation to its mean.

    Args:
        node: a volume node in a scene.
        sources: nodes of the same scene by modality.
        reference: the modality of the node that gave the grid.
        mean: the mean that ``node`` is the standard deviation of.
    """
    for modality, source in sources.items():
        node.SetNodeReferenceID(_SOURCE_ROLE + modality, source.GetID())
    node.SetNodeReferenceID(_REFERENCE_ROLE, sources[reference].GetID())
    if mean is not None:
        node.SetNodeReferenceID(_MEAN_ROLE, mean.GetID())


def is_synthetic(node) -> bool:
    """Whether a node says that it is synthetic: a synthesized volume or its standard deviation."""
    return node.GetAttribute(SYNTHETIC) == "1"


def is_deviation(node) -> bool:
    """Whether a node is the standard deviation of a synthesized volume."""
    return node.GetAttribute(_QUANTITY) == DEVIATION["quantity"]


def provenance_of(node) -> dict[str, Any]:
    """How a synthetic node was made, as the engine recorded it; empty for a node that is not synthetic.

    Raises:
        InputError: the record was damaged.
    """
    record = node.GetAttribute(_RECORD)
    if record is None:
        return {}
    try:
        return json.loads(record)
    except ValueError as error:
        raise InputError(f"The provenance of '{node.GetName()}' is damaged: it is no valid JSON.") from error


def synthetic_nodes(scene) -> list:
    """The synthesized volumes of a scene and their standard deviations, in the order in which they were added."""
    kind = "vtkMRMLScalarVolumeNode"
    volumes = (scene.GetNthNodeByClass(index, kind) for index in range(scene.GetNumberOfNodesByClass(kind)))
    return [node for node in volumes if is_synthetic(node)]


def synthetic_results(scene) -> list:
    """The synthesized volumes of a scene in the order in which they were added, without standard deviations."""
    return [node for node in synthetic_nodes(scene) if not is_deviation(node)]


def source_nodes_of(node) -> dict[str, Any]:
    """By modality the nodes that a synthetic node was made from, as far as they are still in the scene."""
    roles = (node.GetNthNodeReferenceRole(index) for index in range(node.GetNumberOfNodeReferenceRoles()))
    sources = {role: node.GetNodeReference(role) for role in roles if role.startswith(_SOURCE_ROLE)}
    return {role.removeprefix(_SOURCE_ROLE): source for role, source in sources.items() if source is not None}


def reference_of(node):
    """The node that gave a synthetic node its grid; None where it is no longer in the scene."""
    return node.GetNodeReference(_REFERENCE_ROLE)


def mean_of(node):
    """The mean that a standard deviation belongs to; None where it is no longer in the scene."""
    return node.GetNodeReference(_MEAN_ROLE)


def deviation_of(node):
    """The standard deviation of a synthesized volume; None where there is none."""
    deviations = (each for each in synthetic_nodes(node.GetScene()) if is_deviation(each) and mean_of(each) is node)
    return next(deviations, None)


def refer_to_segmented(segmentation, volume) -> None:
    """Point the segmentation of a volume's tissues to that volume."""
    segmentation.SetNodeReferenceID(_SEGMENTED_ROLE, volume.GetID())


def segmented_volume_of(segmentation):
    """The volume node that a segmentation was made of; None for others, or where it is no longer in the scene."""
    return segmentation.GetNodeReference(_SEGMENTED_ROLE)


def tissues_of(volume) -> list:
    """The segmentations that were made of a volume, in the order in which they were added."""
    scene, kind = volume.GetScene(), "vtkMRMLSegmentationNode"
    nodes = [scene.GetNthNodeByClass(index, kind) for index in range(scene.GetNumberOfNodesByClass(kind))]
    return [node for node in nodes if segmented_volume_of(node) is volume]


def restore_provenance(node) -> bool:
    """Mark a volume node again that was loaded from a file of a synthetic volume.

    Slicer reads neither the header field nor the JSON file beside a volume, so a saved result comes back as if it were
    acquired. Of a file that is not synthetic only the first kilobytes are read.

    Returns:
        Whether the node is synthetic.

    Raises:
        InputError: the provenance in the file's header is damaged.
    """
    storage = node.GetStorageNode()
    path = Path(storage.GetFullNameFromFileName() or "") if storage else Path()
    if not is_synthetic(node) and path.is_file() and (_names_us(path) or _names_us(sidecar_of(path))):
        from ..volume_io import read_provenance

        provenance = read_provenance(path)
        if provenance is not None:
            mark(node, provenance)
    return is_synthetic(node)


def sidecar_of(path: Path) -> Path:
    """The JSON file beside a volume's file that ``volume_io`` reads provenance from."""
    return path.with_name(path.name.removesuffix(".gz")).with_suffix(".json")


def _names_us(path: Path) -> bool:
    """Whether a file begins with this program's name, as everything that ``volume_io.write_volume`` writes does."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return PREFIX.rstrip(".").encode() in file.read(_HEADER)
    except (OSError, EOFError, zlib.error):  # what can't be read is not ours; whoever needs it will say so
        return False
