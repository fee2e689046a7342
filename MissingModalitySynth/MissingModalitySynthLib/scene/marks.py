"""The word SYNTHETIC in every slice view that shows what was not measured.

Slicer writes into the corners of its views itself (its data probe does, whenever a slice moves). So the mark is a text
of its own, which nothing overwrites, in the upper right corner, which Slicer leaves free unless the user asks for more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import NOTICE
from ..slice_images import MARK_COLOR
from .compare_layout import PREFIX
from .observing import Observations
from .provenance import is_synthetic
from .slicer_views import Views

_FONT_SIZE = 13
_MARGIN = 6  # pixels
_RIM = 2.0  # mm by which a volume may stand out from under another one that covers it


class SyntheticMarks:
    """Keeps the mark right in the slice views of a scene, whatever volumes the user puts there.

    Args:
        scene: the MRML scene.
        views: how to draw on views.
        wanted: whether a view, by name, is taken care of; by default all but those of the comparison, which brings
            its own marks.
        caption: what else to write into a view, by name; above the mark.
        derived: IDs of volumes computed from synthetic voxels, beside those that say so themselves.
    """

    def __init__(
        self,
        scene: Any,
        views: Views,
        wanted: Callable[[str], bool] = lambda name: not name.startswith(PREFIX),
        caption: Callable[[str], str] = lambda name: "",
        derived: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self._scene, self._views = scene, views
        self._wanted, self._caption, self._derived = wanted, caption, derived
        self._actors: dict[str, Any] = {}
        self._observed: set[str] = set()
        self._observations = Observations()

    def start(self) -> None:
        """Write the marks, and keep them right from now on."""
        scene = self._scene
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndBatchProcessEvent):
            self._observations.add(scene, event, self.refresh)
        self.refresh()

    def stop(self) -> None:
        """Remove every mark."""
        self._observations.clear()
        self._observed.clear()
        for name, actor in self._actors.items():
            renderer = self._views.renderer(name)
            if renderer:
                renderer.RemoveViewProp(actor)
                self._views.render(name)
        self._actors.clear()

    @property
    def texts(self) -> Mapping[str, str]:
        """What stands in each view, by name; views without a text are left out."""
        return {name: actor.GetInput() for name, actor in self._actors.items() if actor.GetInput()}

    def refresh(self, *_: object) -> None:
        """Look at all views, also at those that came since the last time."""
        if self._scene.IsBatchProcessing():
            return
        known = {}
        for number in range(self._scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
            composite = self._scene.GetNthNodeByClass(number, "vtkMRMLSliceCompositeNode")
            if composite.GetLayoutName() and self._wanted(composite.GetLayoutName()):
                known[composite.GetID()] = composite
        for identifier, composite in known.items():
            if identifier not in self._observed:
                self._observations.add(composite, "ModifiedEvent", self._on_composite)
            self._write(composite)
        self._observed = set(known)

    def _on_composite(self, composite: Any, event: str) -> None:
        self._write(composite)

    def _write(self, composite: Any) -> None:
        name = composite.GetLayoutName()
        renderer = self._views.renderer(name)
        if not renderer:
            return
        derived = self._derived()
        marked = any(node.GetID() in derived or is_synthetic(node) for node in visible_volumes(self._scene, composite))
        text = "\n".join(filter(None, (self._caption(name), NOTICE if marked else "")))
        actor = self._actors.get(name)
        if actor is None:
            if not text:
                return
            actor = self._actors[name] = _text_actor()
        color = [level / 255 for level in MARK_COLOR] if marked else (1.0, 1.0, 1.0)
        if text == actor.GetInput() and renderer.HasViewProp(actor):
            return
        actor.SetInput(text)
        actor.GetTextProperty().SetColor(color)
        actor.SetVisibility(bool(text))
        if not renderer.HasViewProp(actor):
            renderer.AddViewProp(actor)
        self._views.render(name)


def visible_volumes(scene: Any, composite: Any) -> list[Any]:
    """The volumes of which something can be seen in a view: an opaque foreground hides a background of its size."""
    background = scene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
    foreground = scene.GetNodeByID(composite.GetForegroundVolumeID() or "")
    opacity = composite.GetForegroundOpacity()
    if foreground is None or opacity <= 0:
        return [background] if background else []
    if background is None or (opacity >= 1 and _covers(foreground, background)):
        return [foreground]
    return [background, foreground]


def _covers(above: Any, below: Any) -> bool:
    outer, inner = [0.0] * 6, [0.0] * 6
    above.GetRASBounds(outer)
    below.GetRASBounds(inner)
    return all(
        outer[2 * axis] <= inner[2 * axis] + _RIM and outer[2 * axis + 1] >= inner[2 * axis + 1] - _RIM
        for axis in range(3)
    )


def _text_actor() -> Any:
    import vtk

    actor = vtk.vtkTextActor()
    appearance = actor.GetTextProperty()
    appearance.SetFontFamilyToArial()
    appearance.SetFontSize(_FONT_SIZE)
    appearance.BoldOn()
    appearance.SetJustificationToRight()
    appearance.SetVerticalJustificationToTop()
    appearance.SetLineSpacing(1.2)
    appearance.SetShadow(True)  # legible above bright tissue
    corner = vtk.vtkCoordinate()
    corner.SetCoordinateSystemToNormalizedViewport()
    corner.SetValue(1.0, 1.0)
    position = actor.GetPositionCoordinate()
    position.SetCoordinateSystemToViewport()
    position.SetReferenceCoordinate(corner)
    position.SetValue(-_MARGIN, -_MARGIN)
    actor.PickableOff()
    return actor
