"""Results and segmentations as the worker gives them, for the tests of nodes."""

from types import SimpleNamespace

import numpy as np

from MissingModalitySynthLib.scene.segmentations import add_segmentations
from MissingModalitySynthLib.scene.volumes import geometry_of, volume_of
from MissingModalitySynthLib.volume import Volume

PROVENANCE = {
    "synthetic": True,
    "notice": "SYNTHETIC, not for diagnosis",
    "sources": {"T1": "Zoë's T1; 100 % 'raw' | <x>"},
    "method": "regression",
    "steps": 1,
    "seed": 7,
    "package": "micro",
    "package_version": "1.0",
    "package_sha256": "0123456789abcdef",
    "software": "MissingModalitySynth 0.1.0",
    "created": "2026-11-21T03:00:00+00:00",
}


def result(reference, target, seed=0, std=False):
    """A result as the worker gives it: voxels that are 0 outside the head, on the reference's grid."""
    scan = volume_of(reference)
    values = np.random.default_rng(seed).uniform(1, 900, scan.array.shape).astype(np.float32)
    array = np.where(scan.array > 0, values, 0).astype(np.float32)
    deviation = Volume(array / 10, scan.geometry) if std else None
    return SimpleNamespace(
        volume=Volume(array, scan.geometry, target), std=deviation, provenance=PROVENANCE | {"target": target}
    )


def ids(scene):
    return [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]


def segmented(scene, node):
    """The segmentation of a volume's tissues."""
    labels = Volume(np.ones(geometry_of(node).size, np.uint8), geometry_of(node))
    made = {"volume": SimpleNamespace(volume=labels, provenance={})}
    return add_segmentations(scene, {"volume": node}, made, replace=False)[0]
