"""Provenance beside the files of synthetic volumes that Slicer itself saves.

Slicer writes no attribute of a volume node into a NRRD or NIfTI file. So whenever it has written one of a synthetic
volume, a JSON file of the same name is put beside it, as ``volume_io.write_volume`` does.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vtk

from .observing import Observations
from .provenance import PREFIX, provenance_of, sidecar_of, synthetic_nodes

_KEY = PREFIX.rstrip(".")


class SavedProvenance:
    """Watches the storage nodes of a scene.

    Args:
        scene: the MRML scene.
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self._observations = Observations()
        self._modified: dict[str, int] = {}  # by storage node ID

    def start(self) -> None:
        """Watch what is saved from now on."""
        self._observations.add(self._scene, self._scene.NodeAddedEvent, self._on_node_added)
        for index in range(self._scene.GetNumberOfNodesByClass("vtkMRMLStorageNode")):
            self._watch(self._scene.GetNthNodeByClass(index, "vtkMRMLStorageNode"))

    def stop(self) -> None:
        """Watch nothing any more."""
        self._observations.clear()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_added(self, caller: Any, event: str, node: Any) -> None:
        if node.IsA("vtkMRMLStorageNode"):
            self._watch(node)

    def _watch(self, storage: Any) -> None:
        self._modified[storage.GetID()] = storage.GetMTime()
        self._observations.add(storage, "ModifiedEvent", self._on_storage)

    def _on_storage(self, storage: Any, event: str) -> None:
        # A finished writing invokes the event without being a modification; a new file name, for instance, is one.
        modified = storage.GetMTime()
        written = storage.GetWriteState() == storage.TransferDone and self._modified[storage.GetID()] == modified
        self._modified[storage.GetID()] = modified
        if written:
            for node in synthetic_nodes(self._scene):
                if node.GetStorageNode() is storage:
                    write_beside(Path(storage.GetFullNameFromFileName()), provenance_of(node))


def write_beside(path: Path, provenance: Mapping[str, Any]) -> None:
    """Put provenance into the JSON file beside a volume's file; what else is in it is kept.

    Raises:
        OSError: the folder is not writable, or the disk full.
    """
    sidecar = sidecar_of(path)
    record = {}
    if sidecar.is_file():
        try:
            record = json.loads(sidecar.read_text(encoding="utf-8"))
        except ValueError:
            return  # someone else's, and no JSON: better left alone
        if not isinstance(record, dict):
            return
    new = sidecar.with_name(f".{uuid.uuid4().hex[:12]}.json")
    try:
        new.write_text(json.dumps(record | {_KEY: provenance}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(new, sidecar)
    finally:
        new.unlink(missing_ok=True)
