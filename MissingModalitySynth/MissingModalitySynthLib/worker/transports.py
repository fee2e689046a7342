"""Two ways to run the worker's process behind one interface: Qt's in Slicer, Python's own elsewhere."""

from __future__ import annotations

import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, BinaryIO, Protocol

from .processes import NO_WINDOW, kill_tree

OnData = Callable[[bytes], None]
OnExit = Callable[[str], None]
_CHUNK = 1 << 16


class Transport(Protocol):
    """One run of a process, and the event loop of the thread that uses it.

    All callbacks come in that thread, and none from within a call of these methods but ``poll``.
    """

    def start(self, on_output: OnData, on_log: OnData, on_exit: OnExit) -> None:
        """Start the process.

        Args:
            on_output: gets chunks of its stdout.
            on_log: gets chunks of its stderr.
            on_exit: called once, after all output, with the reason in words; also if it cannot be started.
        """

    def write(self, data: bytes) -> None:
        """Write to the process's stdin; without effect if it has died."""

    def kill(self) -> None:
        """Kill the process and all its descendants; ``on_exit`` follows."""

    def close(self, grace: float) -> None:
        """Close the process's stdin, and kill it if it is still there after so many seconds."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function once, from the event loop, also when the process has ended."""

    def poll(self, timeout: float = 0.0) -> None:
        """Call what is due; wait up to so many seconds for it. Does nothing where an event loop does this by itself."""


class SubprocessTransport:
    """A process of ``subprocess``, its events collected by threads and handed over by :meth:`poll`.

    Args:
        command: program and arguments.
        environment: all environment variables.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._events: queue.SimpleQueue[tuple[Callable[[Any], None], Any]] = queue.SimpleQueue()
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def start(self, on_output: OnData, on_log: OnData, on_exit: OnExit) -> None:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        try:
            self._process = subprocess.Popen(
                self._command,
                **pipes,
                env=self._environment,
                bufsize=0,
                creationflags=NO_WINDOW,
                start_new_session=True,  # on POSIX a process group of its own; Ctrl-C in a terminal does not reach it
            )
        except OSError as error:
            self._events.put((on_exit, f"{self._command[0]} cannot be started ({error.strerror})"))
            return
        readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self._process.stdout, on_output), (self._process.stderr, on_log))
        ]
        for thread in (*readers, threading.Thread(target=self._wait, args=(readers, on_exit), daemon=True)):
            thread.start()

    def write(self, data: bytes) -> None:
        if self._process is None:
            return
        try:
            self._process.stdin.write(data)
        except (OSError, ValueError):  # it died or was closed; on_exit tells
            return

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            kill_tree(self._process.pid)

    def close(self, grace: float) -> None:
        if self._process is None:
            return
        try:
            self._process.stdin.close()
        except OSError:  # it died
            pass
        timer = threading.Timer(grace, self.kill)
        timer.daemon = True
        timer.start()

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + seconds, function))

    def poll(self, timeout: float = 0.0) -> None:
        for time_left in [due - time.monotonic() for due, _ in self._timers]:
            timeout = max(0.0, min(timeout, time_left))
        if timeout:
            try:
                self._handle(self._events.get(timeout=timeout))
            except queue.Empty:
                pass
        for _ in range(self._events.qsize()):  # not those that come meanwhile: this ends
            self._handle(self._events.get())
        now = time.monotonic()
        for timer in [timer for timer in self._timers if timer[0] <= now]:
            self._timers.remove(timer)
            timer[1]()

    @staticmethod
    def _handle(event: tuple[Callable[[Any], None], Any]) -> None:
        callback, value = event
        callback(value)

    def _read(self, stream: BinaryIO, callback: OnData) -> None:
        with stream:
            while data := stream.read(_CHUNK):
                self._events.put((callback, data))

    def _wait(self, readers: Sequence[threading.Thread], on_exit: OnExit) -> None:
        code = self._process.wait()
        self._process.stdin.close()
        for thread in readers:
            thread.join(timeout=1.0)  # a descendant that survived may keep the pipe open
        self._events.put((on_exit, _signal_name(-code) if code < 0 else f"exit code {code}"))


class QProcessTransport:
    """A process of Qt, whose signals come from Qt's event loop: Python's threads hardly run while that loop idles.

    Works with Slicer's PythonQt and with PySide6: signals are connected as attributes; slots take what both pass.

    Args:
        qt: a module with QProcess, QProcessEnvironment and QTimer.
        command: program and arguments.
        environment: all environment variables.
    """

    def __init__(self, qt: ModuleType, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._qt = qt
        self._command = list(command)
        self._process = qt.QProcess()  # kept, as dropping the last reference kills the process
        variables = qt.QProcessEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        self._process.setProcessEnvironment(variables)

    def start(self, on_output: OnData, on_log: OnData, on_exit: OnExit) -> None:
        self._on_output, self._on_log, self._on_exit = on_output, on_log, on_exit
        process = self._process
        process.readyReadStandardOutput.connect(self._read_output)
        process.readyReadStandardError.connect(self._read_log)
        process.finished.connect(self._finished)  # PythonQt passes the exit code alone
        process.errorOccurred.connect(self._failed)
        process.start(self._command[0], self._command[1:])

    def write(self, data: bytes) -> None:
        if self._is_running():
            self._process.write(data)

    def kill(self) -> None:
        if pid := int(self._process.processId()):
            kill_tree(pid)

    def close(self, grace: float) -> None:
        if self._is_running():
            self._process.closeWriteChannel()
            self.call_later(grace, self.kill)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self._qt.QTimer.singleShot(round(1000 * seconds), function)

    def poll(self, timeout: float = 0.0) -> None:
        """Nothing is to be done: Qt's event loop calls."""

    def _is_running(self) -> bool:
        return self._process.state() != self._qt.QProcess.NotRunning

    def _read_output(self) -> None:
        if data := self._process.readAllStandardOutput().data():
            self._on_output(data)

    def _read_log(self) -> None:
        if data := self._process.readAllStandardError().data():
            self._on_log(data)

    def _finished(self, code: int) -> None:
        self._read_output()
        self._read_log()
        crashed = self._process.exitStatus() == self._qt.QProcess.CrashExit
        self._on_exit(_signal_name(code) if crashed else f"exit code {code}")

    def _failed(self, error: object) -> None:
        if error == self._qt.QProcess.FailedToStart:  # after any other error, finished comes too
            self.call_later(0, self._report_failed_start)

    def _report_failed_start(self) -> None:
        self._on_exit(f"{self._command[0]} cannot be started ({self._process.errorString()})")


def _signal_name(number: int) -> str:
    """A signal in words; Windows has crash codes instead."""
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"crashed with code {number}"
