"""What client and worker say to each other: JSON objects, one per line, in UTF-8.

Every message has a "kind"; those about a job have its "id" too.

============ =========== ==============================================================================================
kind         from        fields
============ =========== ==============================================================================================
hello        client      protocol, client_pid, folder: the first message; folder is the private temporary folder
hello        worker      protocol, version, python, pid: at once; again with torch and devices once they are known
load         client      package, method (both may be null): import torch and load the weights
load         worker      package: done
synthesize   client      id, folder, sources, targets, package, method, device, steps, samples, seed, reference, spacing
segment      client      id, folder, sources, package, device
progress     worker      id, stage, fraction, target, seconds_left
result       worker      id, targets, notices: the files are complete
error        worker      id (null if it concerns no job), error: a kind of ``failures`` or "cancelled"; message, remedy
cancel       client      id: stop at the next step
shutdown     client      leave; so does the end of stdin
============ =========== ==============================================================================================
"""

from __future__ import annotations

import json
from typing import Any

from ..errors import WorkerError

PROTOCOL_VERSION = 1
MAX_LINE = 16 << 20  # bytes; no message comes near it
_SHOWN = 500  # bytes of an overlong line that are kept, for the log


class ProtocolError(WorkerError):
    """A line that is no message, or a side that speaks another version."""


def encode(kind: str, **fields: Any) -> bytes:
    """One message as a line. Characters beyond ASCII are escaped, so no encoding of a pipe can harm them."""
    return json.dumps({"kind": kind, **fields}).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line.

    Raises:
        ProtocolError: it holds no JSON object with a "kind".
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("A line is no JSON.") from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ProtocolError("A line is no message.")
    return message


def check_version(theirs: object, other: str) -> None:
    """Compare the version in the other side's hello with our own.

    Raises:
        ProtocolError: they differ; ``other`` names the other side.
    """
    if theirs != PROTOCOL_VERSION:
        raise ProtocolError(
            f"The {other} speaks version {theirs} of the worker's protocol, this side version {PROTOCOL_VERSION}: "
            "they come from two different installations."
        )


class LineBuffer:
    """Cuts a stream of chunks into lines; of a line longer than ``MAX_LINE`` only the beginning is kept."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that the chunk completes, without their ends; empty lines are left out."""
        lines = []
        searched = len(self._rest)
        self._rest += data
        while (end := self._rest.find(b"\n", searched)) >= 0:
            if not self._skipping:
                lines.append(bytes(self._rest[:end]).rstrip(b"\r"))
            del self._rest[: end + 1]
            self._skipping, searched = False, 0
        if len(self._rest) > MAX_LINE:
            if not self._skipping:
                lines.append(bytes(self._rest[:_SHOWN]) + b" ...")
            self._skipping = True
        if self._skipping:
            self._rest.clear()
        return [line for line in lines if line.strip()]
