"""Observations of VTK objects that can all be ended at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Observations:
    """Keeps the tags of observers, so that nothing calls back after ``clear``."""

    def __init__(self) -> None:
        self._tags: list[tuple[Any, int]] = []

    def add(self, observed, event: int | str, callback: Callable[..., None]) -> None:
        """Call ``callback(caller, event)``, or what its ``vtk.calldata_type`` asks for, on every ``event``."""
        self._tags.append((observed, observed.AddObserver(event, callback)))

    def clear(self, observed=None) -> None:
        """End the observations of one object, or all of them."""
        kept = []
        for known, tag in self._tags:
            if observed is None or known is observed:
                known.RemoveObserver(tag)
            else:
                kept.append((known, tag))
        self._tags = kept
