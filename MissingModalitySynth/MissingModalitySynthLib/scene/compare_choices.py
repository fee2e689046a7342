"""What is compared, and how close the synthetic volume is to the acquired one."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, ModelPackageError
from ..model_package import ListedPackage, ModelPackage
from .choices import ALL_PLANES, PLANE_CHOICES, Choices, choices_of, chosen_package
from .comparison import Overlap, metrics_of, overlaps_of
from .provenance import provenance_of, segmented_volume_of, source_nodes_of, tissues_of
from .segmentations import SegmentationTask
from .translation import _

_ENOUGH_VOXELS = 10  # of a segment; the overlap of fewer is chance


@dataclass(frozen=True)
class Comparison:
    """Volume and segmentation nodes to compare; ``other`` is the second segmentation, another one, for Dice."""

    source: Any
    synthetic: Any
    acquired: Any
    rows: tuple[str, ...]
    segmentation: Any
    other: Any

    @property
    def segmentations(self) -> tuple[Any, ...]:
        return tuple(node for node in (self.segmentation, self.other) if node is not None)

    @property
    def has_metrics(self) -> bool:
        """Whether there is something to compare in numbers: an acquired volume, or two segmentations."""
        return self.acquired is not None or len(self.segmentations) == 2

    @property
    def measured(self) -> tuple[Any, ...]:
        """What the metrics depend on."""
        return (self.synthetic, self.acquired, self.segmentation, self.other)


def comparison_of(parameters: Any) -> Comparison:
    """What is chosen in the section "Compare".

    Raises:
        InputError: a volume is lacking.
    """
    source, synthetic, acquired = compared_volumes(parameters)
    segmentation, other = _in_scene(parameters.segmentation), _in_scene(parameters.otherSegmentation)
    if source is None or synthetic is None:
        raise InputError(_("Choose a source and a synthetic volume to compare."))
    if segmentation is None or other is segmentation:
        other = None
    rows = PLANE_CHOICES[:-1] if parameters.compareRows == ALL_PLANES else (parameters.compareRows,)
    return Comparison(source, synthetic, acquired, rows, segmentation, other)


def compared_volumes(parameters: Any) -> tuple[Any, Any, Any]:
    """Source, synthetic and acquired volume, None where none is chosen."""
    return tuple(
        _in_scene(getattr(parameters, name)) for name in ("compareSource", "compareSynthetic", "compareAcquired")
    )


def follow_volumes(parameters: Any) -> None:
    """Choose the segmentations anew after other volumes were chosen: Dice and outlines are never of another image.

    Segmentations of the tissues of volumes that are compared no longer give way to those of the two that "Segment both"
    would segment, if there are both. What the user drew stays.
    """
    source, synthetic, acquired = compared_volumes(parameters)
    chosen = [_in_scene(parameters.segmentation), _in_scene(parameters.otherSegmentation)]
    shown = (None, source, synthetic, acquired)
    kept = [node for node in chosen if node is not None and segmented_volume_of(node) in shown]
    if all(segmented_volume_of(node) is not None for node in kept):
        pair = [tissues_of(node)[-1:] for node in (synthetic, acquired or source) if node is not None]
        tissues = [node for each in pair for node in each]
        kept = tissues if len(tissues) == 2 else kept
    parameters.segmentation, parameters.otherSegmentation = [*kept, None, None][:2]


def metrics_text(chosen: Comparison) -> str:
    """Metrics as an HTML table; empty where nothing can be measured.

    Raises:
        SynthesisError: the volumes cannot be compared.
    """
    if not chosen.has_metrics:
        return ""
    rows = []
    if chosen.acquired is not None:
        found = metrics_of(chosen.synthetic, chosen.acquired)
        rows += [("PSNR", f"{found.psnr:.1f} dB"), ("NMSE", f"{found.nmse:.3f}"), ("SSIM", f"{found.ssim:.3f}")]
    if len(chosen.segmentations) == 2:
        overlaps = overlaps_of(*chosen.segmentations, reference=chosen.synthetic)
        places = [_place(node, chosen) for node in chosen.segmentations]
        rows += [(_("Dice {name}").format(name=name), _share(found, places)) for name, found in overlaps.items()]
    cells = "".join(
        f"<tr><td>{html.escape(name)}&nbsp;&nbsp;</td><td>{html.escape(value)}</td></tr>" for name, value in rows
    )
    return f"<table>{cells}</table>"


def _share(overlap: Overlap, places: Sequence[str]) -> str:
    """Dice, or where a segment is, if only one of two has enough of it for a share to mean something."""
    sizes = overlap.sizes
    enough = [size >= _ENOUGH_VOXELS for size in sizes]
    if not all(enough):
        here = [size > 0 for size in sizes] if not any(enough) else enough
        if here.count(True) == 1:
            at = here.index(True)
            return _("only in {place} ({count} voxels)").format(place=places[at], count=sizes[at])
        return _("in neither") if not any(here) else _("too small to compare")
    return f"{overlap.dice:.3f}"


def _place(segmentation: Any, chosen: Comparison) -> str:
    volume = segmented_volume_of(segmentation)
    places = {"synthetic": _("the synthetic"), "acquired": _("the acquired"), "source": _("the source")}
    known = (places[column] for column in places if volume is not None and getattr(chosen, column) is volume)
    return next(known, f"'{segmentation.GetName()}'")


def segmentation_task(parameters: Any, packages: Sequence[ListedPackage]) -> SegmentationTask:
    """What "Segment both and compare" starts: the synthetic volume, and the acquired one or, without it, the source.

    Raises:
        InputError: a volume is lacking.
        ModelPackageError: no package has a segmenter.
    """
    chosen, choices = comparison_of(parameters), choices_of(parameters)
    package = segmenting_package(choices, packages)
    other = {_("Acquired"): chosen.acquired} if chosen.acquired is not None else {_("Source"): chosen.source}
    return SegmentationTask({_("Synthetic"): chosen.synthetic, **other}, package, choices.device, choices.replace)


def can_segment(parameters: Any, packages: Sequence[ListedPackage]) -> bool:
    """Whether "Segment both and compare" has something to start."""
    chosen = (_in_scene(parameters.compareSource), _in_scene(parameters.compareSynthetic))
    return None not in chosen and any(each.package is not None and each.package.has_segmenter for each in packages)


def segmenting_package(choices: Choices, packages: Sequence[ListedPackage]) -> ModelPackage:
    """The chosen package if it has a segmenter, else the first that has one.

    Raises:
        ModelPackageError: none has.
    """
    for each in (chosen_package(choices, packages), *packages):
        if each is not None and each.package is not None and each.package.has_segmenter:
            return each.package
    raise ModelPackageError(_("No model has a segmenter: install a model package that has one."))


def compared_with(node: Any) -> Any:
    """The source that a synthetic volume is compared with: the reference if it is still there, else any source."""
    sources = source_nodes_of(node)
    try:
        reference = provenance_of(node).get("reference")
    except InputError:
        reference = None
    named = [source for source in sources.values() if source.GetName() == reference]
    return next(iter([*named, *sources.values()]), None)


def _in_scene(node: Any) -> Any:
    return node if node is not None and node.GetScene() is not None else None
