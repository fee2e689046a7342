"""Inputs, contrasts, options, Synthesize, progress and messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..modality import MODALITIES
from ..scene.choices import ROWS, task_of
from ..scene.panel import Option, View
from .context import Context, offer_all_but

_OPTIONS = ("package", "method", "device", "reference")


class RunSection:
    """Binds the upper part of the panel.

    Args:
        ui: its widgets by name.
        context: the state behind it.
        on_made: called with the nodes that a run made which was started here.
    """

    def __init__(self, ui: Any, context: Context, on_made: Callable[[list[Any]], None]) -> None:
        self._ui, self._context, self._on_made = ui, context, on_made
        self._waiting = False
        for name in _OPTIONS:
            combo = getattr(ui, f"{name}ComboBox")
            combo.connect("activated(int)", lambda index, name=name: self._choose(name, index))
        ui.applyButton.connect("clicked(bool)", self._apply)

    def show(self, view: View, before: View | None) -> None:
        """Bring the widgets up to date."""
        ui = self._ui
        given = len(self._context.choices.sources)
        for n in range(1, ROWS + 1):
            selector = getattr(ui, f"sourceSelector{n}")
            selector.visible = n <= view.input_rows
            offer_all_but(view.no_inputs, selector)
            getattr(ui, f"modalityComboBox{n}").visible = n <= given
        for name in MODALITIES:
            getattr(ui, f"target{name}CheckBox").visible = name in view.targets
        ui.offerLabel.text = view.offer
        ui.offerLabel.visible = bool(view.offer)
        for name in _OPTIONS:
            options, old = getattr(view, f"{name}s"), getattr(before, f"{name}s") if before else ()
            _fill(getattr(ui, f"{name}ComboBox"), options, getattr(view, name), refill=options != old)
        ui.stepsSpinBox.enabled = view.iterative
        ui.estimateLabel.text = view.estimate
        ui.estimateLabel.visible = bool(view.estimate)
        ui.applyButton.text = view.button
        ui.applyButton.toolTip = view.reason
        ui.applyButton.enabled = view.can_start or (view.running and not view.cancelling)
        ui.reasonLabel.text = view.reason
        ui.reasonLabel.visible = bool(view.reason)
        ui.progressBar.visible = ui.progressLabel.visible = view.running
        # A bar repaints itself at once, and with it the views: a moment later all changes are painted together.
        ui.progressBar.setUpdatesEnabled(False)
        ui.progressBar.value = view.percent
        ui.progressBar.setUpdatesEnabled(True)
        ui.progressLabel.text = "\n".join((view.stage, *view.lines))
        ui.messageLabel.text = f"\N{WARNING SIGN} {view.message}" if view.problem else view.message
        ui.messageLabel.visible = bool(view.message)
        if self._waiting and not view.running:
            self._waiting = False
            if self._context.logic.session.results:
                self._on_made(self._context.logic.session.results)

    def _choose(self, name: str, index: int) -> None:
        setattr(self._context.parameters, name, getattr(self._context.view, f"{name}s")[index].key)

    def _apply(self, _checked: bool = False) -> None:
        logic = self._context.logic
        if logic.session.running:
            logic.session.cancel()
            return
        with self._context.problems():
            logic.start(task_of(self._context.choices, self._context.packages))
            self._waiting = True


def _fill(combo: Any, options: Sequence[Option], key: str, *, refill: bool) -> None:
    if refill:
        combo.clear()
        for option in options:
            combo.addItem(option.text)
    index = next((n for n, option in enumerate(options) if option.key == key), -1)
    combo.currentIndex = index
    combo.toolTip = options[index].hint if index >= 0 and options[index].hint else combo.whatsThis
    combo.enabled = len(options) > 0
