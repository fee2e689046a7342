"""What the worker costs beside the bare engine, at 192x192x144, as a table.

    python Testing/benchmark/worker.py [--package micro] [--method METHOD] [--size 192 192 144] [--runs 3] [--qt]

First progress: from the call of ``synthesize`` with a warm worker to the first ``on_progress``. Overhead: seconds from
that call to ``on_result`` beyond those of ``synthesis.synthesize`` in this process, for the same head; the fastest of
all runs of each. Longest block: the longest time that any call or callback of the client kept this thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import psutil
from pipeline import phantom, print_table

from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.volume import Volume
from MissingModalitySynthLib.worker.client import WorkerClient
from MissingModalitySynthLib.worker.jobs import Job
from MissingModalitySynthLib.worker.processes import worker_command, worker_environment
from MissingModalitySynthLib.worker.transports import QProcessTransport, SubprocessTransport

LIMITS = {"first progress": 1.0, "overhead": 1.5, "longest block": 0.05}


class Timed:
    """A listener that notes when it was told what."""

    def __init__(self) -> None:
        self.first = self.end = None

    def on_progress(self, stage, fraction, target, seconds_left) -> None:
        self.first = self.first or time.perf_counter()

    def on_result(self, results) -> None:
        self.end = time.perf_counter()

    def on_failure(self, failure) -> None:
        raise SystemExit(f"{failure.message} {failure.remedy}")

    def on_cancelled(self) -> None:
        raise SystemExit("The run was cancelled.")


class Blocked:
    """A transport that notes how long each call of its client takes."""

    def __init__(self, transport) -> None:
        self.transport, self.longest = transport, 0.0

    def timed(self, function: Callable) -> Callable:
        def call(*arguments):
            started = time.perf_counter()
            function(*arguments)
            self.longest = max(self.longest, time.perf_counter() - started)

        return call

    def start(self, *callbacks) -> None:
        self.timed(self.transport.start)(*(self.timed(callback) for callback in callbacks))

    def call_later(self, seconds, function) -> None:
        self.transport.call_later(seconds, self.timed(function))

    def __getattr__(self, name):
        return getattr(self.transport, name)


def event_loop(with_qt: bool) -> tuple[Callable, Callable[[WorkerClient], None]]:
    """A transport factory, and a function that handles the events of a client for a moment."""
    if not with_qt:
        return partial(SubprocessTransport, worker_command(), worker_environment()), lambda client: client.poll(0.05)
    from PySide6.QtCore import QCoreApplication, QEventLoop, QProcess, QProcessEnvironment, QTimer

    application = QCoreApplication([])
    loop = QEventLoop(application)
    qt = SimpleNamespace(QProcess=QProcess, QProcessEnvironment=QProcessEnvironment, QTimer=QTimer)

    def handle_events(client: WorkerClient) -> None:
        QTimer.singleShot(10, loop.quit)
        loop.exec()

    return partial(QProcessTransport, qt, worker_command(), worker_environment()), handle_events


def measure(
    job: Job, runs: int, factory: Callable, handle_events: Callable[[WorkerClient], None]
) -> tuple[float, float, float, float]:
    """Seconds of the bare engine, of the warm worker, to its first progress (slowest run), and the longest block.

    Both take turns, so that what else the machine does hits both.
    """
    transports = []

    def make():
        transports.append(Blocked(factory()))
        return transports[-1]

    client = WorkerClient(make, lambda line: print(f"worker: {line}"))
    client.start(job.package, job.method)
    while client.state != "idle":
        handle_events(client)
    engine = bare_engine(job)
    firsts, totals, bare = [], [], []
    for number in range(runs + 1):
        listener, started = Timed(), time.perf_counter()
        transports[0].timed(client.synthesize)(job, listener)
        while listener.end is None:
            handle_events(client)
        firsts.append(listener.first - started)
        totals.append(listener.end - started)
        started = time.perf_counter()
        engine()
        bare.append(time.perf_counter() - started)
        if number == 0:  # the first runs are there to warm up
            firsts, totals, bare = [], [], []
    client.shutdown()
    while psutil.pid_exists(client.info.pid):
        handle_events(client)
    return min(bare), min(totals), max(firsts), transports[0].longest


def bare_engine(job: Job) -> Callable[[], object]:
    """A function that does the job in this process."""
    from MissingModalitySynthLib.device import keep_large_blocks
    from MissingModalitySynthLib.request import Request
    from MissingModalitySynthLib.synthesis import synthesize

    keep_large_blocks()
    sources = {
        name: Volume(volume.array.astype(np.float32), volume.geometry, volume.name)
        for name, volume in job.sources.items()
    }
    return partial(synthesize, Request(sources, job.targets, load_package(job.package), method=job.method))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="micro")
    parser.add_argument("--method")
    parser.add_argument("--size", type=int, nargs=3, default=(192, 192, 144))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--qt", action="store_true", help="QProcess in PySide6's event loop instead of subprocess")
    arguments = parser.parse_args()

    head = phantom(tuple(arguments.size))
    rows, loop = [], event_loop(arguments.qt)
    for dtype in (np.int16, np.float32):
        volume = Volume(np.asfortranarray(head.array.astype(dtype)), head.geometry, "phantom")  # as Slicer's memory is
        package = load_package(arguments.package)
        job = Job({"T1": volume}, ["FLAIR"], package.path, arguments.method or package.default_method)
        bare, total, first, block = measure(job, arguments.runs, *loop)
        measured = {"first progress": first, "overhead": total - bare, "longest block": block}
        texts = [f"{measured[name]:.3f} (limit {limit})" for name, limit in LIMITS.items()]
        rows.append([np.dtype(dtype).name, f"{bare:.2f}", f"{total:.2f}", *texts])
    print(f"{' x '.join(map(str, arguments.size))}, T1 to FLAIR, seconds\n")
    print_table(["voxels", "bare engine", "with worker", *LIMITS], rows)


if __name__ == "__main__":
    main()
