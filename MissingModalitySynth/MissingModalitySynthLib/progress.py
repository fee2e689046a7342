"""How far a run is, how long each stage took, and whether the user wants it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import Cancelled

# Rough shares of time on a CPU. They only shape the progress bar; the time left is measured, not assumed. Only
# zero-shot synthesis takes long to condition, which the bar rather jumps over than waits for.
_UNITS = {
    "load model": 1.0,
    "prepare": 3.0,
    "find brain": 10.0,
    "encode": 0.5,
    "condition": 7.0,
    "step": 9.0,
    "decode": 1.0,
    "native grid": 0.5,
}
_ALWAYS = ("load model", "prepare")
_BEFORE = (*_ALWAYS, "find brain")  # the stages before the networks run


@dataclass(frozen=True)
class Progress:
    """A stage in words, the target it works for, the fraction of the run done, and the seconds left once known."""

    stage: str
    fraction: float
    target: str | None = None
    seconds_left: float | None = None


class Run:
    """Follows one run through its stages.

    Args:
        report: called at the beginning of every stage and step.
        cancelled: asked at the same moments.
        targets, samples, steps: how many of them the run will go through.

    Attributes:
        seconds: time per stage so far.
    """

    def __init__(
        self,
        report: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        targets: int,
        samples: int = 1,
        steps: int = 1,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._cancelled = cancelled
        self._started = time.monotonic()
        self._counts = (targets, samples, [steps])
        self._done = 0.0
        self._shown = 0.0
        self._joint = self._stepped = False

    def expect(self, samples: int, steps: Sequence[int], joint: bool = False) -> None:
        """Correct what was assumed, once the translator is known; also where a run begins again on another device.

        ``steps``: of every piece that the image is made in. ``joint``: all targets are made in the steps of the first.
        """
        self._counts = (self._counts[0], samples, list(steps))
        self._joint = joint
        self._done = sum(_UNITS[name] for name in _BEFORE if name in self.seconds)

    def next_piece(self) -> None:
        """Another piece of the image begins."""
        self._stepped = False

    def go_on(self, stage: str) -> None:
        """Announce a stage once more, within it.

        Raises:
            Cancelled: when the user wants to stop.
        """
        self._announce(stage, None)

    @contextmanager
    def stage(self, name: str, target: str | None = None) -> Iterator[None]:
        """Announce a stage and measure it.

        Raises:
            Cancelled: when the user wants to stop.
        """
        self._announce(name, target)
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
        self._done += _UNITS.get(name, 0.0)

    def on_step(self, target: str) -> Callable[[int, int], None]:
        """The callback of a sampler: announces every step.

        Raises:
            Cancelled: when the user wants to stop.
        """

        unit = 0.0 if self._joint and self._stepped else _UNITS["step"]
        self._stepped = True

        def announce(step: int, steps: int) -> None:
            self._done += unit if step else 0.0
            self._announce(f"step {step + 1} of {steps}", target)
            if step + 1 == steps:
                self._done += unit

        return announce

    def _announce(self, stage: str, target: str | None) -> None:
        if self._cancelled():
            raise Cancelled("Cancelled; nothing was kept.")
        targets, samples, pieces = self._counts
        sampling = sum(_UNITS["condition"] + samples * steps * _UNITS["step"] for steps in pieces)
        made = len(pieces) * (_UNITS["encode"] + targets * samples * _UNITS["decode"])
        work = sampling * (1 if self._joint else targets) + made
        rest = sum(_UNITS[name] for name in _BEFORE if name in self.seconds or name in _ALWAYS) + _UNITS["native grid"]
        fraction = min(self._done / (rest + work), 1.0)
        elapsed = time.monotonic() - self._started
        left = elapsed * (1 - fraction) / fraction if fraction > 0.1 else None
        self._shown = max(self._shown, fraction)  # more steps than assumed, or a second start: the bar waits
        self._report(Progress(stage, self._shown, target, left))
