"""Segmenting in a real worker: as the bare engine does it, with the same rules as synthesis."""

import dataclasses

import numpy as np
import pytest

from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.segmentation import segment
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.worker.jobs import Job, SegmentationJob


@pytest.fixture(scope="module")
def client(lasting_clients, transport):
    """A client whose worker serves all tests here."""
    return lasting_clients(transport=transport)


@pytest.fixture(scope="module")
def scan():
    grid = Geometry((30, 34, 32), (2.0, 2.0, 2.1), (-30.0, -34.0, -33.0))
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.size), indexing="ij"))
    array = np.where((place**2).sum(axis=0) < 0.8, 500 + 300 * np.sin(5 * place[0]), 0).astype(np.int16)
    return Volume(np.asfortranarray(array), grid, "Zoë's T1")


@pytest.fixture(scope="module")
def job(scan, segmenting_package):
    other = dataclasses.replace(scan, array=scan.array[::-1].copy(), name="other")
    return SegmentationJob({"synthetic": scan, "source": other}, segmenting_package, device="cpu")


def run(client, tools, job):
    listener = tools.Recorder()
    client.segment(job, listener)
    return tools.ended(client, listener)


def test_the_worker_gives_what_the_engine_gives(client, tools, job, segmenting_package):
    listener = run(client, tools, job)
    results = listener.results
    assert list(results) == ["synthetic", "source"]
    package = load_package(segmenting_package)
    for key, result in results.items():
        volume = dataclasses.replace(job.sources[key], array=job.sources[key].array.astype(np.float32))
        expected = segment(volume, package, device="cpu")
        assert result.volume.array.dtype == np.uint8 and result.std is None
        assert result.volume.geometry == volume.geometry
        # another number of threads rounds otherwise, which random weights magnify
        assert np.mean(result.volume.array == expected.array) > 0.99
        assert result.provenance["segmented"] == volume.name
    fractions = [fraction for _, fraction, _, _ in listener.progress]
    assert fractions == sorted(fractions) and {target for *_, target, _ in listener.progress} == {None, *results}


def test_one_worker_serves_both_kinds_of_jobs(client, tools, job, segmenting_package):
    run(client, tools, job)
    pid = client.info.pid
    made = tools.finish(client, Job({"T1": job.sources["source"]}, ["FLAIR"], segmenting_package, method="regression"))
    assert list(made.results) == ["FLAIR"]
    run(client, tools, job)
    assert client.info.pid == pid


def test_what_cannot_be_segmented_fails_with_the_engines_sentence(client, tools, job, tiny_package):
    for change, kind, words in (
        ({"package": tiny_package}, "damaged_model", "has no segmenter"),
        ({"device": "cuda:99"}, "bad_input", "cuda:99"),
    ):
        failure = run(client, tools, dataclasses.replace(job, **change)).failure
        assert failure.kind == kind and words in failure.message
    assert run(client, tools, job).results


def test_cancelling_keeps_nothing(client, tools, job):
    listener = tools.Recorder()
    client.segment(job, listener)
    client.cancel()
    assert tools.ended(client, listener).ends == [("cancelled", None)]
