"""Outlines of segmentations on the columns of the comparison, each column with a visibility and opacity of its own.

Every segmentation gets one more display node a column, shown in that column's views only. So Slicer itself draws the
outlines, and follows transforms and edits. The user's own display nodes of all segmentations, whose filled regions
would hide what is compared, are kept out of these views by the list of views that every display node has. ``hide``
restores that list, and nothing else of theirs is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from .compare_layout import PREFIX
from .observing import Observations
from .provenance import segmented_volume_of

_THICKNESS, _TISSUE_THICKNESS = 2, 1  # pixels; the tissues of a whole head leave little room between their outlines


class SegmentationOutlines:
    """The outlines of some segmentations on some columns of views.

    Args:
        scene: the MRML scene.
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self._displays: dict[tuple[Any, str], Any] = {}  # outlines that are shown, by segmentation and column
        self._made: dict[tuple[Any, str], Any] = {}  # all outlines, to be used again
        self._kept_out: dict[Any, tuple[str, ...]] = {}  # own display nodes that were shown in all views
        self._settings: dict[str, tuple[bool, float]] = {}
        self._observations = Observations()

    def show(
        self,
        segmentations: Iterable[Any],
        columns: Mapping[str, Sequence[str]],
        columns_of: Callable[[Any], Collection[str]] | None = None,
    ) -> None:
        """Outline segmentations on all columns, or on some, in place of what is outlined already.

        What stays is not touched: Slicer takes long for every change of a segmentation's display.

        Args:
            segmentations: vtkMRMLSegmentationNodes of the scene, under any transform; others are not seen in the views.
            columns: the IDs of the views of each column, by the column's name.
            columns_of: segmentation -> names of the columns that it is outlined on; all where left out.
        """
        self._observations.clear()
        self._keep_out({view for views in columns.values() for view in views})
        wanted = {}
        for segmentation in segmentations:
            chosen = columns if columns_of is None else columns_of(segmentation)
            wanted |= {(segmentation, column): tuple(views) for column, views in columns.items() if column in chosen}
        for key in self._displays.keys() - wanted.keys():
            self._take_off(self._displays.pop(key))
        for key, views in wanted.items():
            display = self._displays.get(key)
            if display is None:
                self._displays[key] = self._add(*key, views)
            elif display.GetViewNodeIDs() != views:
                display.SetViewNodeIDs(views)
        for own in {self._own(segmentation) for segmentation, _column in wanted} - {None}:
            self._observations.add(own, "ModifiedEvent", self._on_own_display)

    def hide(self) -> None:
        """Remove the outlines; the user's own display is in all views again."""
        self._observations.clear()
        for display in self._displays.values():
            self._take_off(display)
        for own, views in self._kept_out.items():
            if own.GetViewNodeIDs() == views:  # else the user has chosen views meanwhile
                own.RemoveAllViewNodeIDs()
        self._displays, self._kept_out = {}, {}
        self._made = {key: display for key, display in self._made.items() if key[0].GetScene()}

    def set_column(self, column: str, visible: bool, opacity: float = 1.0) -> None:
        """Show or hide the outlines of one column, with an opacity from 0 to 1; also for what is outlined later."""
        self._settings[column] = (visible, min(max(opacity, 0.0), 1.0))
        for (_segmentation, shown_on), display in self._displays.items():
            if shown_on == column:
                self._apply(display, column)

    def _apply(self, display: Any, column: str) -> None:
        visible, opacity = self._settings.get(column, (True, 1.0))
        display.SetVisibility(visible)
        display.SetOpacity2DOutline(opacity)

    def _take_off(self, display: Any) -> None:
        segmentation = display.GetDisplayableNode()
        if segmentation:
            display.SetVisibility(False)
            ids = [segmentation.GetNthDisplayNodeID(n) for n in range(segmentation.GetNumberOfDisplayNodes())]
            segmentation.RemoveNthDisplayNodeID(ids.index(display.GetID()))
        if display.GetScene():
            self._scene.RemoveNode(display)

    def _own(self, segmentation: Any) -> Any | None:
        """The user's own display node of a segmentation."""
        nodes = [segmentation.GetNthDisplayNode(n) for n in range(segmentation.GetNumberOfDisplayNodes())]
        return next((node for node in nodes if node not in self._displays.values()), None)

    def _add(self, segmentation: Any, column: str, views: Sequence[str]) -> Any:
        import slicer

        own = self._own(segmentation)
        display = self._made.get((segmentation, column))
        if display is None:
            display = self._made[segmentation, column] = slicer.vtkMRMLSegmentationDisplayNode()
            # The displayable managers keep the address of every display node until the segmentation is removed, and
            # use it even when the display node was removed before: it has to live as long as the segmentation.
            segmentation.AddObserver("DeleteEvent", lambda *_, alive=display: None)
        if own:
            display.CopyContent(own)
        # A singleton's ID contains its tag. So, in a scene that is saved meanwhile, the segmentation's reference to
        # this node, which is not saved, never meets another node's ID.
        display.SetSingletonTag(f"{PREFIX}Outline{column.capitalize()}{segmentation.GetID()}")
        display.SetName(f"{segmentation.GetName()} on {column}")
        display.SaveWithSceneOff()
        display.SetHideFromEditors(True)
        display.SetVisibility2D(True)
        display.SetVisibility3D(False)
        display.SetVisibility2DFill(False)
        display.SetVisibility2DOutline(True)
        of_tissues = segmented_volume_of(segmentation) is not None
        display.SetSliceIntersectionThickness(_TISSUE_THICKNESS if of_tissues else _THICKNESS)
        display.SetViewNodeIDs(tuple(views))
        self._apply(display, column)
        self._scene.AddNode(display)
        segmentation.AddAndObserveDisplayNodeID(display.GetID())
        self._follow(own, display)
        return display

    def _keep_out(self, compared: set[str]) -> None:
        views = [view for view in self._nodes("vtkMRMLAbstractViewNode") if view.GetID() not in compared]
        # Also out of the comparison's views that are not shown now: they may be, by the next call.
        others = tuple(view.GetID() for view in views if not (view.GetSingletonTag() or "").startswith(PREFIX))
        for own in self._nodes("vtkMRMLSegmentationDisplayNode"):
            given = own.GetViewNodeIDs()  # an empty list stands for all views
            if given != others and given == self._kept_out.get(own, ()):
                own.SetViewNodeIDs(others)
                self._kept_out[own] = others

    def _nodes(self, kind: str) -> list[Any]:
        return [self._scene.GetNthNodeByClass(n, kind) for n in range(self._scene.GetNumberOfNodesByClass(kind))]

    def _on_own_display(self, own: Any, event: str) -> None:
        for (segmentation, _column), display in self._displays.items():
            if self._own(segmentation) is own:
                self._follow(own, display)

    @staticmethod
    def _follow(own: Any, display: Any) -> None:
        """Outline the segments that the user's own display shows."""
        segmentation = display.GetDisplayableNode()
        if own is None or segmentation is None:
            return
        for segment in segmentation.GetSegmentation().GetSegmentIDs():
            display.SetSegmentVisibility(segment, own.GetSegmentVisibility(segment))
