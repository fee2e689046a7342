"""Slices of volumes as images for reading: oriented, windowed, and labelled in their own pixels.

Every image follows the radiological convention (the patient's right on the left of the image). The orientation letters
and, on everything that was made from synthetic voxels, ``NOTICE`` are part of the pixels, so that a copied image keeps
them; they lie around the slice and hide nothing of it.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import NOTICE

if TYPE_CHECKING:
    from PIL.Image import Image

    from .volume import Geometry

MARK_COLOR = (255, 179, 0)

SLICE_PIXELS = 256  # longest side of a slice at a scale of 1
GUTTER = 18  # pixels on each side of a slice, where the letters are; below there is a second one for the mark
_LEAST_WIDTH = 236  # pixels that the mark needs
_LETTER_COLOR = (165, 165, 165)
_BOX_MARGIN = 4.0  # mm of air that stay around the head
_WEBP = {"format": "WEBP", "method": 2}
_QUALITY = {"gray": 65, "magma": 30}  # lower, the noise that tells a real image from a smooth one would be lost


@dataclass(frozen=True)
class Plane:
    """A stack of slices through an array on R, A, S axes.

    Attributes:
        name: for people.
        axis: the array's axis that the slices are stacked on.
        letters: directions at the left, right, top and bottom of a slice.
    """

    name: str
    axis: int
    letters: str

    def slice(self, array: np.ndarray, index: int) -> np.ndarray:
        """One slice as rows from top to bottom: R, A and S grow with the index and lie left (R, A) or on top (A, S)."""
        return np.moveaxis(array, self.axis, 0)[index].T[::-1, ::-1]


PLANES = (Plane("axial", 2, "RLAP"), Plane("coronal", 1, "RLSI"), Plane("sagittal", 0, "APSI"))


@dataclass(frozen=True)
class Panel:
    """One volume as it is shown: ``levels`` is uint8, on R, A, S axes, cut to the displayed box."""

    title: str
    levels: np.ndarray
    marked: bool = False  # made from synthetic voxels
    colors: str = "gray"
    top: float | None = (
        None  # for maps with a colour bar: the fraction of the intensity range that level 255 stands for
    )


class DisplayGrid:
    """The part of a grid that is shown, with axes that run closest to R, A and S: the heads and a margin of air.

    Attributes:
        shape: voxels of the whole grid along R, A, S.
        spacing: mm along R, A, S.
        box: the displayed part, one slice per axis.
        angle: largest angle in degrees between an image axis and the direction that stands for it.
    """

    def __init__(self, geometry: Geometry, masks: Iterable[np.ndarray]):
        cosines = np.diag([-1, -1, 1]) @ np.asarray(geometry.direction).reshape(3, 3)  # world coordinates are LPS
        axes = max(itertools.permutations(range(3)), key=lambda axes: np.abs(cosines[range(3), axes]).sum())
        chosen = cosines[range(3), axes]
        self._axes, self._flips = axes, tuple(slice(None, None, 1 if cosine > 0 else -1) for cosine in chosen)
        self.angle = math.degrees(math.acos(min(np.abs(chosen).min(), 1.0)))
        self.shape = tuple(geometry.size[axis] for axis in axes)
        self.spacing = tuple(geometry.spacing[axis] for axis in axes)
        shown = self._to_ras(np.logical_or.reduce(list(masks)))
        self.box = tuple(self._extent(shown, axis) for axis in range(3))

    def _to_ras(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(self._axes)[self._flips]

    def _extent(self, mask: np.ndarray, axis: int) -> slice:
        where = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        margin = math.ceil(_BOX_MARGIN / self.spacing[axis])
        return slice(max(int(where[0]) - margin, 0), min(int(where[-1]) + margin + 1, mask.shape[axis]))

    def levels(self, array: np.ndarray, low: float, high: float) -> np.ndarray:
        """The displayed part of an [i, j, k] array on R, A, S axes, with ``low`` as 0 and ``high`` as 255; uint8."""
        part = self._to_ras(array)[self.box]
        return np.rint(np.clip((part - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


class View:
    """Draws the slices of one plane: the slice, the letters around it, and the mark below where the panel needs it.

    Attributes:
        first, count: number of the first displayed slice, from 0 at the grid's border, and how many are displayed.
        size: (width, height) of the images in pixels.
        slice_size, corner: size of the slice within, and its upper left corner.
    """

    def __init__(self, grid: DisplayGrid, plane: Plane, scale: int = 1):
        self.plane = plane
        self.first = grid.box[plane.axis].start
        self.count = grid.box[plane.axis].stop - self.first
        self.total = grid.shape[plane.axis]
        self.middle = self.count // 2
        extent = [(part.stop - part.start) * mm for part, mm in zip(grid.box, grid.spacing, strict=True)]
        # One size of a millimetre in all planes.
        pixels = [max(round(mm * scale * SLICE_PIXELS / max(extent)), 1) for mm in extent]
        width, height = self.slice_size = tuple(n for axis, n in enumerate(pixels) if axis != plane.axis)
        self._gutter = scale * GUTTER
        self.size = (max(width + 2 * self._gutter, scale * _LEAST_WIDTH), height + 3 * self._gutter)
        self.corner = ((self.size[0] - width) // 2, self._gutter)
        self._frames = {marked: self._frame(marked) for marked in (False, True)}

    def _frame(self, marked: bool) -> Image:
        import matplotlib as mpl
        from PIL import Image, ImageDraw, ImageFont

        fonts = Path(mpl.get_data_path()) / "fonts" / "ttf"
        image = Image.new("RGB", self.size)
        draw = ImageDraw.Draw(image)
        regular = ImageFont.truetype(fonts / "DejaVuSans.ttf", round(0.7 * self._gutter))
        (x, y), (width, height), half = self.corner, self.slice_size, self._gutter / 2
        left, right = (x - half, y + height / 2), (x + width + half, y + height / 2)
        top, bottom = (x + width / 2, y - half), (x + width / 2, y + height + half)
        for letter, centre in zip(self.plane.letters, (left, right, top, bottom), strict=True):
            draw.text(centre, letter, fill=_LETTER_COLOR, font=regular, anchor="mm")
        if marked:
            bold = ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", round(0.72 * self._gutter))
            draw.text((self.size[0] / 2, self.size[1] - half), NOTICE, fill=MARK_COLOR, font=bold, anchor="mm")
        return image

    def render(self, panel: Panel, index: int) -> Image:
        """The image of one slice; ``index`` counts from the first displayed one."""
        from PIL import Image

        pixels = Image.fromarray(np.ascontiguousarray(self.plane.slice(panel.levels, index)))
        pixels = pixels.resize(self.slice_size, Image.Resampling.BICUBIC)
        if panel.colors != "gray":
            pixels.putpalette(color_table(panel.colors).tobytes())
        image = self._frames[panel.marked].copy()
        image.paste(pixels.convert("RGB"), self.corner)
        return image

    def encode_all(self, panel: Panel) -> list[str]:
        """All slices as WebP files in base64."""

        def encode(index: int) -> str:
            buffer = io.BytesIO()
            self.render(panel, index).save(buffer, quality=_QUALITY[panel.colors], **_WEBP)
            return base64.b64encode(buffer.getvalue()).decode("ascii")

        with ThreadPoolExecutor() as pool:  # the encoder runs outside Python's lock
            return list(pool.map(encode, range(self.count)))


def color_table(name: str) -> np.ndarray:
    """The 256 colours (256, 3) uint8 of a colour map of matplotlib."""
    from matplotlib import colormaps

    return np.rint(colormaps[name](np.arange(256))[:, :3] * 255).astype(np.uint8)
