"""Source, synthetic, acquired and their difference side by side, linked; and everything as before when it is over.

Only ``CompareView.show`` changes what the user looks at. It takes a layout of its own with views of its own, so that no
other view is touched. What it adds to the scene is hidden, not saved, and removed by ``hide``; the nodes of the views
alone stay, empty and not saved, because Slicer keeps the views of every layout that was ever shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import vtk

from ..errors import InputError
from .compare_captions import difference_caption, title_of
from .compare_layout import COLUMNS, check_rows, layout_id, layout_xml, view_name
from .difference import Difference, absolute_difference, add_difference, on_one_grid
from .marks import SyntheticMarks
from .observing import Observations
from .overlays import SegmentationOutlines
from .provenance import segmented_volume_of
from .slicer_views import SlicerViews, Views
from .translation import _
from .view_fitting import fit, needs_fit
from .volumes import check_scalar, guess_of
from .windows import LinkedWindows, windows_of


@dataclass(frozen=True)
class _Before:
    """What the comparison takes over, as it was."""

    arrangement: int
    maximized: tuple[Any, ...]
    layout_saved: bool
    crosshair: Any | None
    crosshair_mode: int


class CompareView:
    """The comparison of one synthetic volume with what it was made from.

    Args:
        scene: the MRML scene.
        layout_node: its vtkMRMLLayoutNode.
        views: the application's slice views; by default those of Slicer's main window.
        on_hidden: called when the comparison is over, by ``hide`` or by itself: because the user chose another layout,
            closed the scene or deleted a volume.
    """

    def __init__(
        self,
        scene: Any,
        layout_node: Any,
        views: Views | None = None,
        on_hidden: Callable[[], None] = lambda: None,
    ) -> None:
        self._scene, self._layout_node = scene, layout_node
        self._views = SlicerViews() if views is None else views
        self._on_hidden = on_hidden
        self._observations = Observations()
        self._outlines = SegmentationOutlines(scene)
        self._windows = LinkedWindows()
        self._marks = SyntheticMarks(scene, self._views, self._is_shown, self._caption, self._derived)
        self._before: _Before | None = None
        self._volumes: dict[str, Any] = {}
        self._difference: Difference | None = None
        self._rows: tuple[str, ...] = ()
        self._segmentations: list[Any] = []

    @property
    def visible(self) -> bool:
        """Whether the comparison is shown."""
        return self._before is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns from left to right, some of ``compare_layout.COLUMNS``; none while nothing is shown."""
        return tuple(column for column in COLUMNS if column in self._volumes)

    @property
    def fade_volume(self) -> Any | None:
        """What fades in over the synthetic volume: the acquired one of the same contrast if named, else the source."""
        return self._volumes.get("acquired", self._volumes.get("source"))

    @property
    def fade(self) -> float:
        """From 0, where the synthetic column shows the synthetic volume, to 1, where it shows ``fade_volume``."""
        composites = self._composites(self.view_names("synthetic"))
        return next((composite.GetForegroundOpacity() for composite in composites), 0.0)

    @property
    def difference(self) -> Any | None:
        """The volume node of the difference, in percent (see ``difference``)."""
        return self._volumes.get("difference")

    def view_names(self, column: str) -> list[str]:
        """The names of the slice views of a column, from top to bottom."""
        return [view_name(column, row) for row in self._rows] if column in self._volumes else []

    def show(
        self,
        source: Any,
        synthetic: Any,
        *,
        acquired: Any | None = None,
        rows: Sequence[str] = ("Axial",),
        segmentations: Iterable[Any] = (),
        rotate: bool = True,
        anew: bool = True,
    ) -> None:
        """Show a comparison, in place of one that is shown already.

        The views are turned and fitted to the synthetic volume's grid once: for as long as volumes on that grid are
        compared in these rows, also by later calls, position and zoom stay as the user left them, and in other rows
        the slice stays.

        Args:
            source, synthetic, acquired: scalar volume nodes of the scene; ``acquired`` has the contrast of
                ``synthetic``.
            rows: some of ``compare_layout.PLANES``.
            segmentations: segmentation nodes of the scene that are outlined on all columns; that of the tissues of a
                volume (see ``segmentations``) on this volume's column, and on the difference, if the volume is shown.
            rotate: turn the views to the axes of the volume; else they are axial, sagittal and coronal in the world.
            anew: whether voxels may have changed; if not, difference and windows of the same volumes stay.

        Raises:
            InputError: a row or volume cannot be used, or there are no views.
            GeometryError: the volumes cannot be brought onto one grid; see ``difference.on_one_grid``.
            After an error the views are as they were before.
        """
        rows = check_rows(rows)
        check_scalar(source)
        given = {"source": source, "synthetic": synthetic, "acquired": acquired}
        volumes = {column: node for column, node in given.items() if node is not None}
        other = source if acquired is None else acquired
        shown = self._names()
        changed = anew or self._volumes != {**volumes, "difference": self.difference}
        if changed:
            arrays = on_one_grid(synthetic, other)
            voxels = absolute_difference(*arrays)
            windows = windows_of(arrays[0], None if acquired is None else arrays[1], guess_of(synthetic))
        self._pause()
        if changed:
            self._forget_voxels()
            name = _("Absolute difference of {synthetic} and {other}")
            self._difference = add_difference(
                self._scene, synthetic, voxels, name.format(synthetic=synthetic.GetName(), other=other.GetName())
            )
            self._windows.show(dict(zip(filter(None, (synthetic, acquired)), windows, strict=True)))
        if self._before is None:
            self._before = self._remember()
        difference = self._difference
        self._volumes = {**volumes, "difference": difference.volume}
        self._rows, self._segmentations = rows, list(segmentations)
        # Outlines are the slowest to follow a view: they leave it before it changes, and come when it has changed.
        if staying := [name for name in shown if self._is_shown(name)]:
            self._show_outlines(staying)
        self._empty(name for name in shown if not self._is_shown(name))
        self._take_layout()
        self._fill_views()
        if needs_fit(self._slice_nodes(), synthetic, rotate):
            fitted = self._fit(rotate)
            # The views get their final size only when the main window is drawn.
            self._views.when_laid_out(
                lambda: self._fit(rotate, unless=fitted) if self._difference is difference else None
            )
        self._show_outlines(self._names())
        self._marks.start()
        self._observe()

    def hide(self) -> None:
        """Show the layout that was there before, and remove everything that ``show`` added; nothing if not shown."""
        if self._before is not None:
            self._end(restore_layout=True)

    def set_fade(self, fraction: float) -> None:
        """Fade ``fade_volume`` in over the synthetic volume, from 0 (not at all) to 1 (alone), in its column."""
        for composite in self._composites(self.view_names("synthetic")):
            composite.SetForegroundOpacity(min(max(fraction, 0.0), 1.0))

    def flicker(self) -> None:
        """Show the other one of the two volumes in the synthetic column."""
        self.set_fade(0.0 if self.fade > 0.5 else 1.0)

    def set_outlines(self, column: str, visible: bool, opacity: float = 1.0) -> None:
        """Show or hide the outlines on one column, with an opacity from 0 to 1; kept for later comparisons."""
        self._outlines.set_column(column, visible, opacity)

    # What is shown where

    def _names(self) -> list[str]:
        return [name for column in self.columns for name in self.view_names(column)]

    def _is_shown(self, name: str) -> bool:
        return name in self._names()

    def _slice_node(self, name: str) -> Any:
        return self._scene.GetSingletonNode(name, "vtkMRMLSliceNode")

    def _slice_nodes(self) -> dict[str, dict[str, Any]]:
        """By column and row."""
        return {
            column: {row: self._slice_node(view_name(column, row)) for row in self._rows} for column in self.columns
        }

    def _composites(self, names: Iterable[str]) -> Iterator[Any]:
        for name in names:
            composite = self._scene.GetSingletonNode(name, "vtkMRMLSliceCompositeNode")
            if composite is not None:
                yield composite

    def _derived(self) -> tuple[str, ...]:
        return tuple(self._volumes[column].GetID() or "" for column in ("synthetic", "difference") if self._volumes)

    def _caption(self, name: str) -> str:
        column = next(column for column in self.columns if name in self.view_names(column))
        if column == "difference":
            return difference_caption("acquired" in self._volumes, self._difference.top)
        synthetic = self._volumes["synthetic"]
        title = title_of(column, self._volumes[column], synthetic)
        fade = round(100 * self.fade)
        if column != "synthetic" or fade == 0:
            return title
        other = title_of("acquired" if "acquired" in self._volumes else "source", self.fade_volume, synthetic)
        return other if fade == 100 else f"{title}, {100 - fade} %\n{other}, {fade} %"

    # The parts of ``show``

    def _remember(self) -> _Before:
        layout = self._layout_node
        crosshair = self._scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        return _Before(
            arrangement=layout.GetViewArrangement(),
            maximized=tuple(layout.GetMaximizedViewNode(n) for n in range(layout.GetNumberOfMaximizedViewNodes())),
            layout_saved=bool(layout.GetSaveWithScene()),
            crosshair=crosshair,
            crosshair_mode=crosshair.GetCrosshairMode() if crosshair else 0,
        )

    def _take_layout(self) -> None:
        layout, number = self._layout_node, layout_id(self.columns, self._rows)
        layout.AddLayoutDescription(number, layout_xml(self.columns, self._rows))
        layout.RemoveAllMaximizedViewNodes()  # a maximized view would take the place of any layout
        # A scene that is saved meanwhile shall not ask for a layout that may be unknown where it is loaded.
        layout.SetSaveWithScene(False)
        layout.SetViewArrangement(number)
        if any(self._views.slice_logic(name) is None for name in self._names()):
            self.hide()
            raise InputError(_("A comparison needs slice views: start Slicer with its main window."))
        crosshair = self._before.crosshair
        if crosshair and crosshair.GetCrosshairMode() == crosshair.NoCrosshair:
            crosshair.SetCrosshairMode(crosshair.ShowBasic)

    def _fill_views(self) -> None:
        for column in self.columns:
            for name in self.view_names(column):
                self._views.slice_logic(name)  # makes the composite node
                self._views.allow_narrow(name)
                self._slice_node(name).SetSaveWithScene(False)
                self._slice_node(name).SetHideFromEditors(False)  # the user may want to capture it
            for composite in self._composites(self.view_names(column)):
                fading = self.fade_volume if column == "synthetic" else None
                changing = composite.StartModify()
                composite.SetSaveWithScene(False)
                composite.SetDoPropagateVolumeSelection(False)  # else the next volume that is loaded fills all columns
                composite.SetBackgroundVolumeID(self._volumes[column].GetID())
                composite.SetForegroundVolumeID(fading.GetID() if fading else None)
                composite.SetForegroundOpacity(0.0)
                composite.SetLabelVolumeID(None)
                composite.SetLinkedControl(True)
                composite.SetHotLinkedControl(True)
                composite.EndModify(changing)

    def _show_outlines(self, names: Iterable[str]) -> None:
        """Outline the segmentations in some of the views that are shown."""
        names = set(names)
        views = {
            column: [self._slice_node(name).GetID() for name in self.view_names(column) if name in names]
            for column in self.columns
        }
        self._outlines.show(
            self._segmentations, {column: each for column, each in views.items() if each}, self._columns_of
        )

    def _columns_of(self, segmentation: Any) -> Sequence[str]:
        volume = segmented_volume_of(segmentation)
        if volume is None:
            return self.columns
        own = [column for column, node in self._volumes.items() if node is volume]
        return [*own, "difference"] if own else []  # the anatomy of another image says nothing about these

    def _fit(self, rotate: bool, unless: Sequence[tuple[int, ...]] = ()) -> list[tuple[int, ...]]:
        """Fit the views unless they have these sizes, and tell their sizes."""
        sizes = [self._slice_node(name).GetDimensions() for name in self._names()]
        if sizes != unless:
            logics = {self._slice_node(name): self._views.slice_logic(name) for name in self._names()}
            fit(self._slice_nodes(), logics, self._volumes["synthetic"], rotate)
        return sizes

    # The end

    def _observe(self) -> None:
        scene = self._scene
        for event in (scene.StartCloseEvent, scene.StartRestoreEvent):
            self._observations.add(scene, event, lambda *_: self.hide())

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def on_node_removed(caller: Any, event: str, node: Any) -> None:
            if any(node is volume for volume in self._volumes.values()):
                self.hide()
            elif any(node is segmentation for segmentation in self._segmentations):
                self._segmentations.remove(node)
                self._show_outlines(self._names())

        self._observations.add(scene, scene.NodeRemovedEvent, on_node_removed)
        self._observations.add(self._layout_node, "ModifiedEvent", self._on_layout)

    def _on_layout(self, *_: object) -> None:
        if self._layout_node.GetViewArrangement() != layout_id(self.columns, self._rows):
            self._end(restore_layout=False)  # the user has chosen another one

    def _pause(self) -> None:
        """Follow nothing while the volumes change, above all not the removal of the difference."""
        self._observations.clear()
        self._marks.stop()

    def _clear(self) -> None:
        self._pause()
        self._empty(self._names())
        self._forget_voxels()
        self._volumes, self._segmentations = {}, []
        self._outlines.hide()  # last, as the user's own display, filled, would follow every change of the views

    def _empty(self, names: Iterable[str]) -> None:
        """Take the volumes out of views."""
        names = list(names)
        for name in names:
            self._slice_node(name).SetHideFromEditors(True)
        for composite in self._composites(names):
            changing = composite.StartModify()
            composite.SetLinkedControl(False)
            composite.SetBackgroundVolumeID(None)
            composite.SetForegroundVolumeID(None)
            composite.EndModify(changing)

    def _forget_voxels(self) -> None:
        self._windows.restore()
        if self._difference is not None:
            self._difference.remove(self._scene)
        self._difference = None

    def _end(self, *, restore_layout: bool) -> None:
        before, self._before = self._before, None
        self._clear()
        if before.crosshair:
            before.crosshair.SetCrosshairMode(before.crosshair_mode)
        self._layout_node.SetSaveWithScene(before.layout_saved)
        if restore_layout:
            self._layout_node.RemoveAllMaximizedViewNodes()
            for view in before.maximized:
                self._layout_node.AddMaximizedViewNode(view)
            self._layout_node.SetViewArrangement(before.arrangement)
        self._on_hidden()
