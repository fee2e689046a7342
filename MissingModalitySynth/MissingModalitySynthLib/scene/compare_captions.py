"""What is written into the views of the comparison."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..modality import shown_name
from .provenance import provenance_of, source_nodes_of
from .translation import _
from .volumes import guess_of


def title_of(column: str, node: Any, synthetic: Any) -> str:
    """What a column shows: a source by the contrast that the user declared when the synthetic volume was made."""
    titles = {"source": _("Source"), "synthetic": _("Synthetic"), "acquired": _("Acquired")}
    contrast = (_declared(node, synthetic) if column == "source" else None) or guess_of(node) or node.GetName()
    return f"{titles[column]}: {contrast}"


def difference_caption(against_acquired: bool, top: int) -> str:
    """What the difference is to, and where its scale ends."""
    # No vertical bars: VTK takes them for the borders of columns.
    if against_acquired:
        return _("Absolute difference to acquired\n0 to {top} % of its range").format(top=top)
    return _("Absolute difference to source, scaled\n0 to {top} %: other contrast, not error").format(top=top)


def _declared(source: Any, synthetic: Any) -> str | None:
    """The contrast that a synthetic volume was made from this node as; None if it was not made from it."""
    known = [contrast for contrast, node in source_nodes_of(synthetic).items() if node is source]
    if not known:  # loaded from a file, a synthetic volume knows its sources by name alone
        try:
            named = provenance_of(synthetic).get("sources", {})
        except InputError:
            named = {}
        known = [contrast for contrast, name in named.items() if name == source.GetName()]
    return shown_name(known[0]) if known else None
