"""What is compared, and how close the synthetic volume is to the acquired one."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .choices import ALL_PLANES, PLANE_CHOICES
from .provenance import provenance_of, source_nodes_of
from .translation import _


@dataclass(frozen=True)
class Comparison:
    """Volume and segmentation nodes to compare; ``other`` is the second segmentation, for Dice."""

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
    def measured(self) -> tuple[Any, ...]:
        """What the metrics depend on."""
        return (self.synthetic, self.acquired, self.segmentation, self.other)


def comparison_of(parameters: Any) -> Comparison:
    """What is chosen in the section "Compare".

    Raises:
        InputError: a volume is lacking.
    """
    names = ("compareSource", "compareSynthetic", "compareAcquired", "segmentation", "otherSegmentation")
    source, synthetic, acquired, segmentation, other = (_in_scene(getattr(parameters, name)) for name in names)
    if source is None or synthetic is None:
        raise InputError(_("Choose a source and a synthetic volume to compare."))
    rows = PLANE_CHOICES[:-1] if parameters.compareRows == ALL_PLANES else (parameters.compareRows,)
    return Comparison(source, synthetic, acquired, rows, segmentation, other)


def metrics_text(chosen: Comparison) -> str:
    """Metrics as an HTML table; empty without an acquired volume.

    Raises:
        SynthesisError: the volumes cannot be compared.
    """
    if chosen.acquired is None:
        return ""
    from .comparison import metrics_of

    both = chosen.segmentations if len(chosen.segmentations) == 2 else None
    found = metrics_of(chosen.synthetic, chosen.acquired, segmentations=both)
    rows = [("PSNR", f"{found.psnr:.1f} dB"), ("NMSE", f"{found.nmse:.3f}"), ("SSIM", f"{found.ssim:.3f}")]
    rows += [(f"Dice {name}", f"{value:.3f}") for name, value in (found.dice or {}).items()]
    cells = "".join(f"<tr><td>{html.escape(name)}&nbsp;&nbsp;</td><td>{value}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


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
