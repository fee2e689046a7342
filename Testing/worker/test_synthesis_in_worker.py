"""The real engine in a real worker: one warm worker per transport."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest

from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.worker.jobs import Job
from MissingModalitySynthLib.worker.processes import worker_environment

COSINES = ((0.96, -0.28, 0), (0.28, 0.96, 0), (0, 0, 1))


@pytest.fixture(scope="module")
def client(lasting_clients, transport):
    """A client whose worker serves all tests here."""
    return lasting_clients(transport=transport)


def sample(geometry, name):
    """A smooth head without any symmetry, in closed form, sampled on a grid: int16, in Slicer's memory layout."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.size), indexing="ij"), axis=-1)
    world = geometry.index_to_world(index)
    radius = np.linalg.norm(world / np.array([22.0, 30.0, 26.0]), axis=-1)
    array = 1000 / (1 + np.exp((radius - 1) * 12)) * (1 + 0.2 * np.sin(world @ np.array([0.12, 0.09, 0.07])))
    return Volume(np.asfortranarray(array.astype(np.int16)), geometry, name)


@pytest.fixture(scope="module")
def head():
    """A T1 and a T2 of one head on grids of their own."""
    return {
        "T1": sample(Geometry((30, 34, 32), (2.0, 2.0, 2.1), (-30.0, -34.0, -33.0)), "Zoë's T1"),
        "T2": sample(Geometry((40, 36, 30), (1.6, 2.0, 2.0), (-26, -40, -28), COSINES), "T2"),
    }


@pytest.fixture(scope="module")
def job(head, tiny_package):
    return Job({"T1": head["T1"]}, ["T2", "FLAIR"], tiny_package, method="aldm", device="cpu", samples=2, seed=5)


# In a process of its own, as random networks magnify what a process has set before, such as its number of threads.
BARE_ENGINE = """
import json, sys
import numpy as np
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.request import Request
from MissingModalitySynthLib.synthesis import synthesize
from MissingModalitySynthLib.volume import Geometry, Volume

folder, package, geometry, options = sys.argv[1:5]
grid = json.loads(geometry)
source = Volume(np.load(f"{folder}/source.npy"), Geometry(grid["size"], grid["spacing"], grid["origin"]), "Zoë's T1")
result = synthesize(Request({"T1": source}, ["T2", "FLAIR"], load_package(package), **json.loads(options)))
for target in ("T2", "FLAIR"):
    np.save(f"{folder}/{target}.npy", result.volumes[target].array)
    np.save(f"{folder}/{target} std.npy", result.deviations[target].array)
print(json.dumps({"provenance": result.provenance, "notices": list(result.notices)}))
"""


def test_the_worker_gives_what_the_bare_engine_gives_bit_for_bit(client, tools, job, head, tmp_path):
    results = tools.finish(client, job).results
    grid, folder = head["T1"].geometry, tmp_path / "bare"
    folder.mkdir()
    np.save(folder / "source.npy", head["T1"].array.astype(np.float32))
    described = {"size": grid.size, "spacing": grid.spacing, "origin": grid.origin}
    options = {name: getattr(job, name) for name in ("method", "device", "samples", "seed")}
    arguments = [folder, job.package, json.dumps(described), json.dumps(options)]
    command = [sys.executable, "-c", BARE_ENGINE, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, check=True, env=worker_environment())
    expected = json.loads(ended.stdout)
    assert list(results) == ["T2", "FLAIR"]
    for target, result in results.items():
        for found, name in ((result.volume, target), (result.std, f"{target} std")):
            assert found.geometry == grid
            assert found.array.dtype == np.float32 and found.array.flags.writeable
            np.testing.assert_array_equal(found.array, np.load(folder / f"{name}.npy"))
        provenance = json.loads(json.dumps(dict(result.provenance)))
        assert provenance.pop("created") and provenance.items() <= expected["provenance"][target].items()
        assert list(result.notices) == expected["notices"]


def test_the_worker_knows_its_devices_and_stays_for_all_jobs(client, tools, job):
    tools.finish(client, job)
    pid = client.info.pid
    (cpu,) = [device for device in client.info.devices if device.name == "cpu"]
    assert cpu.works and cpu.memory_bytes == psutil.virtual_memory().total
    assert client.info.torch
    tools.finish(client, job)
    assert client.info.pid == pid and client.state == "idle"


def test_progress_goes_from_0_up_and_names_stages_and_targets(client, tools, job):
    progress = tools.finish(client, job).progress
    fractions = [fraction for _, fraction, _, _ in progress]
    assert fractions == sorted(fractions) and 0 == fractions[0] < fractions[-1] <= 1
    assert {target for _, _, target, _ in progress} == {None, "T2", "FLAIR"}
    assert {"start", "load model", "prepare", "decode", "native grid"} <= {stage for stage, *_ in progress}


def test_a_source_of_another_contrast_is_made_zero_shot(client, tools, job, head, zero_shot_packages):
    wanted = Job({"other": head["T1"]}, ["T1"], zero_shot_packages.both, device="cpu", reference="other")
    made = tools.finish(client, wanted).results["T1"]
    assert made.volume.geometry == head["T1"].geometry and made.volume.array.max() > 0
    assert (made.provenance["method"], made.provenance["sources"]) == ("midiffusion", {"other": "Zoë's T1"})
    flat = dataclasses.replace(head["T1"], array=np.where(head["T1"].array > 500, 500, 0).astype(np.int16))
    failure = tools.finish(client, dataclasses.replace(wanted, sources={"other": flat})).failure
    assert failure.kind == "bad_input" and "'Zoë's T1' shows no anatomy" in failure.message


