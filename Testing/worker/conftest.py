"""Clients of real worker processes, and the check that every one of them leaves nothing behind."""

import sys
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.worker.client import WorkerClient
from MissingModalitySynthLib.worker.jobs import Job
from MissingModalitySynthLib.worker.processes import worker_command, worker_environment
from MissingModalitySynthLib.worker.transports import QProcessTransport, SubprocessTransport

SECONDS = 60  # after which a test is given up

# The worker with a tiny engine in the place of the real one, so that it starts without torch. {} is the body of `run`.
FAKE_ENGINE = """
import os, sys, time, types
from MissingModalitySynthLib.errors import *
from MissingModalitySynthLib.progress import Progress
from MissingModalitySynthLib.worker import server
def run(message, progress, cancelled):
    progress(Progress("compute", 0.5, "T2", 3.0))
{}
    return {{"targets": {{}}, "notices": []}}
engine = types.ModuleType("MissingModalitySynthLib.worker.computing")
engine.torch = types.SimpleNamespace(__version__="none")
engine.run, engine.devices, engine.load, engine.release_memory = run, list, lambda *_: None, lambda: None
sys.modules[engine.__name__] = engine
server.main()
"""


class Recorder:
    """A listener that keeps what it was told."""

    def __init__(self):
        self.progress, self.ends = [], []

    def on_progress(self, *arguments):
        self.progress.append(arguments)

    def on_result(self, results):
        self.ends.append(("result", results))

    def on_failure(self, failure):
        self.ends.append(("failure", failure))

    def on_cancelled(self):
        self.ends.append(("cancelled", None))

    @property
    def failure(self):
        ((kind, failure),) = self.ends
        assert kind == "failure"
        return failure

    @property
    def results(self):
        ((kind, results),) = self.ends
        assert kind == "result", results
        return results


def python(code):
    """The command that runs some Python."""
    return [sys.executable, "-c", code]


def fake_worker(*lines):
    """The command of a worker whose engine runs these lines."""
    return python(FAKE_ENGINE.format("\n".join(f"    {line}" for line in lines)))


@pytest.fixture(scope="session")
def qt():
    """Function that handles Qt's events for a moment, and the names that Slicer's module `qt` has."""
    from PySide6 import QtCore

    application = QtCore.QCoreApplication.instance() or QtCore.QCoreApplication([])
    names = {name: getattr(QtCore, name) for name in ("QProcess", "QProcessEnvironment", "QTimer")}

    def handle_events():
        application.processEvents()
        time.sleep(0.005)

    yield SimpleNamespace(**names, handle_events=handle_events)


@pytest.fixture(scope="module", params=["subprocess", "QProcess"])
def transport(request):
    """The name of a transport: tests that ask for it run with both."""
    return request.param


@contextmanager
def clients_in(root, request):
    """Function that makes a client; at the end none of them may have left a process or a file."""
    others, made = {child.pid for child in psutil.Process().children()}, []

    def make(command=None, transport="subprocess"):
        command, environment, log = command or worker_command(), worker_environment(), []
        if transport == "subprocess":
            client = WorkerClient(partial(SubprocessTransport, command, environment), log.append, temporary=root)
            client.handle_events = partial(client.poll, 0.01)
        else:
            qt = request.getfixturevalue("qt")
            client = WorkerClient(partial(QProcessTransport, qt, command, environment), log.append, temporary=root)
            client.handle_events = qt.handle_events
        client.lines = log
        made.append(client)
        return client

    yield make
    for client in made:
        client.shutdown()
    deadline = time.monotonic() + SECONDS
    while {child.pid for child in psutil.Process().children()} - others or list(root.iterdir()):
        assert time.monotonic() < deadline, (psutil.Process().children(), list(root.iterdir()))
        for client in made:
            client.handle_events()


@pytest.fixture
def clients(tmp_path_factory, request):
    """See :func:`clients_in`; for one test."""
    with clients_in(tmp_path_factory.mktemp("temporary"), request) as make:
        yield make


@pytest.fixture(scope="module")
def lasting_clients(tmp_path_factory, request):
    """See :func:`clients_in`; for all tests of a file."""
    with clients_in(tmp_path_factory.mktemp("temporary"), request) as make:
        yield make


def wait_until(client, condition):
    """Handle events until the condition holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, client.lines
        client.handle_events()


def ended(client, listener):
    """Handle events until the job has ended, and a moment longer: nothing may follow."""
    wait_until(client, lambda: listener.ends)
    for _ in range(3):
        client.handle_events()
    assert len(listener.ends) == 1
    assert client.state != "busy"
    assert not list(client._temporary.rglob("job-*"))
    return listener


def finish(client, job):
    """Run a job to its end."""
    listener = Recorder()
    client.synthesize(job, listener)
    return ended(client, listener)


def begun(client, job):
    """Start a job, and wait until the engine is at work."""
    listener = Recorder()
    client.synthesize(job, listener)
    wait_until(client, lambda: any(stage == "compute" for stage, *_ in listener.progress) or listener.ends)
    assert not listener.ends
    return listener


def has_gone(pid):
    """Whether a process has ended, and been reaped by whoever started it."""
    return not psutil.pid_exists(pid)


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    """A job for engines that do not look at it."""
    volume = Volume(np.arange(24, dtype=np.int16).reshape(2, 3, 4), Geometry((2, 3, 4)), "scan")
    return Job({"T1": volume}, ["T2"], tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def tools():
    """The helpers of this file."""
    return SimpleNamespace(**{name: globals()[name] for name in (
        "Recorder", "python", "fake_worker", "wait_until", "ended", "finish", "begun", "has_gone")})  # fmt: skip
