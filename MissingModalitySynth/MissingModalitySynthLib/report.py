"""The comparison page and figure: source, synthetic, acquired and their difference, in three planes.

``write_report`` writes one HTML file that needs nothing else: no network, no second file, and without scripts it still
shows the middle slices. ``write_figure`` writes the middle slices as a PNG. Both show every image in the radiological
convention (the patient's right on the left of the image). The orientation letters and, on everything that was made from
synthetic voxels, ``NOTICE`` are part of the pixels, so that a copied image keeps them.

A difference is shown only where an acquired volume of the target is given: nothing else can honestly be subtracted.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import NOTICE
from .errors import InputError, OutputError
from .metrics import compare, scale_to_target
from .modality import DISPLAY, shown_name
from .slice_images import MARK_COLOR, PLANES, DisplayGrid, Panel, View, color_table

if TYPE_CHECKING:
    from .volume import Geometry, Volume

_ROUND = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # ends of the colour bars, of the intensity range
_CONVENTION = "Radiological convention: the patient's right is on the left of axial and coronal images."


@dataclass(frozen=True)
class _Comparison:
    """What page and figure show: titled rows of panels, metrics by row name, the grid behind them, and its facts."""

    sections: list[tuple[str, list[Panel]]]
    metrics: dict[str, dict[str, float]]
    grid: DisplayGrid
    facts: dict[str, str]


def write_report(
    path: str | os.PathLike,
    sources: Mapping[str, Volume],
    synthetic: Mapping[str, Volume],
    acquired: Mapping[str, Volume] | None = None,
    deviation: Mapping[str, Volume] | None = None,
    provenance: Mapping[str, object] | None = None,
) -> None:
    """Write the page that compares synthetic volumes with their sources and, where given, with acquired ones.

    Args:
        path: the HTML file; replaced if it exists, and only once the new page is complete.
        sources: the acquired volumes that the synthesis started from, by modality; may be empty.
        synthetic: the synthesized volumes by modality. The first one's grid is the page's; volumes on another grid are
            resampled to it.
        acquired: acquired volumes of the same modalities; each adds a difference panel and rows of metrics.
        deviation: standard deviation over samples, in the units of the synthetic volume of the same modality.
        provenance: what is known about the run; nested mappings become dotted names.

    Raises:
        InputError: nothing synthetic was given, or an acquired volume or deviation has no synthetic counterpart.
        OutputError: the file cannot be written.
    """
    comparison = _prepare(sources, synthetic, acquired or {}, deviation or {})
    views = [View(comparison.grid, plane) for plane in PLANES]
    # Panels that several sections share, like the source, are stored once.
    panels = {id(panel): panel for _, row in comparison.sections for panel in row}
    names = {key: f"p{number}" for number, key in enumerate(panels)}
    slices = {names[key]: {view.plane.name: view.encode_all(panel) for view in views} for key, panel in panels.items()}
    sections = [
        _section_html(title, [(names[id(panel)], panel) for panel in row], views, slices)
        for title, row in comparison.sections
    ]
    template = string.Template(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(_title(sources, synthetic)),
        mark=escape(NOTICE),
        columns=max(len(row) for _, row in comparison.sections),
        convention=escape(_CONVENTION),
        metrics=_metrics_html(comparison.metrics),
        sections="\n".join(sections),
        details=_table_html({**comparison.facts, **dict(_flatten(provenance or {}))}),
        slices=json.dumps(slices, separators=(",", ":")),
    )
    _write(Path(path), page.encode("utf-8"))


def write_figure(
    path: str | os.PathLike,
    sources: Mapping[str, Volume],
    synthetic: Mapping[str, Volume],
    acquired: Mapping[str, Volume] | None = None,
    deviation: Mapping[str, Volume] | None = None,
    dpi: int = 150,
) -> None:
    """Write the middle slices of the panels of ``write_report`` as a PNG; arguments and errors are the same."""
    from matplotlib.figure import Figure

    comparison = _prepare(sources, synthetic, acquired or {}, deviation or {})
    views = [View(comparison.grid, plane, scale=2) for plane in PLANES]
    columns = max(len(row) for _, row in comparison.sections)
    # Inches. A millimetre has one size throughout, so rows are as high as their images.
    column, title, gap, bar, footer = 2.4, 0.4, 0.12, 0.4, 0.3
    widest = max(view.size[0] for view in views)
    images = [column * view.size[1] / widest for view in views]
    heights = [0.94 * height + gap for height in images]  # a margin keeps the letters of neighbours apart
    has_bars = [any(panel.top is not None for panel in row) for _, row in comparison.sections]
    total = sum(title + sum(heights) + bar * bars for bars in has_bars) + footer
    figure = Figure(figsize=(column * columns, total), facecolor="black")

    def axes(left: float, top: float, width: float, height: float):
        box = (left / columns, 1 - (top + height) / total, width / columns, height / total)
        return figure.add_axes(box)

    top = 0.0
    for (_, row), bars in zip(comparison.sections, has_bars, strict=True):
        for number, panel in enumerate(row):
            color = np.divide(MARK_COLOR if panel.marked else (235, 235, 235), 255)
            middle = ((number + 0.5) / columns, 1 - (top + title - 0.06) / total)
            figure.text(*middle, panel.title, color=color, size=10, ha="center", va="bottom")
            above = itertools.accumulate(heights, initial=top + title)
            for view, start, height in zip(views, above, images, strict=False):
                ax = axes(number + 0.03, start, 0.94, 0.94 * height)
                ax.imshow(view.render(panel, view.middle), interpolation="antialiased")
                ax.set_axis_off()
            below = top + title + sum(heights)
            if panel.title in comparison.metrics:
                scores = "PSNR {psnr:.2f} dB, SSIM {ssim:.3f}".format(**comparison.metrics[panel.title])
                figure.text(middle[0], 1 - below / total, scores, color="0.8", size=8, ha="center", va="top")
            if panel.top is not None:
                ax = axes(number + 0.2, below, 0.6, 0.06)
                ax.imshow(np.arange(256)[None], cmap=panel.colors, aspect="auto", extent=(0, 1, 0, 1))
                ax.set_yticks([])
                ax.set_xticks([0, 1], ["0", f"{panel.top:.0%}"])
                ax.set_xlabel("of range", size=7, color="0.7", labelpad=-8)
                ax.tick_params(colors="0.7", labelsize=7, length=0, pad=2)
        top += title + sum(heights) + bar * bars
    figure.text(0.5, 0.1 / total, _CONVENTION, color="0.65", size=7, ha="center", va="bottom")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    _write(Path(path), buffer.getvalue())


def _prepare(
    sources: Mapping[str, Volume],
    synthetic: Mapping[str, Volume],
    acquired: Mapping[str, Volume],
    deviation: Mapping[str, Volume],
) -> _Comparison:
    from .intensity import head_mask

    if not synthetic:
        raise InputError("A report needs at least one synthetic volume.")
    for modality in (*acquired, *deviation):
        if modality not in synthetic:
            raise InputError(f"There is no synthetic {modality} to compare with the {modality} that was given.")
    geometry = next(iter(synthetic.values())).geometry
    roles = {"source": sources, "synthetic": synthetic, "acquired": acquired}
    volumes = {(role, modality): volume for role, group in roles.items() for modality, volume in group.items()}
    arrays = {key: _on_grid(volume, geometry) for key, volume in volumes.items()}
    masks = {key: head_mask(array) for key, array in arrays.items()}
    grid = DisplayGrid(geometry, masks.values())

    def window(role: str, modality: str) -> tuple[float, float]:
        head = arrays[role, modality][masks[role, modality]]
        low, high = np.percentile(head, DISPLAY[modality].window_percentiles)
        return low, high

    def show(role: str, modality: str) -> Panel:
        levels = grid.levels(arrays[role, modality], *window(role, modality))
        made = "synthetic" if role == "synthetic" else "acquired"
        return Panel(f"{shown_name(modality)}, {made}", levels, marked=role == "synthetic")

    def show_map(title: str, fraction: np.ndarray) -> Panel:
        inside = fraction[fraction > 0]
        # The bar ends at a round figure, so that the maps of several reports can be compared.
        largest = np.percentile(inside, 99) if inside.size else 0.0
        top = next((each for each in _ROUND if each >= largest), 1.0)
        return Panel(title, grid.levels(fraction, 0, top), marked=True, colors="magma", top=top)

    shared = [show("source", modality) for modality in sources]
    rows, metrics = {}, {}
    for modality in synthetic:
        array = arrays["synthetic", modality]
        rows[modality] = [show("synthetic", modality)]
        if modality in acquired:
            target, mask = arrays["acquired", modality], masks["acquired", modality]
            rows[modality].append(show("acquired", modality))
            difference = np.abs(np.subtract(*scale_to_target(array, target, mask)))
            rows[modality].append(show_map("Absolute difference", difference))
            metrics[f"{modality}, synthetic"] = compare(array, target, mask)
            for source in sources:
                metrics[f"{shown_name(source)}, acquired, in place of {modality}"] = compare(
                    arrays["source", source], target, mask
                )
        if modality in deviation:
            low, high = window("synthetic", modality)
            spread = _on_grid(deviation[modality], geometry) / max(high - low, 1e-6)
            rows[modality].append(show_map("Standard deviation", spread))
    if acquired or deviation:
        sections = [
            (_title(sources, [modality]) if len(rows) > 1 else "", shared + row) for modality, row in rows.items()
        ]
    else:
        sections = [("", shared + [panel for row in rows.values() for panel in row])]

    made = {"source": "Source", "synthetic": "Synthetic", "acquired": "Acquired"}
    facts = {
        f"{made[role]} {shown_name(modality)}": volume.name or "unnamed" for (role, modality), volume in volumes.items()
    }
    size, spacing = " × ".join(map(str, geometry.size)), " × ".join(f"{mm:.4g}" for mm in geometry.spacing)
    facts["Grid"] = f"{size} voxels of {spacing} mm"
    if grid.angle > 1:
        facts["Orientation"] = f"oblique by up to {grid.angle:.0f}°: the letters name the nearest directions"
    return _Comparison(sections, metrics, grid, facts)


def _title(sources: Mapping[str, Volume], targets: Sequence[str] | Mapping[str, Volume]) -> str:
    return "Synthetic " + ", ".join(targets) + (f" from {', '.join(map(shown_name, sources))}" if sources else "")


def _on_grid(volume: Volume, geometry: Geometry) -> np.ndarray:
    if volume.geometry.matches(geometry):
        return volume.array
    from .canonical import resample_to

    return resample_to(volume, geometry).array


def _section_html(title: str, row: list[tuple[str, Panel]], views: list[View], slices: Mapping) -> str:
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    parts = [f"<section>{heading}"]
    widest = max(view.size[0] for view in views)
    for view in views:
        name, here = view.plane.name, view.first + view.middle + 1
        parts.append(
            f'<div class="plane"><label class="slider"><b>{name.capitalize()}</b>'
            f'<input type="range" data-plane="{name}" min="{view.first + 1}" max="{view.first + view.count}"'
            f' value="{here}" data-total="{view.total}" aria-label="{name.capitalize()} slice">'
            f"<output>{here} of {view.total}</output></label><div class=panels>"
        )
        for key, panel in row:
            kind = " class=marked" if panel.marked else ""
            alt = f"{panel.title}, {name} slice" + (f". {NOTICE}" if panel.marked else "")
            width, height = view.size
            parts.append(
                f"<figure{kind}><figcaption>{escape(panel.title)}</figcaption>"
                f'<img alt="{escape(alt)}" style="width:{100 * width / widest:.1f}%" width="{width}" height="{height}"'
                f' data-panel="{key}" data-plane="{name}"'
                f' src="data:image/webp;base64,{slices[key][name][view.middle]}">'
                f"{_bar_html(panel)}</figure>"
            )
        parts.append("</div></div>")
    return "".join([*parts, "</section>"])


def _bar_html(panel: Panel) -> str:
    if panel.top is None:
        return ""
    stops = ",".join("#" + bytes(color).hex() for color in color_table(panel.colors)[::15])
    ramp = f'<i style="background:linear-gradient(90deg,{stops})"></i>'
    return f'<div class="bar"><span>0</span>{ramp}<span>{panel.top:.0%} of range</span></div>'


def _metrics_html(metrics: Mapping[str, Mapping[str, float]]) -> str:
    if not metrics:
        return ""
    rows = "".join(
        f"<tr{'' if name.endswith('synthetic') else ' class=anchor'}><th scope=row>{escape(name)}</th>"
        f"<td>{m['psnr']:.2f}</td><td>{m['nmse']:.4f}</td><td>{m['ssim']:.4f}</td>"
        f"<td>{m['psnr_mask']:.2f}</td><td>{m['ssim_mask']:.4f}</td><td>{m['mae_mask']:.4f}</td></tr>"
        for name, m in metrics.items()
    )
    return (
        '<section id="metrics"><h2>Agreement with the acquired volume</h2><div class="scroll"><table><thead>'
        "<tr><td rowspan=2></td><th colspan=3 scope=colgroup>Box around the head</th>"
        "<th colspan=3 scope=colgroup>Inside the head</th></tr>"
        "<tr><th>PSNR, dB ↑</th><th>NMSE ↓</th><th>SSIM ↑</th><th>PSNR, dB ↑</th><th>SSIM ↑</th><th>MAE ↓</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></div>"
        "<p>The acquired volume is scaled to its 0.5th to 99.5th percentile; one gain and one offset bring the other"
        " volume to that scale. Arrows show which way is better. Grey rows score an acquired source in the place of the"
        " synthetic volume, fitted likewise: the least that a synthesis has to beat.</p></section>"
    )


def _table_html(rows: Mapping[str, object]) -> str:
    cells = (f"<tr><th scope=row>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<table class=details>{''.join(cells)}</table>"


def _flatten(mapping: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)


def _write(path: Path, content: bytes) -> None:
    """Write under a temporary name in the same folder, then rename: there is never half a file under ``path``."""
    temporary = path.with_name(f".unfinished-{os.getpid()}")
    try:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"The report {path} cannot be written ({error.strerror}): choose another folder or free some space."
        ) from error
