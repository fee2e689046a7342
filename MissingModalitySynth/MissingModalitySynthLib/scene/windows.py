"""One rule for the windows of volumes of one contrast, so that grey levels can be compared.

Black and white lie at percentiles of the head, those of ``modality.DISPLAY``. Synthetic volumes have arbitrary units:
a synthetic volume that is shown beside the acquired one gets that one's window, brought into its own units by the gain
and offset that fit it best. Then equal grey means no difference. Where the user changes one window, the other follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..modality import DISPLAY, Display
from .observing import Observations

_ENOUGH_VOXELS = 64  # along an axis

Window = tuple[float, float]  # intensities that are black and white


def windows_of(synthetic: np.ndarray, acquired: np.ndarray | None, modality: str | None) -> list[Window]:
    """The windows of a synthetic volume and, where there is one, of the acquired volume of the same contrast.

    Args:
        synthetic, acquired: voxels [i, j, k] on one grid, in any units.
        modality: one of ``modality.MODALITIES``; None for an unknown one.
    """
    from ..intensity import head_mask
    from ..metrics import gain_and_offset

    percentiles = DISPLAY.get(modality, Display("")).window_percentiles
    step = tuple(slice(None, None, -(-n // _ENOUGH_VOXELS)) for n in synthetic.shape)

    def by_rule(array: np.ndarray, head: np.ndarray) -> Window:
        low, high = np.percentile(array[head], percentiles)
        return float(low), float(high) if high > low else float(low) + 1.0

    own = by_rule(synthetic[step], head_mask(synthetic[step]))
    if acquired is None:
        return [own]
    head = head_mask(acquired[step])
    low, high = by_rule(acquired[step], head)
    gain, offset = gain_and_offset(synthetic[step], np.clip(acquired[step], low, high), head)
    # Without a positive gain the two have nothing in common that a window could show.
    return [((low - offset) / gain, (high - offset) / gain) if gain > 0 else own, (low, high)]


class LinkedWindows:
    """Shows volumes in given windows for as long as they are compared, and then as they were shown before."""

    def __init__(self) -> None:
        self._windows: list[tuple[Any, Window]] = []  # by display node
        self._before: list[tuple[Any, bool, float, float]] = []
        self._observations = Observations()
        self._following = False

    def show(self, windows: Mapping[Any, Window]) -> None:
        """Apply windows to scalar volume nodes, and link them: each change of one is a change of all in proportion."""
        self.restore()
        for node, (low, high) in windows.items():
            node.CreateDefaultDisplayNodes()
            display = node.GetDisplayNode()
            self._before.append((display, bool(display.GetAutoWindowLevel()), display.GetWindow(), display.GetLevel()))
            self._windows.append((display, (low, high)))
            display.SetAutoWindowLevel(False)
            display.SetWindowLevelMinMax(low, high)
            self._observations.add(display, "ModifiedEvent", self._on_display)

    def restore(self) -> None:
        """Show every volume as before."""
        self._observations.clear()
        for display, automatic, window, level in self._before:
            changing = display.StartModify()
            display.SetWindowLevel(window, level)
            display.SetAutoWindowLevel(automatic)
            display.EndModify(changing)
        self._windows, self._before = [], []

    def _on_display(self, changed: Any, event: str) -> None:
        if self._following:
            return
        self._following = True
        low, high = next(window for display, window in self._windows if display is changed)
        ends = (np.array([changed.GetWindowLevelMin(), changed.GetWindowLevelMax()]) - low) / (high - low)
        for display, (first, last) in self._windows:
            if display is not changed:
                display.SetAutoWindowLevel(False)
                display.SetWindowLevelMinMax(*(first + ends * (last - first)))
        self._following = False
