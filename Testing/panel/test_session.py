"""One run from nodes to nodes, with a worker that answers what the test wants."""

from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from MissingModalitySynthLib.errors import Cancelled, InputError, OutOfMemoryError, SynthesisError, WorkerError
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.scene.estimates import MeasuredRuns, key_of
from MissingModalitySynthLib.scene.provenance import source_nodes_of, synthetic_results
from MissingModalitySynthLib.scene.session import Session, Task
from MissingModalitySynthLib.volume import Volume
from MissingModalitySynthLib.worker.failures import failure
from MissingModalitySynthLib.worker.jobs import TargetResult


class Client:
    """Keeps what it is asked for; the test answers."""

    state, info = "idle", None

    def __init__(self):
        self.job = self.listener = None
        self.cancelled = 0

    def synthesize(self, job, listener):
        self.job, self.listener = job, listener

    def cancel(self):
        self.cancelled += 1

    def answer(self, device="cpu", notices=(), **provenance):
        reference = self.job.sources[self.job.reference or next(iter(self.job.sources))]
        made = {}
        for target in self.job.targets:
            volume = Volume(np.full(reference.geometry.size, 7, np.float32), reference.geometry, target)
            record = {"synthetic": True, "target": target, "reference": reference.name, "device": device}
            made[target] = TargetResult(volume, None, record | provenance, notices)
        self.listener.on_result(made)


@pytest.fixture
def scene():
    made = slicer.vtkMRMLScene()
    yield made
    made.Clear(True)


@pytest.fixture
def source(scene):
    voxels = np.random.default_rng(0).uniform(0, 1000, (20, 22, 24)).astype(np.float32)
    image = vtk.vtkImageData()
    image.SetDimensions(voxels.shape)
    image.GetPointData().SetScalars(numpy_to_vtk(voxels.ravel(order="F"), deep=True))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Patient 7 T1")
    node.SetAndObserveImageData(image)
    return node


@pytest.fixture
def time():
    """A clock that the test sets."""
    return [0.0]


@pytest.fixture
def session(time):
    made = Session(Client(), MeasuredRuns({}), clock=lambda: time[0])
    made.changes = 0

    def count():
        made.changes += 1

    made.on_change = count
    yield made
    if made.running:  # else the scene would still call it when it is collected
        made.on_cancelled()


@pytest.fixture
def task(source):
    return Task({"T1": source}, ("T2", "FLAIR"), load_package("micro"))


def test_a_run_adds_its_results_and_says_how_long_it_took(session, task, scene, source, time):
    session.start(task)
    assert session.running
    assert session.client.job.package == Path(task.package.path)
    time[0] = 12.0
    session.client.answer(notices=("T1ce is a guess.",))
    assert not session.running
    assert session.results == synthetic_results(scene)
    assert [source_nodes_of(node) for node in session.results] == [{"T1": source}] * 2
    assert session.message.text == "T2, FLAIR synthesized in 12 s. T1ce is a guess."
    assert not session.message.problem


def test_names_of_contrasts_are_understood_as_people_write_them(session, source):
    session.start(Task({"t1w": source}, ("flair", "T2-FLAIR"), load_package("micro")))
    assert list(session.client.job.sources) == ["T1"]
    assert tuple(session.client.job.targets) == ("FLAIR",)


def test_a_source_of_another_contrast_is_named_so_and_made_by_the_zero_shot_method(session, source, zero_shot_packages):
    package = load_package(zero_shot_packages.both)
    session.start(Task({"Other": source}, ("t1w",), package, reference="other"))
    assert list(session.client.job.sources) == ["other"] and session.client.job.reference == "other"
    session.client.answer(device="cpu")
    assert [node.GetName() for node in session.results] == ["T1 (synthetic from unlisted contrast)"]
    assert source_nodes_of(session.results[0]) == {"other": source}
    assert session.measured.ratio(key_of(package, "midiffusion", "cpu")) is not None
    assert session.measured.ratio(key_of(package, "regression", "cpu")) is None


def test_every_message_of_the_worker_is_passed_on(session, task):
    session.start(task)
    before = session.changes
    session.client.listener.on_progress("step 1 of 2", 0.4, "T2", 3.0)
    assert session.changes == before + 1
    assert session.progress.fraction == 0.4


