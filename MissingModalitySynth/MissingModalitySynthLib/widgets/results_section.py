"""The list of synthetic volumes: show, compare, remove."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer

from ..scene.panel import View
from ..scene.results import remove_results
from .context import Context


class ResultsSection:
    """Binds the list.

    Args:
        ui: the panel's widgets by name.
        context: the state behind it.
        compare: called with the volume that is to be compared.
    """

    def __init__(self, ui: Any, context: Context, compare: Callable[[Any], None]) -> None:
        self._ui, self._context, self._compare = ui, context, compare
        ui.resultsList.connect("currentRowChanged(int)", self._enable)
        ui.showButton.connect("clicked(bool)", self._show)
        ui.compareButton.connect("clicked(bool)", lambda checked: self._compare(self._chosen()))
        ui.removeButton.connect("clicked(bool)", self._remove)

    def show(self, view: View, before: View | None) -> None:
        """Bring the list up to date; a volume that is new becomes the current one."""
        if before is None or view.results != before.results:
            listed = self._ui.resultsList
            row, old = listed.currentRow, before.results if before else ()
            current = old[row].key if 0 <= row < len(old) else None
            listed.clear()
            keys = [option.key for option in view.results]
            for number, option in enumerate(view.results):
                listed.addItem(option.text)
                listed.item(number).setToolTip(option.hint)
            new = [key for key in keys if key not in {option.key for option in old}]
            wanted = new[0] if new else current
            listed.currentRow = keys.index(wanted) if wanted in keys else len(keys) - 1
        self._ui.resultsCollapsibleButton.visible = self._ui.compareCollapsibleButton.visible = bool(view.results)
        self._enable()

    def _chosen(self) -> Any:
        """The volume of the current entry, None if there is none or it has just been removed."""
        view, row = self._context.view, self._ui.resultsList.currentRow
        if view is None or not 0 <= row < len(view.results):
            return None
        return slicer.mrmlScene.GetNodeByID(view.results[row].key)

    def _enable(self, _row: int = 0) -> None:
        any_chosen = self._ui.resultsList.currentRow >= 0
        for button in (self._ui.showButton, self._ui.compareButton, self._ui.removeButton):
            button.enabled = any_chosen

    def _show(self, _checked: bool = False) -> None:
        slicer.util.setSliceViewerLayers(background=self._chosen(), fit=True)

    def _remove(self, _checked: bool = False) -> None:
        remove_results(slicer.mrmlScene, [self._chosen()])
