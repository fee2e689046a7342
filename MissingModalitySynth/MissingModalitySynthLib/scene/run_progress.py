"""How far a run is, in all and target by target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TargetProgress:
    """Percent (0 to 100) of one target, and the seconds until it is made, None while unknown."""

    target: str
    percent: int
    seconds_left: float | None


class RunProgress:
    """Collects the messages of a run. Targets are made one after the other, in equal shares of what is left.

    Attributes:
        stage: the stage as the engine calls it.
        fraction: of the whole run, 0 to 1.
        target: the one being made, None before and after.
        seconds_left: of the whole run, None while unknown: what comes before the first target tells nothing of it.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = tuple(targets)
        self.stage, self.target = "", None
        self.fraction, self.seconds_left = 0.0, None
        self._began: dict[str, float] = {}

    def update(self, stage: str, fraction: float, target: str | None, seconds_left: float | None) -> None:
        self.stage, self.target = stage, target
        self.fraction = min(max(fraction, self.fraction), 1.0)
        if target in self.targets:
            self._began.setdefault(target, self.fraction)
        self.seconds_left = seconds_left if self._began else None

    def by_target(self) -> list[TargetProgress]:
        """Every target in the order of making."""
        current = len(self._began) - 1
        begin = max(self._began.values(), default=self.fraction)
        share = (1 - begin) / (len(self.targets) - max(current, 0))
        rows = []
        for position, target in enumerate(self.targets):
            end = begin + share * (position - max(current, 0) + 1)
            if position < current or self.fraction >= 1:
                rows.append(TargetProgress(target, 100, 0.0))
                continue
            done = (self.fraction - begin) / share if position == current and share else 0.0
            left = None
            if self.seconds_left is not None:
                left = self.seconds_left * max(end - self.fraction, 0.0) / (1 - self.fraction)
            rows.append(TargetProgress(target, min(int(100 * done), 99), left))
        return rows
