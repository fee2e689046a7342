"""The comparison: what is compared, outlines, fade, flicker and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer

from ..scene.compare_choices import (
    can_segment,
    compared_volumes,
    compared_with,
    comparison_of,
    follow_volumes,
    metrics_text,
    segmentation_task,
)
from ..scene.compare_layout import COLUMNS
from ..scene.provenance import SYNTHETIC, segmented_volume_of
from ..scene.translation import _
from .application import ensure_dependencies
from .context import Context, offer_all_but


class CompareSection:
    """Binds the section "Compare".

    Args:
        ui: the panel's widgets by name.
        context: the state behind it.
    """

    def __init__(self, ui: Any, context: Context) -> None:
        self._ui, self._context = ui, context
        self._view = self._shown = self._measured = self._volumes = None
        self._segmenting = False
        ui.compareSyntheticSelector.addAttribute("vtkMRMLScalarVolumeNode", SYNTHETIC, "1")
        ui.startCompareButton.connect("clicked(bool)", lambda checked: self.open())
        ui.closeCompareButton.connect("clicked(bool)", lambda checked: self.close())
        ui.segmentButton.connect("clicked(bool)", self._segment)
        ui.flickerButton.connect("clicked(bool)", self._flicker)
        ui.fadeSlider.connect("valueChanged(double)", self._fade)
        for column in COLUMNS:
            getattr(ui, f"{column}OutlineCheckBox").connect("toggled(bool)", lambda checked: self._outline())
            getattr(ui, f"{column}OutlineSlider").connect("valueChanged(int)", lambda value: self._outline())
        self.enable()

    def compare(self, node: Any) -> None:
        """Compare a synthetic volume with what it was made from."""
        parameters = self._context.parameters
        parameters.compareSource, parameters.compareSynthetic = compared_with(node), node
        self._ui.compareCollapsibleButton.collapsed = False
        self.open()

    def open(self, *, anew: bool = True) -> None:
        """Show the comparison of what is chosen; ``anew`` if voxels or segments may have changed."""
        from ..scene.compare import CompareView

        with self._context.problems():
            self._follow_volumes()
            chosen = comparison_of(self._context.parameters)
            ensure_dependencies(self._context.logic.requirements)
            if self._view is None:
                manager = slicer.app.layoutManager()
                layout_node = manager.layoutLogic().GetLayoutNode() if manager else None
                self._view = CompareView(slicer.mrmlScene, layout_node, on_hidden=self.enable)
            self._shown = chosen
            self._view.show(
                chosen.source,
                chosen.synthetic,
                acquired=chosen.acquired,
                rows=chosen.rows,
                segmentations=chosen.segmentations,
                anew=anew,
            )
            self._ui.fadeSlider.value = self._view.fade
            self._outline()
            if not chosen.has_metrics:
                self._ui.metricsLabel.text = ""
            elif anew or chosen.measured != self._measured:
                self._ui.metricsLabel.text = _("Measuring...")
                self._context.later(self._measure)
        self.enable()

    def _follow_volumes(self) -> None:
        volumes = compared_volumes(self._context.parameters)
        if volumes != self._volumes:
            self._volumes = volumes
            follow_volumes(self._context.parameters)

    def _measure(self) -> None:
        """Fill in the metrics, which take a second or two."""
        if self._view.visible and self._shown.has_metrics:
            self._ui.metricsLabel.text = ""
            with self._context.problems():
                self._ui.metricsLabel.text = metrics_text(self._shown)
            self._measured = self._shown.measured
            self.enable()

    def _segment(self, _checked: bool = False) -> None:
        logic = self._context.logic
        with self._context.problems():
            logic.start(segmentation_task(self._context.parameters, self._context.packages))
            self._segmenting = True

    def _segmented(self, nodes: Sequence[Any]) -> None:
        """Outline both segmentations and measure their overlap, unless other volumes were chosen meanwhile."""
        parameters = self._context.parameters
        if all(segmented_volume_of(node) in compared_volumes(parameters) for node in nodes):
            parameters.segmentation, parameters.otherSegmentation = nodes
            self.open()

    def replaced(self, nodes: Sequence[Any]) -> None:
        """Volumes have new voxels: a comparison of one of them is shown anew."""
        if self._view is not None and self._view.visible and any(node is self._shown.synthetic for node in nodes):
            self.open()

    def close(self) -> None:
        """Return to the layout from before."""
        if self._view is not None and self._view.visible:
            self._view.hide()

    def refresh(self) -> None:
        """Follow the choices, above all while the comparison is shown."""
        for selector in (self._ui.compareSourceSelector, self._ui.compareAcquiredSelector):
            offer_all_but(self._context.view.no_inputs, selector)
        session = self._context.logic.session
        if self._segmenting and not session.running:
            self._segmenting = False
            if session.results:
                self._segmented(session.results)
        if self._context.parameters is not None:
            self._follow_volumes()
        possible = can_segment(self._context.parameters, self._context.packages)
        self._ui.segmentButton.enabled = possible and not session.running
        outlined = self._ui.segmentationSelector.currentNode() is not None
        self._ui.otherSegmentationLabel.visible = self._ui.otherSegmentationSelector.visible = outlined
        if self._view is not None and self._view.visible and self._context.parameters is not None:
            with self._context.problems():
                if comparison_of(self._context.parameters) != self._shown:
                    self.open(anew=False)

    def enable(self) -> None:
        """Only what does something can be clicked."""
        visible = self._view is not None and self._view.visible
        columns = self._view.columns if visible else ()
        for name in ("closeCompareButton", "flickerButton", "fadeSlider"):
            getattr(self._ui, name).enabled = visible
        self._ui.metricsLabel.visible = visible and bool(self._ui.metricsLabel.text)
        self._ui.outlinesWidget.visible = visible and bool(self._shown.segmentations)
        for column in COLUMNS:
            getattr(self._ui, f"{column}OutlineCheckBox").visible = column in columns
            getattr(self._ui, f"{column}OutlineSlider").visible = column in columns

    def _fade(self, fraction: float) -> None:
        if self._view is not None and self._view.visible:
            self._view.set_fade(fraction)

    def _flicker(self, _checked: bool = False) -> None:
        self._view.flicker()
        self._ui.fadeSlider.value = self._view.fade

    def _outline(self) -> None:
        if self._view is None or not self._view.visible:
            return
        for column in self._view.columns:
            checked = getattr(self._ui, f"{column}OutlineCheckBox").checked
            opacity = getattr(self._ui, f"{column}OutlineSlider").value / 100
            self._view.set_outlines(column, checked, opacity)
