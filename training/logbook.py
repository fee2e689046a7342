"""What a run tells about itself: a progress bar, ``log.jsonl``, and TensorBoard's scalars and image panels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from .data.atomic import replacing


class Logbook:
    """Writes to ``folder``; with ``folder=None`` (all processes but the first) it does nothing.

    Args:
        done, steps: where the run begins and ends. Entries of later steps, which a killed run left behind its last
            checkpoint, are dropped.
        tensorboard: also write TensorBoard's event files.
    """

    def __init__(self, folder: Path | None, *, done: int, steps: int, tensorboard: bool) -> None:
        self.folder, self.done, self.steps, self.tensorboard = folder, done, steps, tensorboard

    def __enter__(self) -> Logbook:
        self.log = self.writer = self.bar = None
        if self.folder is None:
            return self
        path = self.folder / "log.jsonl"
        kept = [json.dumps(entry) + "\n" for entry in read_log(path) if entry["step"] <= self.done]
        with replacing(path) as temporary:  # a full disk costs no entry
            temporary.write_text("".join(kept), encoding="utf-8")
        self.log = path.open("a", encoding="utf-8")
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.folder / "tensorboard", purge_step=self.done + 1)
        self.bar = tqdm(initial=self.done, total=self.steps, desc=self.folder.name, unit="step", disable=None)
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self.log, self.writer, self.bar):
            if part is not None:
                part.close()

    def advance(self) -> None:
        """One step is done."""
        if self.bar is not None:
            self.bar.update()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Numbers by name, among them "step"."""
        if self.log is None:
            return
        self.log.write(json.dumps(entry) + "\n")
        self.log.flush()
        tqdm.write(readable(entry))
        if self.writer is not None:
            for name, value in entry.items():
                self.writer.add_scalar(name, value, entry["step"])

    def show(self, images: Mapping[str, torch.Tensor], step: int) -> None:
        """One panel: the middle axial slice of each image (1, 1, X, Y, Z) in [-1, 1], side by side."""
        if self.writer is None:
            return
        slices = [image[0, 0, :, :, image.shape[-1] // 2].float().cpu().T.flip(0) for image in images.values()]
        panel = torch.cat(slices, dim=1).add(1).div(2).clamp(0, 1)
        self.writer.add_image(", ".join(images), panel, step, dataformats="HW")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a ``log.jsonl``, without one that a full disk or a crash cut short."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def readable(entry: Mapping[str, Any]) -> str:
    """Names and numbers in one line."""
    return "  ".join(f"{name} {float(value):.4g}" for name, value in entry.items())


def memory_gigabytes(device: str) -> float:
    """The most device memory held so far, or the process's memory now on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9
