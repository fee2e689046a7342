"""Pictures of an evaluation: source, synthetic, acquired and their difference; predicted against actual error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from MissingModalitySynthLib.metrics import gain_and_offset, scale_to_target
from MissingModalitySynthLib.slice_images import PLANES, DisplayGrid, Panel, View
from MissingModalitySynthLib.volume import Volume

from ..data.atomic import replacing
from .cases import Case

DIFFERENCE_TOP = 0.5  # of the target's range, at the bright end of the difference's colours
_TITLE = 30  # pixels
_SUSPECT_MM = 4.0  # blur, so that a thin bright rim is no lesion


def write_comparison(
    path: Path, case: Case, sources: Mapping[str, Volume], results: Mapping[str, np.ndarray], titles: Mapping[str, str]
) -> None:
    """One PNG: for each target an axial and a coronal row of sources, synthetic, acquired and their difference.

    Shown is the slice with most of the lesion; where none is known, that with most of what is brightest in FLAIR, as
    oedema and tumours are; where there is no FLAIR either, the middle of the head. One gain and one offset, fitted in
    the brain where it is known, bring a prediction to its target.

    Args:
        results: predictions (i, j, k) by target.
        titles: by target, what is said above its rows.
    """
    grid = DisplayGrid(next(iter(case.targets.values())).geometry, [case.mask])
    views = [View(grid, plane) for plane in PLANES[:2]]
    width = max(view.size[0] for view in views)
    rows = []
    for target, result in results.items():
        scaled, truth = scale_to_target(result, case.targets[target].array, case.mask)
        if case.brain is not None:  # else a wrong skull may turn the brain's contrast around
            gain, offset = gain_and_offset(result, truth, case.brain)
            scaled = np.clip(gain * result + offset, 0, 1) * case.mask
        panels = [
            Panel(f"{name}, acquired", grid.levels(volume.array, *np.percentile(volume.array[case.mask], [0.5, 99.5])))
            for name, volume in sources.items()
        ]
        panels += [
            Panel(f"{target}, SYNTHETIC", grid.levels(scaled, 0, 1), marked=True),
            Panel(f"{target}, acquired", grid.levels(truth, 0, 1)),
            Panel(
                f"difference, 0 to {DIFFERENCE_TOP:g} of the range",
                grid.levels(np.abs(scaled - truth), 0, DIFFERENCE_TOP),
                marked=True,
                colors="magma",
            ),
        ]
        rows += [_row(view, panels, width, titles[target], _shown(view, grid, case)) for view in views]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    with replacing(path) as temporary:
        sheet.save(temporary)


def write_calibration(path: Path, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """One PNG: root mean square error against predicted standard deviation by bin; the diagonal is calibrated.

    Args:
        curves: by label, what ``metrics.calibration`` gives.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    largest = max(max(*curve["deviation_bins"], *curve["error_bins"]) for curve in curves.values())
    axes.plot([0, largest], [0, largest], color="grey", linestyle="--", label="calibrated")
    for label, curve in curves.items():
        axes.plot(curve["deviation_bins"], curve["error_bins"], marker="o", markersize=3, label=label)
    axes.set_xlabel("predicted standard deviation (share of the target's range)")
    axes.set_ylabel("root mean square error")
    axes.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _row(view: View, panels: list[Panel], width: int, title: str, index: int) -> Image.Image:
    row = Image.new("RGB", (width * len(panels), view.size[1] + 2 * _TITLE))
    draw = ImageDraw.Draw(row)
    draw.text((8, 4), f"{title}, {view.plane.name}", fill="white", font=_font(15))
    for column, panel in enumerate(panels):
        draw.text((column * width + width / 2, _TITLE), panel.title, "white", _font(13), anchor="ma")
        image = view.render(panel, index)
        row.paste(image, (column * width + (width - image.width) // 2, 2 * _TITLE))
    return row


def _font(pixels: int) -> ImageFont.FreeTypeFont:
    import matplotlib as mpl

    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", pixels)


def _shown(view: View, grid: DisplayGrid, case: Case) -> int:
    lesion = case.lesion
    if lesion is None and "FLAIR" in case.targets:
        smooth = ndimage.gaussian_filter(case.targets["FLAIR"].array * case.mask, _SUSPECT_MM)
        lesion = smooth >= np.percentile(smooth[case.mask], 99)
    if lesion is None:
        return view.middle
    shown = grid.levels(lesion.astype(np.float32), 0, 1)
    others = tuple(axis for axis in range(3) if axis != view.plane.axis)
    return int(shown.sum(axis=others, dtype=np.int64).argmax())
