"""The worker's process as any program at the other end of its pipes sees it, line by line."""

import json
import os
import subprocess

import pytest

from MissingModalitySynthLib import __version__
from MissingModalitySynthLib.worker.exchange import create_folder
from MissingModalitySynthLib.worker.processes import worker_command, worker_environment

# Whoever imports torch waits for ten minutes.
NO_TORCH = """
import sys, time
class Slow:
    def find_spec(self, name, *_):
        if name == "torch":
            time.sleep(600)
sys.meta_path.insert(0, Slow())
from MissingModalitySynthLib.worker import server
server.main()
"""


class Talk:
    """A worker process and its pipes."""

    def __init__(self, command, root):
        self.folder = create_folder(root)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(command, env=worker_environment(), **pipes)

    def say(self, *messages):
        for message in messages:
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.process.stdin.write(data + b"\n")
        self.process.stdin.flush()

    def greet(self, **changes):
        hello = {"kind": "hello", "protocol": 1, "client_pid": os.getpid(), "folder": str(self.folder)}
        self.say(hello | changes)

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def rest(self):
        """What it says from now until it ends by itself: on stdout, on stderr."""
        output, log = self.process.communicate(timeout=60)
        return [json.loads(line) for line in output.splitlines()], log.decode()


@pytest.fixture
def talk(tmp_path):
    """Function: command -> Talk; at the end nothing of it may be left."""
    made = []

    def start(command):
        made.append(Talk(command, tmp_path))
        return made[-1]

    yield start
    for each in made:
        if each.process.returncode is None:
            each.process.communicate(timeout=60)
        assert each.process.returncode == 0
        assert not each.folder.exists()


def synthesize(job):
    return {"kind": "synthesize", "id": job, "folder": ""}


def test_hello_is_answered_before_torch_is_imported(talk, tools):
    worker = talk(tools.python(NO_TORCH))
    worker.greet()
    hello = worker.hear()
    assert (hello["kind"], hello["protocol"], hello["version"]) == ("hello", 1, __version__)
    worker.say({"kind": "load", "package": None, "method": None})
    worker.say(synthesize(1))
    assert worker.hear()["stage"] == "start"
    worker.say({"kind": "shutdown"})  # heard although the import goes on
    assert worker.rest()[0] == []


def test_another_version_is_answered_with_one_error_and_the_end(talk):
    worker = talk(worker_command())
    worker.greet(protocol=99)
    (error,), log = worker.rest()
    assert (error["kind"], error["error"], error["id"]) == ("error", "protocol", None)
    assert "version 99" in error["message"] and error["message"] in log
    worker.folder.rmdir()  # it was never told its name


def test_who_does_not_greet_is_told_so(talk):
    worker = talk(worker_command())
    worker.say(synthesize(5))
    error = worker.hear()
    assert (error["error"], error["id"]) == ("protocol", 5) and "before it was greeted" in error["message"]
    worker.greet()
    worker.hear()


def test_of_two_requests_at_once_the_second_is_refused_by_its_id(talk, tools):
    worker = talk(tools.fake_worker("while not cancelled(): time.sleep(0.01)", "raise Cancelled('Stopped.')"))
    worker.greet()
    worker.say(synthesize(1), synthesize(2), {"kind": "cancel", "id": 2}, {"kind": "cancel", "id": 1})
    heard = [worker.hear() for _ in range(5)]
    ends = {message["id"]: message["error"] for message in heard if message["kind"] == "error"}
    assert ends == {1: "cancelled", 2: "protocol"}
    worker.say(synthesize(3), {"kind": "cancel", "id": 3})
    while worker.hear()["kind"] != "error":
        pass


def test_what_is_no_message_is_logged_and_what_follows_is_answered(talk, tools):
    worker = talk(tools.fake_worker())
    worker.say(b"garbage", b"[1, 2", b"\xff" * 100_000)
    worker.greet()
    worker.say({"kind": "dance"}, {"kind": "cancel", "id": 4}, synthesize(1))
    kinds = [worker.hear()["kind"] for _ in range(4)]
    assert kinds == ["hello", "progress", "progress", "result"]
    messages, log = worker.rest()
    assert not messages and "garbage" in log and "unknown kind 'dance'" in log


def test_the_end_of_stdin_ends_the_worker_also_in_the_middle(talk, tools):
    worker = talk(tools.fake_worker("open(message['folder'] + '/half.npy', 'w')", "time.sleep(600)"))
    worker.greet()
    worker.say(synthesize(1) | {"folder": str(worker.folder)})
    while worker.hear().get("stage") != "compute":
        pass
    worker.rest()
    assert not worker.folder.exists()


def test_a_message_that_lacks_something_fails_its_job_alone(talk, tools):
    worker = talk(tools.fake_worker("message['targets']"))
    worker.greet()
    worker.say(synthesize(1), {"kind": "load"})
    heard = []
    while len(heard) < 2:
        heard += [message for message in [worker.hear()] if message["kind"] == "error"]
    assert [(message["id"], message["error"]) for message in heard] == [(1, "defect"), (None, "defect")]
