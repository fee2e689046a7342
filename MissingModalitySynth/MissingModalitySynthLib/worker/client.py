"""The client of the worker: starts it, hands jobs over, and tells how they go. Importing this does not import torch."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import SynthesisError, WorkerError
from .exchange import create_folder, describe, read_array, remove_folder, restore, write_array
from .failures import CANCELLED, Failure, failure, failure_of
from .jobs import DeviceInfo, Job, Listener, SegmentationJob, TargetResult, WorkerInfo
from .protocol import PROTOCOL_VERSION, LineBuffer, ProtocolError, check_version, decode, encode
from .transports import Transport

# Cancelling takes at most the sum of both; a step of the diffusion can take longer than the first.
CANCEL_SECONDS = 1.0
KILL_SECONDS = 0.5
_OF_ANY_JOB = ("driver", "installation", "protocol")  # no job can succeed in a worker that has such a failure


@dataclass
class _Running:
    """The job under way: written, then sent, then answered, then read."""

    id: int
    job: Job | SegmentationJob
    listener: Listener
    folder: Path
    message: bytes | None = None
    sent: bool = False
    answered: bool = False
    cancelling: bool = False
    steps: Generator[None, None, Any] | None = field(default=None, repr=False)


class WorkerClient:
    """Runs one job at a time in a worker process that stays alive in between, and starts a new one when it has died.

    All callbacks come in the caller's thread: from Qt's event loop with ``QProcessTransport``, from :meth:`poll` with
    ``SubprocessTransport``. No call takes longer than a few milliseconds.

    Args:
        transport_factory: makes the transport of a new worker.
        log: gets every line that the worker's process prints, and what goes wrong beside a job.
        changed: called when ``state``, ``info`` or ``problem`` may have changed.
        temporary: where private folders are made; the system's temporary folder by default.

    Attributes:
        info: what is known of the worker that was started last; None before it has answered.
        problem: why no worker, or not the model, could be loaded; None if all is well.
    """

    def __init__(
        self,
        transport_factory: Callable[[], Transport],
        log: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
        temporary: Path | None = None,
    ) -> None:
        self.info: WorkerInfo | None = None
        self.problem: Failure | None = None
        self._factory, self._log, self._changed, self._temporary = transport_factory, log, changed, temporary
        self._transport: Transport | None = None
        self._leaving: list[Transport] = []  # kept until they have ended: Qt would wait for them in their destructor
        self._folder: Path | None = None
        self._alive = self._greeted = self._warm = False
        self._wanted: tuple[str | None, str | None] = (None, None)
        self._running: _Running | None = None
        self._jobs = 0

    @property
    def state(self) -> str:
        """``stopped``, ``starting`` (until torch and the model are loaded), ``idle`` or ``busy``."""
        if self._running is not None:
            return "busy"
        if not self._alive:
            return "stopped"
        return "idle" if self._warm else "starting"

    def start(self, package: Path | None = None, method: str | None = None) -> None:
        """Start the worker unless it runs, and let it load torch and a package's weights, so that a job starts at once.

        Raises:
            OutputError: the temporary folder cannot be written.
        """
        wanted = (None if package is None else os.fspath(package), method)
        if not self._alive:
            self._wanted = wanted
            self._launch()
        elif package is not None and wanted != self._wanted:
            self._wanted = wanted
            if self._greeted:
                self._load()
        self._changed()

    def synthesize(self, job: Job, listener: Listener) -> None:
        """Begin a job; the worker is started if there is none.

        Raises:
            WorkerError: another job is running.
            OutputError: the temporary folder cannot be written.
        """
        self._begin(job, listener, (os.fspath(job.package), job.method))

    def segment(self, job: SegmentationJob, listener: Listener) -> None:
        """As :meth:`synthesize`, for label maps: the results are by the keys of the job's sources."""
        self._begin(job, listener, (None, None))

    def _begin(self, job: Job | SegmentationJob, listener: Listener, wanted: tuple[str | None, str | None]) -> None:
        if self._running is not None:
            raise WorkerError("A job is running already: wait until it is done, or cancel it.")
        if not self._alive:
            self._wanted = wanted
            self._launch()
        self._jobs += 1
        running = _Running(self._jobs, job, listener, self._folder / f"job-{self._jobs}")
        self._running = running
        running.steps = _write(running)
        self._transport.call_later(0, partial(self._step, running, self._written))
        self._changed()

    def cancel(self) -> None:
        """Stop the job, if there is one: the worker is asked to, and killed if it has not within ``CANCEL_SECONDS``."""
        running = self._running
        if running is None or running.cancelling:
            return
        running.cancelling = True
        if running.sent and not running.answered:
            self._transport.write(encode("cancel", id=running.id))
            self._transport.call_later(CANCEL_SECONDS, partial(self._kill, running))
        else:
            self._transport.call_later(0, partial(self._end, running, running.listener.on_cancelled))

    def shutdown(self) -> None:
        """End the worker; a job is cancelled. Another job would start a new worker."""
        if self._alive:
            self._transport.write(encode("shutdown"))
            self._transport.close(KILL_SECONDS)
        self._forget()
        if self._running is not None:
            self._end(self._running, self._running.listener.on_cancelled)
        self._changed()

    def poll(self, timeout: float = 0.0) -> None:
        """Call what is due, and wait up to so many seconds for it; only ``SubprocessTransport`` needs this."""
        for transport in self._leaving[:]:
            transport.poll()
        if self._transport is not None and self._transport not in self._leaving:
            self._transport.poll(timeout)

    # --- the worker ---------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        self._folder = create_folder(Path(self._temporary or tempfile.gettempdir()))
        self._transport = transport = self._factory()
        self._lines, self._log_lines = LineBuffer(), LineBuffer()
        self._last_logged: deque[str] = deque(maxlen=1)
        self._alive, self._greeted, self._warm = True, False, False
        self.info = self.problem = None
        transport.start(
            partial(self._on_output, transport), partial(self._on_log, transport), partial(self._on_exit, transport)
        )
        folder = os.fspath(self._folder)
        transport.write(encode("hello", protocol=PROTOCOL_VERSION, client_pid=os.getpid(), folder=folder))

    def _load(self) -> None:
        self._warm = False
        self._transport.write(encode("load", package=self._wanted[0], method=self._wanted[1]))

    def _forget(self) -> None:
        """Have no worker any more: what still comes from it only goes to the log."""
        if self._alive:
            self._leaving.append(self._transport)
        self._alive = False
        if self._folder is not None and not (self._running and self._running.answered):
            remove_folder(self._folder)

    def _kill(self, running: _Running) -> None:
        if running is self._running and not running.answered:
            self._transport.kill()
            self._transport.call_later(KILL_SECONDS, partial(self._give_up, running))

    def _give_up(self, running: _Running) -> None:
        """End a job whose worker cannot be seen to die."""
        if running is self._running:
            self._forget()
            self._end(running, running.listener.on_cancelled)

    # --- what comes from it -------------------------------------------------------------------------------------------

    def _on_log(self, transport: Transport, data: bytes) -> None:
        buffer = self._log_lines if transport is self._transport else LineBuffer()
        for line in buffer.feed(data):
            text = line.decode("utf-8", "replace")
            self._last_logged.append(text)
            self._log(text)

    def _on_exit(self, transport: Transport, reason: str) -> None:
        if transport in self._leaving:
            self._leaving.remove(transport)
            return
        self._on_output(transport, b"\n")  # what was left of a last line
        self._on_log(transport, b"\n")
        said = f"; it said last: {self._last_logged[-1]}" if self._last_logged else ""
        when = "ended unexpectedly" if self._greeted else "did not start"
        self.problem = failure("worker_died", f"The worker {when} ({reason}{said}).")
        self._forget()
        self._leaving.remove(transport)
        running = self._running
        if running is None:
            self._log(self.problem.message)
        elif running.cancelling:
            self._end(running, running.listener.on_cancelled)
        elif not running.answered:  # else its files are complete
            self._end(running, partial(running.listener.on_failure, self.problem))
        self._changed()

    def _on_output(self, transport: Transport, data: bytes) -> None:
        if transport is not self._transport:
            return
        for line in self._lines.feed(data):
            if not self._alive:
                return
            try:
                act = self._understand(decode(line))
            except (ProtocolError, KeyError, TypeError, ValueError):
                self._log(line.decode("utf-8", "replace"))
            else:
                act()

    def _understand(self, message: Mapping[str, Any]) -> Callable[[], None]:
        """What a message asks for; nothing has been done yet, so that a message that lacks something does no harm.

        Raises:
            ProtocolError: of an unknown kind, or about no job of ours.
            KeyError, TypeError, ValueError: it lacks something.
        """
        kind, running = message["kind"], self._running
        if kind == "hello":
            devices = tuple(DeviceInfo(**fields) for fields in message.get("devices", ()))
            about = (message.get("version"), message.get("python"), message.get("pid"), message.get("torch"))
            return partial(self._greet, message["protocol"], WorkerInfo(*about, devices))
        if kind == "load":
            return partial(self._loaded, message["package"])
        if kind == "error" and message["id"] is None:
            found = Failure(message["error"], message["message"], message["remedy"])
            return partial(self._fail_worker, found)
        if running is None or not running.sent or running.answered or message["id"] != running.id:
            raise ProtocolError("A message is about no job of ours.")
        if kind == "progress":
            left = message["seconds_left"]
            return partial(
                self._progress,
                running,
                str(message["stage"]),
                float(message["fraction"]),
                message["target"],
                None if left is None else float(left),
            )
        if kind == "error":
            found = Failure(message["error"], message["message"], message["remedy"])
            return partial(self._fail_job, running, found)
        if kind == "result":
            return partial(self._answered, running, dict(message["targets"]), tuple(message["notices"]))
        raise ProtocolError(f"A message is of the unknown kind '{kind}'.")

    def _greet(self, protocol: object, info: WorkerInfo) -> None:
        try:
            check_version(protocol, "worker")
        except ProtocolError as error:
            self._fail_worker(failure_of(error))
            return
        self.info = info
        if not self._greeted:
            self._greeted = True
            self._load()
            self._send()
        self._changed()

    def _loaded(self, package: str | None) -> None:
        self._warm = self._warm or package == self._wanted[0]
        self._changed()

    def _fail_worker(self, found: Failure) -> None:
        self.problem = found
        self._log(f"{found.message} {found.remedy}")
        if found.kind in _OF_ANY_JOB:
            self._abandon()
            if self._running is not None:
                self._fail_job(self._running, found)
        else:  # the model cannot be loaded, but another one may be
            self._warm = True
        self._changed()

    def _abandon(self) -> None:
        self._transport.kill()
        self._forget()

    def _progress(
        self, running: _Running, stage: str, fraction: float, target: str | None, seconds_left: float | None
    ) -> None:
        if not running.cancelling:
            running.listener.on_progress(stage, fraction, target, seconds_left)

    def _fail_job(self, running: _Running, found: Failure) -> None:
        if found.kind in _OF_ANY_JOB and self._alive:  # it leaves by itself, but perhaps not before the next job
            self._abandon()
        if running.cancelling or found.kind == CANCELLED:
            self._end(running, running.listener.on_cancelled)
        else:
            self._end(running, partial(running.listener.on_failure, found))

    def _answered(self, running: _Running, targets: Mapping[str, Any], notices: tuple[str, ...]) -> None:
        running.answered = self._warm = True
        if running.cancelling:
            self._end(running, running.listener.on_cancelled)
            return
        running.steps = _read(running, targets, notices)
        self._step(running, self._read)

    # --- the job ------------------------------------------------------------------------------------------------------

    def _step(self, running: _Running, then: Callable[[_Running, Any], None]) -> None:
        """Do the next few milliseconds of reading or writing, and come back for more."""
        if running is not self._running or running.cancelling:
            return
        try:
            next(running.steps)
        except StopIteration as finished:
            then(running, finished.value)
        except (SynthesisError, OSError) as error:
            self._end(running, partial(running.listener.on_failure, failure_of(error)))
        else:
            self._transport.call_later(0, partial(self._step, running, then))

    def _written(self, running: _Running, message: bytes) -> None:
        running.message = message
        self._send()

    def _send(self) -> None:
        running = self._running
        if self._greeted and running is not None and running.message is not None and not running.cancelling:
            running.sent = True
            self._transport.write(running.message)

    def _read(self, running: _Running, results: Mapping[str, TargetResult]) -> None:
        self._end(running, partial(running.listener.on_result, results))

    def _end(self, running: _Running, tell: Callable[[], None]) -> None:
        """End the job: whatever it left is removed before the listener knows, which may begin the next one at once."""
        if running is not self._running:
            return
        self._running = None
        if running.steps is not None:
            running.steps.close()
        folder = running.folder.parent  # perhaps of a worker that has died since
        remove_folder(running.folder if self._alive and folder == self._folder else folder)
        self._changed()
        tell()


