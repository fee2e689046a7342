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

_THICKNESS = 2  # pixels


class SegmentationOutlines:
    """The outlines of some segmentations on some columns of views.

    Args:
        scene: the MRML scene.
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self._displays: list[tuple[str, Any, Any]] = []  # column, own display node (or None), outline
        self._made: dict[tuple[Any, str], Any] = {}  # outlines by segmentation and column, to be used again
        self._kept_out: list[tuple[Any, tuple[str, ...]]] = []  # own display nodes that were shown in all views
        self._settings: dict[str, tuple[bool, float]] = {}
        self._observations = Observations()

    def show(
        self,
        segmentations: Iterable[Any],
        columns: Mapping[str, Sequence[str]],
        columns_of: Callable[[Any], Collection[str]] | None = None,
    ) -> None:
        """Outline segmentations on all columns, or on some.

        Args:
            segmentations: vtkMRMLSegmentationNodes of the scene, under any transform; others are not seen in the views.
            columns: the IDs of the views of each column, by the column's name.
            columns_of: segmentation -> names of the columns that it is outlined on; all where left out.
        """
        self.hide()
        compared = {view for views in columns.values() for view in views}
        self._keep_out(compared)
        for segmentation in segmentations:
            own = segmentation.GetDisplayNode()
            chosen = columns if columns_of is None else columns_of(segmentation)
            for column, views in columns.items():
                if column in chosen:
                    self._displays.append((column, own, self._add(segmentation, own, column, views)))
            if own:
                self._observations.add(own, "ModifiedEvent", self._on_own_display)

    def hide(self) -> None:
        """Remove the outlines; the user's own display is in all views again."""
        self._observations.clear()
        for _, _, display in self._displays:
            segmentation = display.GetDisplayableNode()
            if segmentation:
                display.SetVisibility(False)
                ids = [segmentation.GetNthDisplayNodeID(n) for n in range(segmentation.GetNumberOfDisplayNodes())]
                segmentation.RemoveNthDisplayNodeID(ids.index(display.GetID()))
            if display.GetScene():
                self._scene.RemoveNode(display)
        for own, views in self._kept_out:
            if tuple(own.GetViewNodeIDs()) == views:  # else the user has chosen views meanwhile
                own.RemoveAllViewNodeIDs()
        self._displays, self._kept_out = [], []
        self._made = {key: display for key, display in self._made.items() if key[0].GetScene()}

    def set_column(self, column: str, visible: bool, opacity: float = 1.0) -> None:
        """Show or hide the outlines of one column, with an opacity from 0 to 1; also for what is outlined later."""
        self._settings[column] = (visible, min(max(opacity, 0.0), 1.0))
        for shown_on, _, display in self._displays:
            if shown_on == column:
                self._apply(display, column)

    def _apply(self, display: Any, column: str) -> None:
        visible, opacity = self._settings.get(column, (True, 1.0))
        display.SetVisibility(visible)
        display.SetOpacity2DOutline(opacity)

    def _add(self, segmentation: Any, own: Any, column: str, views: Sequence[str]) -> Any:
        import slicer

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
        display.SetSliceIntersectionThickness(_THICKNESS)
        display.SetViewNodeIDs(tuple(views))
        self._apply(display, column)
        self._scene.AddNode(display)
        segmentation.AddAndObserveDisplayNodeID(display.GetID())
        self._follow(own, display)
        return display

    def _keep_out(self, compared: set[str]) -> None:
        others = tuple(view.GetID() for view in self._nodes("vtkMRMLAbstractViewNode") if view.GetID() not in compared)
        for own in self._nodes("vtkMRMLSegmentationDisplayNode"):
            if not own.GetNumberOfViewNodeIDs():  # an empty list stands for all views
                own.SetViewNodeIDs(others)
                self._kept_out.append((own, others))

    def _nodes(self, kind: str) -> list[Any]:
        return [self._scene.GetNthNodeByClass(n, kind) for n in range(self._scene.GetNumberOfNodesByClass(kind))]

    def _on_own_display(self, own: Any, event: str) -> None:
        for _, origin, display in self._displays:
            if origin is own:
                self._follow(own, display)

    @staticmethod
    def _follow(own: Any, display: Any) -> None:
        """Outline the segments that the user's own display shows."""
        segmentation = display.GetDisplayableNode()
        if own is None or segmentation is None:
            return
        for segment in segmentation.GetSegmentation().GetSegmentIDs():
            display.SetSegmentVisibility(segment, own.GetSegmentVisibility(segment))
