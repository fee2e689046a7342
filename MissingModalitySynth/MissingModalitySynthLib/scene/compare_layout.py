"""The layout of the comparison: one row a plane, one column a volume, every view with a name of its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError

PLANES = ("Axial", "Sagittal", "Coronal")
COLUMNS = ("source", "synthetic", "acquired", "difference")

PREFIX = "MissingModalitySynth"  # of the names of all views, which are the singleton tags of their nodes
# Far from Slicer's own layouts (below 100), its slot for the user's (100), and the hundreds that extensions use.
_FIRST_LAYOUT = 736_000
_VIEW_GROUP = 736  # views are linked within a group
_COLORS = {"Axial": "#F34A33", "Sagittal": "#EDD54C", "Coronal": "#6EB04B"}  # of Slicer's red, yellow and green view
_LABELS = {"source": "Src", "synthetic": "Syn", "acquired": "Acq", "difference": "Dif"}


def check_rows(rows: Sequence[str]) -> tuple[str, ...]:
    """The planes that were asked for, each once and in the order of ``PLANES``.

    Raises:
        InputError: a plane is unknown, or there is none.
    """
    unknown = [row for row in rows if row not in PLANES]
    if unknown or not rows:
        raise InputError(f"A comparison has rows {', '.join(PLANES)}, not {', '.join(unknown) or 'none'}.")
    return tuple(plane for plane in PLANES if plane in rows)


def view_name(column: str, row: str) -> str:
    """Name (and singleton tag) of the view of one column in one row."""
    return f"{PREFIX}{column.capitalize()}{row}"


def layout_id(columns: Sequence[str], rows: Sequence[str]) -> int:
    """Number of the layout with these columns and rows; every combination has its own."""
    chosen = [name in columns for name in COLUMNS] + [name in rows for name in PLANES]
    return _FIRST_LAYOUT + sum(1 << bit for bit, wanted in enumerate(chosen) if wanted)


def layout_xml(columns: Sequence[str], rows: Sequence[str]) -> str:
    """Description of the layout for vtkMRMLLayoutNode."""

    def view(column: str, row: str) -> str:
        properties = {
            "orientation": row,
            "viewlabel": f"{_LABELS[column]} {row[0]}",
            "viewcolor": _COLORS[row],
            "viewgroup": _VIEW_GROUP,
        }
        body = "".join(
            f'<property name="{key}" action="default">{value}</property>' for key, value in properties.items()
        )
        return f'<item><view class="vtkMRMLSliceNode" singletontag="{view_name(column, row)}">{body}</view></item>'

    def line(row: str) -> str:
        return f'<item><layout type="horizontal">{"".join(view(column, row) for column in columns)}</layout></item>'

    return f'<layout type="vertical">{"".join(map(line, rows))}</layout>'