def _write(running: _Running) -> Generator[None, None, bytes]:
    """Write the volumes of a job; returns its message.

    Raises:
        InputError: the voxels of a volume are no real numbers.
        OSError: a file cannot be written.
    """
    job, folder = running.job, running.folder
    folder.mkdir(mode=0o700)
    sources = {}
    for number, (modality, volume) in enumerate(job.sources.items()):
        file = folder / f"source-{number}.npy"
        yield from write_array(volume.array, file)
        sources[modality] = describe(volume, file)
    common = {"id": running.id, "folder": os.fspath(folder), "sources": sources, "package": os.fspath(job.package)}
    if isinstance(job, SegmentationJob):
        return encode("segment", device=job.device, **common)
    return encode(
        "synthesize",
        **common,
        targets=list(job.targets),
        method=job.method,
        device=job.device,
        steps=None if job.steps is None else int(job.steps),
        samples=int(job.samples),
        seed=int(job.seed),
        reference=job.reference,
        spacing=None if job.spacing is None else [float(value) for value in job.spacing],
    )


def _read(
    running: _Running, targets: Mapping[str, Any], notices: tuple[str, ...]
) -> Generator[None, None, dict[str, TargetResult]]:
    """Read the volumes of a result; returns them by target.

    Raises:
        ProtocolError: the message or a file is not what it should be.
        OSError: a file cannot be read.
    """
    results = {}
    try:
        for target, made in targets.items():
            volumes = []
            for name in ("volume", "std"):
                array = None if made[name] is None else (yield from read_array(running.folder / made[name]["file"]))
                volumes.append(None if array is None else restore(made[name], array))
            results[target] = TargetResult(*volumes, made["provenance"], notices)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"The worker's result cannot be understood ({error!r}).") from error
    return results
