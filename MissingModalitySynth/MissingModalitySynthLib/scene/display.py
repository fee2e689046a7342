"""How synthetic volumes are shown: grey values in the window of their contrast, standard deviations as a heat map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..modality import DISPLAY

_GREY = "vtkMRMLColorTableNodeGrey"
_HEAT = "vtkMRMLColorTableNodeIron"
_DEVIATION_PERCENTILES = (0.0, 99.5)
_ENOUGH_VOXELS = 64  # along an axis; more change no percentile visibly, but take their time


def show_contrast(node, array: np.ndarray, modality: str) -> None:
    """Show a synthesized volume in grey, in the window of its contrast.

    Args:
        node: a volume node without a display node, in a scene.
        array: its voxels [i, j, k], 0 outside the head.
        modality: one of ``modality.MODALITIES``.
    """
    _show(node, _window(array, DISPLAY[modality].window_percentiles), _GREY)


def show_deviation(node, array: np.ndarray) -> None:
    """Show a standard deviation as a heat map from 0; arguments as ``show_contrast``."""
    _, high = _window(array, _DEVIATION_PERCENTILES)
    _show(node, (0.0, high), _HEAT)


def _window(array: np.ndarray, percentiles: Sequence[float]) -> tuple[float, float]:
    """The values at two percentiles (0 to 100) of the voxels of the head, which are not 0."""
    some = array[tuple(slice(None, None, -(-n // _ENOUGH_VOXELS)) for n in array.shape)]
    inside = some[some > 0]
    low, high = np.percentile(inside, percentiles) if inside.size else (0.0, 0.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def _show(node, window: tuple[float, float], color_node_id: str) -> None:
    display = node.GetScene().CreateNodeByClass("vtkMRMLScalarVolumeDisplayNode")
    display.UnRegister(None)  # CreateNodeByClass hands over the reference that it holds
    display.SetUndoEnabled(node.GetUndoEnabled())
    low, high = window
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(low, high)
    display.SetAndObserveColorNodeID(color_node_id)
    display.SetInterpolate(True)
    node.GetScene().AddNode(display)
    node.SetAndObserveDisplayNodeID(display.GetID())