def test_one_sample_has_no_deviation(client, tools, job):
    results = tools.finish(client, dataclasses.replace(job, samples=1, targets=["FLAIR"])).results
    assert results["FLAIR"].std is None


def test_the_reference_chooses_the_grid(client, tools, job, head):
    wanted = dataclasses.replace(job, sources=head, targets=["FLAIR"], reference="T2", method="regression")
    volume = tools.finish(client, wanted).results["FLAIR"].volume
    assert volume.geometry == head["T2"].geometry


def test_another_spacing_covers_the_same_field_of_view(client, tools, job, head):
    wanted = dataclasses.replace(job, sources=head, targets=["FLAIR"], reference="T2", method="regression", samples=1)
    fine = tools.finish(client, dataclasses.replace(wanted, spacing=(0.8, 1.0, 1.5))).results["FLAIR"].volume.geometry
    assert fine.size == (80, 72, 40) and fine.spacing == (0.8, 1.0, 1.5)
    np.testing.assert_allclose(fine.corners, head["T2"].geometry.corners, atol=1e-9)
    coarse = tools.finish(client, dataclasses.replace(wanted, spacing=(2.5, 2.0, 2.0))).results["FLAIR"].volume.geometry
    assert coarse.size == (26, 36, 30)  # 64 mm in voxels of 2.5 mm, none of them lost
    np.testing.assert_allclose(coarse.corners[0], head["T2"].geometry.corners[0], atol=1e-9)


def test_the_reference_of_another_spacing_shows_the_same_signal_at_the_same_place():
    from MissingModalitySynthLib.worker.computing import _with_spacing

    scan = sample(Geometry((44, 40, 36), (1.6, 2.0, 2.0), (-30, -44, -36), COSINES), "T2")
    scan = dataclasses.replace(scan, array=scan.array.astype(np.float32))
    fine = _with_spacing(scan, [1.0, 1.1, 1.3])
    assert np.abs(fine.array - sample(fine.geometry, "").array).max() < 0.03 * scan.array.max()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"targets": ["T1"]}, "bad_input", "both a source and a target"),
        ({"targets": ["PD"]}, "bad_input", "cannot make PD"),
        ({"device": "cuda:99"}, "bad_input", "cuda:99"),
        ({"reference": "PD"}, "bad_input", "none of the sources"),
        ({"spacing": (1.0, 0.0, 1.0)}, "bad_input", "three positive numbers"),
        ({"sources": {}}, "bad_input", "At least one source"),
        ({"method": "midiffusion"}, "damaged_model", "no method"),
    ],
)
def test_what_cannot_be_done_fails_with_the_engines_sentence_and_keeps_the_worker(
    client, tools, job, change, kind, words
):
    tools.finish(client, job)
    pid = client.info.pid
    failure = tools.finish(client, dataclasses.replace(job, **change)).failure
    assert failure.kind == kind and words in failure.message
    assert client.info.pid == pid and client.state == "idle"


def test_voxels_beyond_float32_are_bad_input(client, tools, job, head):
    huge = dataclasses.replace(head["T1"], array=head["T1"].array.astype(np.float64) * 1e300)
    failure = tools.finish(client, dataclasses.replace(job, sources={"T1": huge})).failure
    assert failure.kind == "bad_input" and "infinite" in failure.message


def test_damaged_weights_are_told_already_when_the_model_is_loaded(client, tools, job, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(job.package, broken)
    weights = broken / "models" / "regression.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    tools.finish(client, job)
    client.start(broken, "regression")
    tools.wait_until(client, lambda: client.problem)
    assert client.problem.kind == "damaged_model" and client.state == "idle"
    failure = tools.finish(client, dataclasses.replace(job, package=broken, method="regression")).failure
    assert failure.kind == "damaged_model" and "install" in failure.remedy
    assert tools.finish(client, job).results


def test_a_real_run_is_cancelled_at_the_next_step(client, tools, job):
    tools.finish(client, job)
    pid, listener = client.info.pid, tools.Recorder()
    client.synthesize(dataclasses.replace(job, steps=1000), listener)
    tools.wait_until(client, lambda: any("step" in stage for stage, *_ in listener.progress))
    client.cancel()
    assert tools.ended(client, listener).ends == [("cancelled", None)]
    assert client.info.pid == pid and client.state == "idle"


def test_the_allocators_out_of_memory_arrives_as_such_and_the_worker_lives_on(clients, tools, job):
    # The last thing that a run asks of the networks first asks PyTorch's allocator for a pebibyte.
    command = tools.python("""
import torch
from MissingModalitySynthLib import synthesis
from MissingModalitySynthLib.worker import server
decode = synthesis.decode
def greedy(*arguments):
    synthesis.decode = decode
    torch.empty(1 << 50, dtype=torch.uint8)
synthesis.decode = greedy
server.main()
""")
    client = clients(command)
    failure = tools.finish(client, job).failure
    assert failure.kind == "out_of_memory" and "cpu" in failure.message and "crop" in failure.remedy
    assert tools.finish(client, job).results


def test_without_torch_the_failure_says_what_to_check(clients, tools, job):
    start = "from MissingModalitySynthLib.worker import server\nserver.main()"
    client = clients(tools.python(f"import sys\nsys.modules['torch'] = None\n{start}"))
    failure = tools.finish(client, job).failure
    assert failure.kind == "installation" and "torch" in failure.message and "installation check" in failure.remedy
    assert client.state == "stopped"
