"""Segmentation nodes made from masks."""

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from Testing.scene.conftest import OBLIQUE


def add_segmentation(
    application,
    name,
    masks,
    spacing=(1.0, 1.25, 1.5),
    origin=(-9.0, 11.0, -12.0),
    directions=OBLIQUE,
    color=(0.1, 0.9, 0.2),
):
    """A segmentation node of masks [i, j, k] by segment name; where they lie is as for ``add_scan``."""
    scene = application.scene
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    for segment, mask in masks.items():
        image = vtk.vtkImageData()
        image.SetDimensions(mask.shape)
        image.GetPointData().SetScalars(numpy_to_vtk(mask.astype(np.uint8).ravel(order="F"), deep=True))
        labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", segment)
        labels.SetAndObserveImageData(image)
        labels.SetSpacing(spacing)
        labels.SetOrigin(origin)
        labels.SetIJKToRASDirections(*np.ravel(directions))
        application.segmentations.ImportLabelmapToSegmentationNode(labels, node)
        scene.RemoveNode(labels)
        segments = node.GetSegmentation()
        made = segments.GetNthSegment(segments.GetNumberOfSegments() - 1)
        made.SetName(segment)
        made.SetColor(*color)
    node.CreateDefaultDisplayNodes()
    return node
