"""What the comparison and the marks need of slice views, and how Slicer's main window gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

_LEAST_WIDTH = 150  # pixels; the bar alone would ask for more than 300


class Views(Protocol):
    """The slice views of an application, by the name of their slice node."""

    def slice_logic(self, name: str) -> Any | None:
        """The vtkMRMLSliceLogic of a view; None where there is no such view."""

    def renderer(self, name: str) -> Any | None:
        """The vtkRenderer that draws on a view; None where there is no such view."""

    def render(self, name: str) -> None:
        """Draw a view again soon."""

    def allow_narrow(self, name: str) -> None:
        """Let a view be narrower than the bar above it, so that several stand side by side on any screen."""

    def when_laid_out(self, callback: Callable[[], None]) -> None:
        """Call back once the views of a new layout have their final size."""


class SlicerViews:
    """The slice views of Slicer's layout manager.

    Nothing of a view is kept: a view may be deleted at any time, and a kept renderer would outlive its window.
    """

    def slice_logic(self, name: str) -> Any | None:
        widget = self._widget(name)
        return widget.sliceLogic() if widget else None

    def renderer(self, name: str) -> Any | None:
        widget = self._widget(name)
        return widget.sliceView().renderWindow().GetRenderers().GetFirstRenderer() if widget else None

    def render(self, name: str) -> None:
        widget = self._widget(name)
        if widget:
            widget.sliceView().scheduleRender()

    def allow_narrow(self, name: str) -> None:
        widget = self._widget(name)
        if widget:
            widget.setMinimumWidth(_LEAST_WIDTH)

    def when_laid_out(self, callback: Callable[[], None]) -> None:
        import qt

        for milliseconds in (0, 200):  # most views have it at once, some of a layout of many only a little later
            qt.QTimer.singleShot(milliseconds, callback)

    @staticmethod
    def _widget(name: str) -> Any | None:
        import slicer

        manager = slicer.app.layoutManager()  # None where Slicer runs without a main window
        return manager.sliceWidget(name) if manager else None