def test_a_second_run_is_refused_while_one_is_under_way(session, task):
    session.start(task)
    with pytest.raises(WorkerError, match="under way"):
        session.start(task)


def test_a_client_that_refuses_leaves_nothing_running(session, task, monkeypatch):
    def refuse(job, listener):
        raise WorkerError("A synthesis is running already.")

    monkeypatch.setattr(session.client, "synthesize", refuse)
    with pytest.raises(WorkerError, match="already"):
        session.start(task)
    assert not session.running


def test_sources_of_two_scenes_are_refused(session, task, source):
    other = slicer.vtkMRMLScene().AddNewNodeByClass("vtkMRMLScalarVolumeNode", "T2")
    with pytest.raises(InputError, match="one scene"):
        session.start(Task({"T1": source, "T2": other}, ("FLAIR",), task.package))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("out_of_memory", OutOfMemoryError),
        ("bad_input", InputError),
        ("diverged", SynthesisError),
        ("worker_died", WorkerError),
    ],
)
def test_a_failure_is_shown_with_its_remedy_and_raised_to_scripts(session, task, scene, kind, expected):
    session.start(task)
    found = failure(kind, "It went wrong.")
    session.client.listener.on_failure(found)
    assert session.message.text == f"It went wrong. {found.remedy}"
    assert session.message.problem
    assert synthetic_results(scene) == []
    with pytest.raises(expected, match="It went wrong"):
        session.wait(lambda: None)


def test_cancelling_keeps_nothing_and_is_no_problem(session, task, scene):
    session.start(task)
    session.cancel()
    session.cancel()
    assert session.cancelling
    assert session.client.cancelled == 1
    session.client.listener.on_cancelled()
    assert synthetic_results(scene) == []
    assert "Cancelled" in session.message.text
    assert not session.message.problem
    with pytest.raises(Cancelled):
        session.wait(lambda: None)


def test_a_result_that_comes_while_cancelling_is_dropped(session, task, scene):
    session.start(task)
    session.cancel()
    session.client.answer()
    assert synthetic_results(scene) == []


def test_a_source_that_is_removed_stops_the_run(session, task, scene, source):
    session.start(task)
    scene.RemoveNode(source)
    assert session.cancelling
    session.client.listener.on_cancelled()
    assert "Patient 7 T1" in session.message.text
    assert synthetic_results(scene) == []


def test_another_volume_that_is_removed_does_not(session, task, scene):
    other = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Other")
    session.start(task)
    scene.RemoveNode(other)
    assert not session.cancelling


def test_a_scene_that_is_closed_stops_the_run(session, task, scene):
    session.start(task)
    scene.Clear(False)
    assert session.client.cancelled == 1
    session.client.answer()
    assert "scene was closed" in session.message.text
    assert synthetic_results(scene) == []


def test_a_run_that_has_ended_watches_the_scene_no_more(session, task, scene, source):
    session.start(task)
    session.client.answer()
    scene.RemoveNode(source)
    assert session.client.cancelled == 0


def test_the_measured_time_is_remembered_for_the_device_that_computed(session, task, time):
    session.start(task)
    time[0] = 50.0
    session.client.answer(device="cuda:0")
    assert session.measured.ratio(key_of(task.package, "regression", "cuda:0")) > 1
    assert session.measured.ratio(key_of(task.package, "regression", "cpu")) is None


def test_the_start_of_a_worker_is_not_counted_as_computing(session, task, time):
    session.start(task)
    session.client.listener.on_progress("start", 0.0, None, None)
    time[0] = 60.0  # PyTorch is loaded
    session.client.listener.on_progress("load model", 0.0, None, None)
    time[0] = 60.1
    session.client.answer()
    assert session.measured.ratio(key_of(task.package, "regression", "cpu")) < 1


def test_a_new_run_forgets_what_was_said_about_the_last_one(session, task):
    session.start(task)
    session.client.listener.on_failure(failure("driver", "It went wrong."))
    session.start(task)
    assert session.message.text == ""
    session.client.answer()
    assert session.wait(lambda: None) == session.results
