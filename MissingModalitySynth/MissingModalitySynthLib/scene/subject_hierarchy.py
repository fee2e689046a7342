"""The place of synthetic volumes in the subject hierarchy, which is also what a DICOM export takes its tags from."""

from __future__ import annotations

from .. import __version__

_DICOM = "DICOM."
_LONGEST_DESCRIPTION = 64  # DICOM's LO


def place_beside(node, reference, plugin: str = "Volumes") -> None:
    """Put a node under the same parent (study) as another, and describe it for a DICOM export.

    ``plugin`` is the name of the subject hierarchy's plugin for such nodes.

    Slicer has made an item for the node already, slicer-core has not; ``CreateItem`` serves both.
    """
    hierarchy = _hierarchy(node.GetScene())
    beside = hierarchy.GetItemByDataNode(reference)
    parent = hierarchy.GetItemParent(beside) if beside else hierarchy.GetSceneItemID()
    item = hierarchy.CreateItem(parent, node, plugin)
    description = f"{node.GetName()}, not for diagnosis"[:_LONGEST_DESCRIPTION]
    tags = {
        "SeriesDescription": description,
        "Modality": "MR",  # the exporter's default is CT
        "Manufacturer": "MissingModalitySynth",
        "Model": __version__,
    }
    for keyword, value in tags.items():
        hierarchy.SetItemAttribute(item, _DICOM + keyword, value)


def forget(node) -> None:
    """Remove the item of a node that is about to be removed; Slicer would do it, slicer-core does not."""
    hierarchy = _hierarchy(node.GetScene())
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.RemoveItem(item, False)


def _hierarchy(scene):
    import slicer

    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
