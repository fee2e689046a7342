"""What the command line prints: progress and remarks on stderr, results on stdout, in words or as JSON lines."""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import Cancelled, OutOfMemoryError, SynthesisError

if TYPE_CHECKING:
    from .progress import Progress

PROGRAM = "missing-modality-synth"


class UsageError(SynthesisError):
    """A command line that is not understood."""

    exit_code = 2


class Console:
    """Where a command reports to.

    On stdout goes what a program may want to read: with ``as_json`` one JSON object per line, each with an "event" of
    "progress", "result" or "error"; otherwise text. Everything else goes to stderr.

    Args:
        as_json: JSON lines instead of words, and no bar.
        quiet: neither bar nor remarks.
        debug: the traceback of an error beside its sentence.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.as_json, self.quiet, self.debug = as_json, quiet, debug
        self._bar = None

    def progress(self, progress: Progress) -> None:
        """Show how far a run is: a JSON line, or a bar if stderr is a terminal."""
        if self.as_json:
            self._line("progress", dataclasses.asdict(progress))
        elif not self.quiet:
            bar = self._open_bar()
            words = f"{progress.target}: {progress.stage}" if progress.target else progress.stage
            left = progress.seconds_left
            bar.n = round(100 * progress.fraction)
            bar.set_description_str(f"{words:28}", refresh=False)
            bar.set_postfix_str("" if left is None else f"about {_duration(left)} left", refresh=False)
            bar.refresh()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def remark(self, sentence: str) -> None:
        """Say what is good to know, unless that was not wanted."""
        if not self.quiet and not self.as_json:
            self._say(sentence)

    def note(self, sentence: str) -> None:
        """Say what must not be overlooked; in JSON, results carry their notices themselves."""
        if not self.as_json:
            self._say(f"{PROGRAM}: note: {sentence}")

    def result(self, fields: Mapping[str, Any], text: str) -> None:
        """Print a result: its fields as JSON, or the text."""
        if self.as_json:
            self._line("result", fields)
        else:
            self.close()
            print(text, flush=True)

    def error(self, error: BaseException) -> int:
        """Say what went wrong in one sentence; the exit code that goes with it."""
        if self.debug:
            self.close()
            traceback.print_exception(error)
        known = _as_known(error)
        message, code = str(known), known.exit_code
        self._say(f"{PROGRAM}: {'' if isinstance(known, Cancelled) else 'error: '}{message}")
        if self.as_json:
            kind = type(error if code == 1 else known).__name__
            self._line("error", {"type": kind, "message": message, "exit_code": code})
        return code

    def _say(self, sentence: str) -> None:
        self.close()
        print(sentence, file=sys.stderr, flush=True)

    def _line(self, event: str, fields: Mapping[str, Any]) -> None:
        print(json.dumps({"event": event, **fields}), flush=True)

    def _open_bar(self):
        if self._bar is None:
            from tqdm import tqdm

            shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}"
            # disable=None: no bar where stderr is no terminal
            self._bar = tqdm(
                total=100, bar_format=shape, file=sys.stderr, disable=None, leave=False, dynamic_ncols=True
            )
        return self._bar


def _as_known(error: BaseException) -> SynthesisError:
    """The named error that stands for any other."""
    if isinstance(error, SynthesisError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Cancelled("Cancelled; nothing was kept.")
    if isinstance(error, MemoryError):
        return OutOfMemoryError("The memory of this computer does not suffice; crop the volume or free memory.")
    reason = " ".join(str(error).split())
    return SynthesisError(
        f"Unexpected {type(error).__name__} ({reason}): a defect of the program; --debug shows where, please report it."
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{max(seconds, 1):.0f} s"


def table(rows: Iterable[Sequence[object]]) -> str:
    """Rows of cells as text, in columns as wide as needed; the last column is not padded."""
    rows = [[str(cell) for cell in row] for row in rows]
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )
