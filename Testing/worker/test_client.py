"""The client and real worker processes, whose engine is replaced so that they start at once; with both transports."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from MissingModalitySynthLib.errors import OutputError, WorkerError
from MissingModalitySynthLib.worker import client as client_module
from MissingModalitySynthLib.worker import exchange
from MissingModalitySynthLib.worker.jobs import Job
from MissingModalitySynthLib.worker.processes import kill_tree, worker_environment

WAIT = "while not cancelled(): time.sleep(0.01)"
HANG = "time.sleep(600)"
STUBBORN = 'raise Cancelled("Cancelled; nothing was kept.")'


def test_starting_ends_idle_and_tells_about_the_worker(clients, transport, tools):
    client = clients(tools.fake_worker(), transport)
    assert client.state == "stopped"
    client.start()
    assert client.state == "starting"
    tools.wait_until(client, lambda: client.state == "idle")
    assert (client.info.torch, client.info.devices, client.problem) == ("none", (), None)
    pid = client.info.pid
    client.start()
    assert client.info.pid == pid


def test_a_job_brings_progress_and_one_end_and_the_worker_stays(clients, transport, tools, job):
    client = clients(tools.fake_worker(), transport)
    first, second = (tools.finish(client, job) for _ in range(2))
    for listener in (first, second):
        assert listener.results == {}
        assert listener.progress == [("start", 0.0, None, None), ("compute", 0.5, "T2", 3.0)]
    assert client.state == "idle"


def test_no_callback_comes_from_within_a_call(clients, transport, tools, job):
    client = clients(tools.fake_worker(WAIT, STUBBORN), transport)
    listener = tools.Recorder()
    client.synthesize(job, listener)
    client.cancel()
    assert not listener.ends and not listener.progress
    assert tools.ended(client, listener).ends == [("cancelled", None)]


def test_a_second_job_is_refused_and_the_first_goes_on(clients, transport, tools, job):
    client = clients(tools.fake_worker("time.sleep(0.2)"), transport)
    listener = tools.begun(client, job)
    with pytest.raises(WorkerError, match="running already"):
        client.synthesize(job, tools.Recorder())
    assert tools.ended(client, listener).results == {}


def test_a_job_can_begin_where_the_last_one_ends(clients, transport, tools, job):
    client = clients(tools.fake_worker(), transport)
    last = tools.Recorder()

    class Chain(tools.Recorder):
        def on_result(self, results):
            client.synthesize(job, last)

    client.synthesize(job, Chain())
    tools.wait_until(client, lambda: last.ends)
    assert last.results == {}


def test_a_cancelled_engine_that_stops_by_itself_keeps_its_worker(clients, transport, tools, job):
    client = clients(tools.fake_worker(WAIT, STUBBORN), transport)
    listener = tools.begun(client, job)
    pid = client.info.pid
    client.cancel()
    client.cancel()
    assert tools.ended(client, listener).ends == [("cancelled", None)]
    assert client.state == "idle" and psutil.pid_exists(pid)


def test_a_result_that_crosses_the_cancelling_is_dropped(clients, transport, tools, job):
    client = clients(tools.fake_worker(WAIT), transport)  # finishes instead of stopping
    listener = tools.begun(client, job)
    client.cancel()
    assert tools.ended(client, listener).ends == [("cancelled", None)]


def test_an_engine_that_does_not_stop_is_killed_with_all_its_children_behind_a_launcher(clients, transport, tools, job):
    child = "import subprocess; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    worker = tools.fake_worker(child, "print('child', child.pid)", HANG)
    launcher = tools.python(f"import subprocess; subprocess.call({worker!r})")
    client = clients(launcher, transport)
    listener = tools.begun(client, job)
    tools.wait_until(client, lambda: any(line.startswith("child") for line in client.lines))
    child = next(int(line.split()[1]) for line in client.lines if line.startswith("child"))
    pid = client.info.pid
    client.cancel()
    assert tools.ended(client, listener).ends == [("cancelled", None)]
    tools.wait_until(client, lambda: tools.has_gone(pid) and tools.has_gone(child))
    assert client.state == "stopped"


def test_cancelling_never_takes_longer_than_two_seconds():
    assert client_module.CANCEL_SECONDS + client_module.KILL_SECONDS < 2


def test_a_worker_that_cannot_be_killed_does_not_hold_the_client(clients, transport, tools, job, monkeypatch):
    client = clients(tools.fake_worker(HANG), transport)
    listener = tools.begun(client, job)
    with monkeypatch.context() as patch:
        patch.setattr("MissingModalitySynthLib.worker.transports.kill_tree", lambda pid: None)
        client.cancel()
        tools.ended(client, listener)
    assert (listener.ends, client.state) == ([("cancelled", None)], "stopped")
    kill_tree(client.info.pid)


def test_after_kill_minus_9_in_the_middle_the_next_job_has_a_new_worker(clients, transport, tools, job):
    client = clients(tools.fake_worker("time.sleep(0.5)"), transport)
    listener = tools.begun(client, job)
    pid = client.info.pid
    psutil.Process(pid).kill()
    failure = tools.ended(client, listener).failure
    assert failure.kind == "worker_died" and "Run again" in failure.remedy
    if os.name == "posix":
        assert "SIGKILL" in failure.message
    assert client.state == "stopped" and tools.has_gone(pid)
    assert tools.finish(client, job).results == {}
    assert client.info.pid != pid


def test_a_native_crash_is_told_with_the_last_line_of_the_log(clients, transport, tools, job):
    client = clients(tools.fake_worker("print('about to fall', flush=True); os.abort()"), transport)
    failure = tools.finish(client, job).failure
    assert failure.kind == "worker_died"
    assert "about to fall" in client.lines
    assert any("Fatal Python error: Aborted" in line for line in client.lines)


def test_a_worker_that_dies_while_idle_is_noticed_and_replaced(clients, transport, tools, job):
    client = clients(tools.fake_worker(), transport)
    tools.finish(client, job)
    psutil.Process(client.info.pid).kill()
    tools.wait_until(client, lambda: client.state == "stopped")
    assert client.problem.kind == "worker_died"
    assert tools.finish(client, job).results == {}
    assert client.problem is None


def test_a_program_that_is_not_there_is_named(clients, transport, tools, job):
    client = clients(["/no/such/PythonSlicer", "-m", "MissingModalitySynthLib.worker"], transport)
    failure = tools.finish(client, job).failure
    assert failure.kind == "worker_died" and "did not start" in failure.message
    assert "/no/such/PythonSlicer" in failure.message


def test_a_python_without_this_program_is_told_with_what_it_said(clients, transport, tools, job):
    client = clients([sys.executable, "-m", "NoSuchModuleAnywhere"], transport)
    assert "No module named NoSuchModuleAnywhere" in tools.finish(client, job).failure.message


def test_a_slow_start_is_waited_for_and_can_be_cancelled(clients, transport, tools, job):
    command = tools.fake_worker()
    client = clients([*command[:2], f"import time; time.sleep(1)\n{command[2]}"], transport)
    listener = tools.Recorder()
    client.synthesize(job, listener)
    client.cancel()
    assert tools.ended(client, listener).ends == [("cancelled", None)]
    assert client.state == "starting"  # the worker goes on starting, for the next job
    assert tools.finish(client, job).results == {}


def test_what_libraries_print_goes_to_the_log_even_from_native_code(clients, transport, tools, job):
    printing = "print('from Python', 'Zoë'); os.write(1, b'from native code\\n'); os.write(2, b'\\xff half a line')"
    client = clients(tools.fake_worker(printing, "os.write(2, b' is whole\\n')"), transport)
    assert tools.finish(client, job).results == {}
    tools.wait_until(client, lambda: len(client.lines) == 3)
    assert sorted(client.lines) == sorted(["from Python Zoë", "from native code", "\ufffd half a line is whole"])


GARBAGE = """
import json, sys, time
def say(data):
    sys.stdout.buffer.write(data); sys.stdout.buffer.flush(); time.sleep(0.01)
def line(kind, **fields):
    return json.dumps({"kind": kind, **fields}).encode() + b"\\n"
say(b"Welcome to a chatty launcher\\n{broken\\n[]\\n" + line("progress") + line("nonsense"))
hello = line("hello", protocol=1, version="x", python="x", pid=1)
say(hello[:7]); say(hello[7:])
for received in sys.stdin:
    message = json.loads(received)
    if message["kind"] == "load":
        say(line("load", package=message["package"]))
    if message["kind"] == "synthesize":
        job = message["id"]
        say(b"\\xff\\xfe\\x00\\n" + b"y" * (17 << 20) + b"\\n")
        progress = line("progress", id=job, stage="compute", fraction=0.5, target=None, seconds_left=None)
        say(progress + progress + line("progress", id=job, stage="x", fraction="half", target=None, seconds_left=1)
            + line("progress", id=job + 1, stage="other", fraction=1, target=None, seconds_left=None)
            + line("error", id=job, error="defect") + line("result", id=job, targets=3, notices=[]))
        say(line("result", id=job, targets=TARGETS, notices=[]))
        say(line("result", id=job, targets={}, notices=[]))
    if message["kind"] == "shutdown":
        break
"""


def test_garbage_on_stdout_is_logged_and_harms_nothing(clients, transport, tools, job):
    client = clients(tools.python(GARBAGE.replace("TARGETS", "{}")), transport)
    listener = tools.finish(client, job)
    assert listener.results == {}
    assert listener.progress == [("compute", 0.5, None, None)] * 2
    tools.wait_until(client, lambda: any('"result"' in line for line in client.lines[-1:]))
    assert {"Welcome to a chatty launcher", "{broken", "[]", "\ufffd\ufffd\x00"} <= {*client.lines}
    assert max(map(len, client.lines)) < 1000


@pytest.mark.parametrize("targets", ['{"T2": {}}', '{"T2": {"volume": {"file": ".."}, "std": None, "provenance": {}}}'])
def test_a_result_that_cannot_be_understood_fails_the_job(clients, tools, job, targets):
    client = clients(tools.python(GARBAGE.replace("TARGETS", targets)))
    assert tools.finish(client, job).failure.kind in ("protocol", "disk")


LAST_WORDS = """
import json, sys
import numpy as np
def say(kind, **fields):
    print(json.dumps({"kind": kind, **fields}), flush=True)
say("hello", protocol=1, version="x", python="x", pid=1)
for received in sys.stdin:
    message = json.loads(received)
    if message["kind"] == "synthesize":
        np.save(message["folder"] + "/a.npy", np.arange(24.0).reshape(2, 3, 4))
        volume = message["sources"]["T1"] | {"file": "a.npy"}
        targets = {"T2": {"volume": volume, "std": None, "provenance": {}}}
        say("result", id=message["id"], notices=["n"], targets=targets)
        break
"""


def test_a_result_is_kept_though_the_worker_dies_while_it_is_read(clients, transport, tools, job, monkeypatch):
    client = clients(tools.python(LAST_WORDS), transport)
    monkeypatch.setattr(exchange, "_SLAB_BYTES", 8)
    read, states = exchange.read_array, []

    def patient(path):
        while client._alive:  # every turn of the event loop, until the end of the worker is known
            yield
        states.append(client.state)
        return (yield from read(path))

    monkeypatch.setattr(client_module, "read_array", patient)
    result = tools.finish(client, job).results["T2"]
    np.testing.assert_array_equal(result.volume.array, np.arange(24.0).reshape(2, 3, 4))
    assert result.volume.geometry == job.sources["T1"].geometry and result.notices == ("n",)
    assert states == ["busy"] and client.state == "stopped" and not list(client._temporary.iterdir())


def test_a_worker_that_rests_gives_memory_back_and_works_on(clients, tools, job):
    resting = "server._IDLE_SECONDS = 0.05\nengine.release_memory = lambda: print('released')\nserver.main()"
    command = tools.fake_worker()
    client = clients(tools.python(command[-1].replace("server.main()", resting)))
    for count in (1, 2):
        assert tools.finish(client, job).results == {}
        tools.wait_until(client, lambda: client.lines == ["released"] * count)  # noqa: B023


def test_a_worker_of_another_version_is_refused_in_one_sentence(clients, transport, tools, job):
    command = tools.python(GARBAGE.replace("protocol=1", "protocol=7").replace("TARGETS", "{}"))
    client = clients(command, transport)
    failure = tools.finish(client, job).failure
    assert failure.kind == "protocol"
    assert "worker speaks version 7" in failure.message and "this side version 1" in failure.message
    assert client.state == "stopped" and client.problem == failure


def test_a_client_of_another_version_is_refused_by_the_worker(clients, transport, tools, job, monkeypatch):
    monkeypatch.setattr(client_module, "PROTOCOL_VERSION", 7)
    client = clients(tools.fake_worker(), transport)
    failure = tools.finish(client, job).failure
    assert failure.kind == "protocol" and "application speaks version 7" in failure.message
    assert client.state == "stopped"


def test_a_driver_that_fails_costs_the_worker_and_the_next_job_has_a_new_one_at_once(clients, transport, tools, job):
    client = clients(tools.fake_worker("raise RuntimeError('CUDA error: unspecified launch failure')"), transport)
    pids = []

    class Again(tools.Recorder):
        def on_failure(self, failure):
            super().on_failure(failure)
            pids.append(client.info.pid)
            if len(pids) == 1:
                client.synthesize(job, second)

    first, second = Again(), Again()
    client.synthesize(job, first)
    tools.wait_until(client, lambda: second.ends)
    assert first.failure.kind == second.failure.kind == "driver" and pids[0] != pids[1]


def test_what_cannot_be_imported_is_a_matter_of_the_installation_and_the_next_job_looks_again(clients, tools, job):
    client = clients(tools.fake_worker("raise ImportError('DLL load failed')"))
    failure = tools.finish(client, job).failure
    assert failure.kind == "installation"
    assert "installation check" in failure.remedy and "CPU" not in failure.remedy
    assert client.state == "stopped"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ('OutOfMemoryError("The memory of cuda:0 does not suffice.")', "out_of_memory"),
        ("MemoryError()", "out_of_memory"),
        ('GeometryError("Volume has 3 voxels.")', "bad_input"),
        ('ModelPackageError("The package is damaged.")', "damaged_model"),
        ("DivergenceError(3, 5)", "diverged"),
        ('OSError(28, "No space left on device")', "disk"),
        ('RuntimeError("CUDA error: no kernel image is available")', "driver"),
        ("IndexError()", "defect"),
    ],
)
def test_every_error_arrives_with_its_kind_a_sentence_and_a_remedy(clients, tools, job, error, kind):
    client = clients(tools.fake_worker(f"raise {error}"))
    failure = tools.finish(client, job).failure
    assert failure.kind == kind
    assert failure.message.endswith(".") and failure.remedy.endswith(".")
    assert any("Traceback" in line for line in client.lines)


def test_shutting_down_cancels_the_job(clients, transport, tools, job):
    client = clients(tools.fake_worker(HANG), transport)
    listener = tools.begun(client, job)
    pid = client.info.pid
    client.shutdown()
    assert (listener.ends, client.state) == ([("cancelled", None)], "stopped")
    tools.wait_until(client, lambda: tools.has_gone(pid))
    client.shutdown()
    assert len(listener.ends) == 1


def test_a_worker_that_does_not_hear_the_shutdown_is_killed(clients, transport, tools):
    client = clients(tools.python("import os, time; print(os.getpid(), flush=True); time.sleep(600)"), transport)
    client.start()
    tools.wait_until(client, lambda: client.lines)
    pid = int(client.lines[-1])
    client.shutdown()
    tools.wait_until(client, lambda: tools.has_gone(pid))


def test_voxels_that_cannot_be_sent_fail_the_job_and_keep_the_worker(clients, tools, job):
    volume = job.sources["T1"]
    broken = type(volume)(volume.array.astype(complex), volume.geometry, "scan")
    client = clients(tools.fake_worker())
    assert tools.finish(client, Job({"T1": broken}, ["T2"], job.package)).failure.kind == "bad_input"
    assert tools.finish(client, job).results == {}


def test_without_a_temporary_folder_nothing_is_started(clients, tools, job, tmp_path):
    client = clients(tools.fake_worker())
    before = client._temporary
    client._temporary = tmp_path / "absent"
    with pytest.raises(OutputError, match="absent"):
        client.synthesize(job, tools.Recorder())
    assert client.state == "stopped"
    client._temporary = before


CLIENT = """
import sys, time
from pathlib import Path
import numpy as np
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.worker.client import WorkerClient
from MissingModalitySynthLib.worker.jobs import Job
from MissingModalitySynthLib.worker.transports import SubprocessTransport
class Listener:
    def on_progress(self, stage, *_):
        if stage == "compute": print(client.info.pid, flush=True)
client = WorkerClient(lambda: SubprocessTransport({command!r}, {environment!r}), print, temporary=Path({root!r}))
volume = Volume(np.zeros((2, 3, 4)), Geometry((2, 3, 4)))
client.synthesize(Job({{"T1": volume}}, ["T2"], Path()), Listener())
while True:
    client.poll(0.1)
"""


@pytest.mark.parametrize("stdin_stays_open", [False, True])
def test_when_the_client_is_killed_its_worker_goes_and_takes_the_files_with_it(tools, tmp_path, stdin_stays_open):
    worker = tools.fake_worker(HANG)
    # A launcher that passes on messages, and keeps its pipe to the worker open when its own is closed.
    keeper = tools.python(
        f"import subprocess, sys, time; process = subprocess.Popen({worker!r}, stdin=subprocess.PIPE)\n"
        "for line in sys.stdin.buffer: process.stdin.write(line); process.stdin.flush()\nprocess.wait()"
    )
    command = keeper if stdin_stays_open else worker
    code = CLIENT.format(command=command, environment=worker_environment(), root=str(tmp_path))
    with subprocess.Popen(tools.python(code), stdout=subprocess.PIPE, env=worker_environment()) as client:
        pid = int(client.stdout.readline())
        assert list(tmp_path.rglob("source-0.npy"))
        client.kill()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) or list(tmp_path.iterdir()):
        if psutil.pid_exists(pid) and psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break  # its reaper is another one's duty
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not list(tmp_path.iterdir())


def test_what_a_dead_client_left_is_swept_when_the_next_worker_starts(clients, tools):
    client = clients(tools.fake_worker())
    dead = subprocess.Popen(tools.python("pass"))
    dead.wait()
    left = client._temporary / f"mms-{exchange._HOST}-{dead.pid}-abc" / "job-1"
    left.mkdir(parents=True)
    client.start()
    tools.wait_until(client, lambda: not left.parent.exists())


@pytest.mark.skipif(os.name != "posix", reason="Windows has no Ctrl-C for a single process")
def test_ctrl_c_does_not_reach_the_worker(clients, tools, job):
    client = clients(tools.fake_worker("time.sleep(0.3)"))
    listener = tools.begun(client, job)
    os.kill(client.info.pid, signal.SIGINT)
    assert tools.ended(client, listener).results == {}


@pytest.mark.skipif(os.name != "posix", reason="taskkill is Windows' own")
def test_without_psutil_the_process_group_is_killed(clients, tools, job, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    client = clients(tools.fake_worker(HANG))
    listener = tools.begun(client, job)
    client.cancel()
    assert tools.ended(client, listener).ends == [("cancelled", None)]


def test_neither_client_nor_server_imports_torch_or_simpleitk():
    modules = "client", "transports", "processes", "jobs", "server"
    code = "import sys\n" + "".join(f"import MissingModalitySynthLib.worker.{name}\n" for name in modules)
    code += "print([name for name in sys.modules if name in ('torch', 'SimpleITK', 'monai', 'scipy')])"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
