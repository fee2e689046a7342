"""The worker's process: one thread reads messages, one watches the client, the main thread computes."""

from __future__ import annotations

import faulthandler
import os
import platform
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from .. import __version__
from ..errors import Cancelled
from ..progress import Progress
from .exchange import remove_folder, sweep
from .failures import CANCELLED, failure_of
from .jobs import START
from .protocol import PROTOCOL_VERSION, LineBuffer, ProtocolError, check_version, decode, encode

_CHUNK = 1 << 16
_WATCH_SECONDS = 1.0
_IDLE_SECONDS = 60.0


def main() -> None:
    """Serve the client at the other end of stdin and stdout until it has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the client, which decides about the worker
    faulthandler.enable()  # a crash in native code leaves a trace in the log
    commands, replies = _claim_channels()
    server = Server(replies)
    threading.Thread(target=server.listen, args=(commands,), daemon=True).start()
    server.work()


def _claim_channels() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout for messages alone: what libraries print, even from native code, goes to stderr instead."""
    commands, replies = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return commands, replies


class Server:
    """Answers messages.

    Args:
        replies: where messages to the client go.
    """

    def __init__(self, replies: BinaryIO) -> None:
        self._replies = replies
        self._writing = threading.Lock()
        self._tasks: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._folder: Path | None = None
        self._job: int | None = None
        self._cancelled = threading.Event()

    # --- the thread that reads ----------------------------------------------------------------------------------------

    def listen(self, commands: BinaryIO) -> None:
        """Handle messages until the client closes the stream, then leave, whatever is being computed."""
        buffer = LineBuffer()
        try:
            while data := commands.read(_CHUNK):
                for line in buffer.feed(data):
                    try:
                        message = decode(line)
                    except ProtocolError as error:
                        print(f"{error} It was ignored: {line[:200]!r}", file=sys.stderr)
                    else:
                        self._handle(message)
        except Exception:  # this thread's outermost boundary; a worker that hears nothing any more is of no use
            traceback.print_exc()
        finally:
            self._leave()

    def _handle(self, message: Mapping[str, Any]) -> None:
        kind, job = message["kind"], message.get("id")
        if kind == "hello":
            self._greet(message)
        elif kind == "shutdown":
            self._leave()
        elif self._folder is None:
            self._fail(job, ProtocolError(f"The worker was asked to {kind} before it was greeted."))
        elif kind == "load":
            self._tasks.put(message)
        elif kind in ("synthesize", "segment") and self._job is not None:
            busy = f"The worker is busy with job {self._job}; job {job} was refused."
            self._fail(job, ProtocolError(busy))
        elif kind in ("synthesize", "segment"):
            self._job = job
            self._cancelled.clear()
            self._report(job, Progress(START, 0.0))
            self._tasks.put(message)
        elif kind == "cancel":
            if job == self._job:  # else it ended while the message was on its way
                self._cancelled.set()
        else:
            print(f"A message of the unknown kind '{kind}' was ignored.", file=sys.stderr)

    def _greet(self, message: Mapping[str, Any]) -> None:
        try:
            check_version(message.get("protocol"), "application")
        except ProtocolError as error:
            print(error, file=sys.stderr)
            self._fail(None, error)
            self._leave()
        self._folder = Path(message["folder"])
        self._hello()
        threading.Thread(target=self._watch, args=(message["client_pid"],), daemon=True).start()

    def _hello(self, **more: Any) -> None:
        about = {"version": __version__, "python": platform.python_version(), "pid": os.getpid()}
        self._send("hello", protocol=PROTOCOL_VERSION, **about, **more)

    # --- the thread that watches --------------------------------------------------------------------------------------

    def _watch(self, client_pid: int) -> None:
        """Sweep what dead processes left, then leave when the client dies: a launcher may keep our stdin open."""
        try:
            import psutil
        except ImportError:  # "load" tells the client what is missing
            return
        sweep(self._folder.parent)
        try:
            client = psutil.Process(client_pid)
            while client.is_running() and client.status() != psutil.STATUS_ZOMBIE:
                time.sleep(_WATCH_SECONDS)
        except psutil.NoSuchProcess:
            pass  # it died between two questions
        self._leave()

    # --- the main thread ----------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Compute what messages ask for, one after another, for ever."""
        while True:
            try:
                message = self._tasks.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                message = self._rest()
            if message["kind"] == "load":
                self._attempt(None, self._load, message)
            else:
                self._attempt(message["id"], self._run, message)

    def _rest(self) -> Mapping[str, Any]:
        """The next message, after a while without any: until it comes, other programs have the memory."""
        if computing := sys.modules.get(f"{__package__}.computing"):
            computing.release_memory()
        return self._tasks.get()

    def _attempt(self, job: int | None, task: Callable[[Mapping[str, Any]], None], message: Mapping[str, Any]) -> None:
        try:
            task(message)
        except Exception as error:  # the outermost boundary: every error ends as one message
            if not isinstance(error, Cancelled):
                traceback.print_exception(error)
            if job is not None:
                self._job = None
            self._fail(job, error)
            # Neither a half-loaded library nor a broken GPU context heals.
            if failure_of(error).kind in ("driver", "installation"):
                self._leave()

    def _load(self, message: Mapping[str, Any]) -> None:
        computing = _computing()
        self._hello(torch=computing.torch.__version__, devices=computing.devices())
        computing.load(message["package"], message["method"])
        self._send("load", package=message["package"])

    def _run(self, message: Mapping[str, Any]) -> None:
        job, computing = message["id"], _computing()
        task = computing.segment if message["kind"] == "segment" else computing.run
        fields = task(message, lambda progress: self._report(job, progress), self._cancelled.is_set)
        self._job = None  # before the client knows, which may send the next one at once
        self._send("result", id=job, **fields)

    # --- what all threads use -----------------------------------------------------------------------------------------

    def _report(self, job: int, progress: Progress) -> None:
        about = {"target": progress.target, "seconds_left": progress.seconds_left}
        self._send("progress", id=job, stage=progress.stage, fraction=progress.fraction, **about)

    def _fail(self, job: int | None, error: Exception) -> None:
        if isinstance(error, Cancelled):
            self._send("error", id=job, error=CANCELLED, message=str(error), remedy="")
            return
        found = failure_of(error)
        self._send("error", id=job, error=found.kind, message=found.message, remedy=found.remedy)

    def _send(self, kind: str, **fields: Any) -> None:
        data = encode(kind, **fields)
        with self._writing:
            try:
                while data:
                    data = data[self._replies.write(data) :]
            except OSError:  # nobody reads any more
                self._leave()

    def _leave(self) -> None:
        """End this process at once, also in the middle of a computation, and leave no file behind."""
        if self._folder is not None:
            remove_folder(self._folder)
        sys.stderr.flush()
        os._exit(0)


def _computing() -> ModuleType:
    try:
        from . import computing
    except OSError as error:  # a library of torch that Windows cannot load
        raise ImportError(str(error)) from error
    return computing
