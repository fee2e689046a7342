"""The one function behind every face, with small random networks: geometry, seeds, progress, refusals, memory."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.networks.nets.basic_unet import BasicUNet
from scipy import ndimage
from torch import nn

from MissingModalitySynthLib import NOTICE, synthesis
from MissingModalitySynthLib.canonical import from_canonical
from MissingModalitySynthLib.errors import Cancelled, GeometryError, InputError, ModelPackageError, OutOfMemoryError
from MissingModalitySynthLib.intensity import BRIGHTEST
from MissingModalitySynthLib.networks.haar import HaarFirstStage
from MissingModalitySynthLib.package_store import write_package
from MissingModalitySynthLib.request import Request
from MissingModalitySynthLib.synthesis import synthesize
from MissingModalitySynthLib.translators import METHODS
from MissingModalitySynthLib.translators.base import Translator
from MissingModalitySynthLib.volume import Geometry, Volume
from Testing.conftest import METADATA as TINY

MODALITIES = ["T1", "T2", "FLAIR"]
UNET = {
    "channels": [8, 8],
    "attention": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 4,
    "norm_num_groups": 4,
}
COMMON = {"modalities": MODALITIES, "first_stage": {"kind": "haar"}}
ALDM = COMMON | {"spade": {"stem": 8, "residual": [8], "spade": [8], "hidden": 4}, "denoiser": UNET, "sigma": 0.5}
METADATA = TINY | {"name": "Random", "sources": MODALITIES, "targets": MODALITIES, "spacing_mm": [3, 3, 3]}


def random_weights(method, configuration):
    torch.manual_seed(0)
    translator = METHODS[method](**configuration)
    for parameter in translator.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(1 / parameter[0].numel()) ** 0.5)
    return translator.state_dict()


def package_of(folder, metadata=(), **methods):
    return write_package(
        folder,
        metadata=METADATA | dict(metadata),
        networks={"default_method": next(iter(methods)), "methods": methods},
        tensors={method: random_weights(method, configuration) for method, configuration in methods.items()},
        model_card="Random weights.",
        licence="Apache-2.0",
    )


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    return package_of(
        tmp_path_factory.mktemp("models") / "random", aldm=ALDM, regression=COMMON | {"unet": {"features": [16] * 6}}
    )


def rotation(degrees_z, degrees_x):
    z, x = np.deg2rad([degrees_z, degrees_x])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    return about_z @ about_x


def centred(size, spacing, direction=None):
    """A grid whose centre is the world's origin, where the smooth head is."""
    direction = np.eye(3) if direction is None else np.asarray(direction)
    origin = -direction @ ((np.array(size) - 1) / 2 * spacing)
    return Geometry(size, spacing, origin, direction)


PLAIN = centred((20, 26, 24), (3, 3, 3))
GEOMETRIES = {
    "the model's own spacing": PLAIN,
    "anisotropic": centred((60, 80, 16), (1.03, 0.97, 4.7)),
    "oblique": centred((26, 32, 30), (2.5, 2.7, 3.1), rotation(17, -11)),
    "flipped": centred((20, 26, 24), (3, 3, 3.0), np.diag([-1, -1, 1])),
    "permuted": centred((24, 20, 26), (3, 3, 3.0), np.eye(3)[:, [2, 0, 1]]),
}


@pytest.fixture
def head(smooth_head):
    return smooth_head(PLAIN)


def request_for(head, package, *targets, **options):
    return Request({"T1": head}, targets or ("T2",), package, device="cpu", **options)


def voxels(request, target="T2"):
    return synthesize(request).volumes[target].array


@pytest.mark.parametrize("name", GEOMETRIES)
def test_results_lie_on_exactly_the_grid_of_the_reference(smooth_head, package, name):
    source = smooth_head(GEOMETRIES[name])
    before = source.array.copy()
    result = synthesize(request_for(source, package, "T2", samples=2))
    for volume in (result.volumes["T2"], result.deviations["T2"]):
        assert volume.geometry == source.geometry
        assert volume.array.shape == source.array.shape
        assert volume.array.dtype == np.float32
        assert np.isfinite(volume.array).all()
        assert volume.array.min() >= 0
        assert volume.array.max() > 0
    assert np.array_equal(source.array, before)


def test_a_reference_of_its_own_gives_the_grid_but_is_not_a_source(smooth_head, package):
    reference, source = smooth_head(GEOMETRIES["oblique"], "reference"), smooth_head(PLAIN, "source")
    result = synthesize(request_for(source, package, reference=reference))
    assert result.volumes["T2"].geometry == reference.geometry
    assert result.provenance["T2"]["reference"] == "reference"
    assert result.provenance["T2"]["sources"] == {"T1": "source"}


def test_sources_on_different_grids_are_used_together(smooth_head, head, package):
    other = smooth_head(GEOMETRIES["oblique"])
    both = synthesize(Request({"T1": head, "FLAIR": other}, ["T2"], package, device="cpu"))
    assert both.volumes["T2"].geometry == head.geometry
    assert not np.array_equal(both.volumes["T2"].array, voxels(request_for(head, package)))


def test_a_model_without_shading_gets_that_of_its_sources_unless_it_is_not_wanted(head, tmp_path):
    methods = {"regression": COMMON | {"unet": {"features": [16] * 6}}}
    plain = package_of(tmp_path / "plain", **methods)
    unshaded = package_of(tmp_path / "unshaded", metadata={"shading": "removed"}, **methods)
    ramp = np.linspace(0.8, 1.2, head.array.shape[0], dtype=np.float32)[:, None, None]
    head = replace(head, array=head.array * ramp)
    made = voxels(request_for(head, plain))
    np.testing.assert_array_equal(voxels(request_for(head, unshaded, shading=False)), made)
    result = synthesize(request_for(head, unshaded))
    shaded = result.volumes["T2"].array
    shown = made > 0
    ratio = np.log(shaded[shown] / made[shown])
    assert 0.005 < ratio.std() < 0.3
    assert abs(ratio.mean()) < 0.05
    steps = np.diff(
        np.where(shown & (shaded > 0), np.log(np.maximum(shaded, 1e-6) / np.maximum(made, 1e-6)), np.nan), axis=0
    )
    assert np.nanmax(abs(steps)) < 0.1  # smooth
    assert result.provenance["T2"]["shading"] == "of the sources"


def test_a_t1ce_keeps_its_share_of_the_t1_that_it_was_made_of(head, tmp_path):
    names = [*MODALITIES, "T1ce"]
    options = COMMON | {"modalities": names, "unet": {"features": [16] * 6}}
    shares = {share: options | {"t1_in_t1ce": share} for share in (0.0, 0.25, 1.0)}
    told = {"sources": names, "targets": names}
    packages = {k: package_of(tmp_path / str(k), metadata=told, regression=v) for k, v in shares.items()}
    results = {k: synthesize(Request({"T1": head}, ["T1ce", "T2"], p, device="cpu")) for k, p in packages.items()}
    plain, quarter, whole = (results[share].volumes["T1ce"].array for share in shares)
    np.testing.assert_allclose(quarter, 0.75 * plain + 0.25 * whole, atol=1e-4 * plain.max())
    inside = (plain > 0) & (whole > 0)
    assert abs(np.corrcoef(whole[inside], head.array[inside])[0, 1]) > 0.99
    assert results[0.25].provenance["T1ce"]["share_of_sources"] == {"T1": 0.25}
    assert "T1ce: 25% of it is the T1 itself." in results[0.25].notices
    assert not any("itself" in notice for notice in results[0.0].notices)
    assert "share_of_sources" not in results[0.0].provenance["T1ce"] | results[0.25].provenance["T2"]
    np.testing.assert_array_equal(*(results[share].volumes["T2"].array for share in (0.0, 1.0)))
    other = [synthesize(Request({"T2": head}, ["T1ce"], packages[k], device="cpu")) for k in (0.0, 1.0)]
    np.testing.assert_array_equal(*(each.volumes["T1ce"].array for each in other))


class Identity(Translator):
    """Networks that return their source."""

    method, mode, default_steps, iterative = "identity", "one step", 1, False

    def __init__(self):
        super().__init__(MODALITIES, HaarFirstStage(), network_factor=8, width=8)

    def condition(self, latents, target):
        return next(iter(latents.values()))

    def stochastic(self, steps):
        return False

    def sample(self, condition, target, *, steps, generator, on_step):
        on_step(0, 1)
        return condition


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1, -1, 1]), np.eye(3)[:, [2, 0, 1]], rotation(17, -11)])
def test_with_networks_that_return_their_source_the_pipeline_is_a_round_trip(
    smooth_head, tmp_path, monkeypatch, direction
):
    package = package_of(tmp_path / "identity", {"spacing_mm": [1, 1, 1]}, aldm=ALDM)
    monkeypatch.setattr(synthesis, "load_translator", lambda *_: Identity())
    smooth = smooth_head(centred((60, 78, 66), (1, 1, 1), direction))
    # skull-stripped, and more than 0.5 % of the voxels share the maximum: nothing is clipped by the percentiles
    array = np.where(smooth.array > 300, np.minimum(smooth.array, 1050), 0).astype(np.float32)
    source = Volume(array, smooth.geometry, "T1")
    result = voxels(request_for(source, package))
    assert np.abs(result - array).max() < 1e-3 * array.max()


def test_background_stays_background(head, package):
    result = voxels(request_for(head, package))
    assert (result[head.array < 1] == 0).all()
    assert (result > 0).mean() > 0.1


@pytest.mark.parametrize("name", ["anisotropic", "oblique"])
def test_background_is_exactly_zero_where_the_grid_is_resampled(smooth_head, package, name):
    source = smooth_head(GEOMETRIES[name])
    result = synthesize(request_for(source, package, samples=2))
    air = ndimage.binary_erosion(source.array < 1, iterations=2)
    assert air.any()
    for volume in (result.volumes["T2"], result.deviations["T2"]):
        assert (volume.array[air] == 0).all()


def test_no_voxel_is_brighter_than_1_6_times_the_bright_end_of_the_reference(head, package):
    bright = Volume(head.array * 7, head.geometry, head.name)
    assert voxels(request_for(bright, package)).max() <= 1.6 * bright.array.max()
    np.testing.assert_allclose(voxels(request_for(bright, package)), 7 * voxels(request_for(head, package)), rtol=1e-3)


def test_the_same_seed_gives_the_same_voxels_and_another_seed_others(head, package):
    a, again, b = (voxels(request_for(head, package, seed=seed)) for seed in (3, 3, 4))
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)


def test_other_targets_of_the_same_run_do_not_change_a_result(head, package):
    alone = voxels(request_for(head, package, "FLAIR"), "FLAIR")
    together = synthesize(request_for(head, package, "T2", "FLAIR"))
    assert list(together.volumes) == ["T2", "FLAIR"]
    assert np.array_equal(together.volumes["FLAIR"].array, alone)
    assert not np.array_equal(together.volumes["T2"].array, alone)


def test_the_regression_makes_all_targets_in_one_pass(head, package, monkeypatch):
    passes, forward = [], BasicUNet.forward

    def counted(self, inputs):
        passes.append(inputs)
        return forward(self, inputs)

    monkeypatch.setattr(BasicUNet, "forward", counted)
    fractions = []
    request = request_for(head, package, "T2", "FLAIR", method="regression")
    result = synthesize(request, progress=lambda progress: fractions.append(progress.fraction))
    assert len(passes) == 1 and list(result.volumes) == ["T2", "FLAIR"]
    assert fractions[-1] > 0.9  # the second target does not wait for a pass of its own


def test_mean_and_deviation_are_those_of_the_samples_made_by_hand(head, package, monkeypatch):
    made, grids = [], []
    original, prepare = synthesis.decode, synthesis.prepare
    monkeypatch.setattr(synthesis, "prepare", lambda *arguments: grids.append(prepare(*arguments)) or grids[-1])

    def recording(*arguments):
        image = original(*arguments)
        made.append(image[0, 0].float().clamp(-1, BRIGHTEST).numpy().astype(np.float64))
        return image

    monkeypatch.setattr(synthesis, "decode", recording)
    result = synthesize(request_for(head, package, samples=4))
    assert len(made) == 4
    assert not np.array_equal(made[0], made[1])
    (prepared,) = grids
    half = prepared.intensities.high / 2  # 2 units of the network
    for volume, expected in (
        (result.volumes["T2"], np.mean(made, axis=0) + 1),
        (result.deviations["T2"], np.std(made, axis=0, ddof=1)),
    ):
        native = from_canonical(np.where(prepared.mask, expected * half, 0), prepared.grid).array
        np.testing.assert_allclose(volume.array, native, rtol=1e-4, atol=1e-3)
        assert native.max() > 0
    first = synthesize(request_for(head, package, samples=1))
    assert first.deviations == {}
    assert np.array_equal(made[-1], made[0])  # the sample number belongs to the seed: sample 0 is always the same


def test_progress_never_runs_back_and_names_every_stage(head, package):
    seen = []
    synthesize(request_for(head, package, "T2", "FLAIR", samples=3, steps=5), progress=seen.append)
    fractions = [event.fraction for event in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert 0.9 < fractions[-1] <= 1
    stages = [event.stage for event in seen]
    for stage in ("load model", "prepare", "encode", "condition", "sample", "step 5 of 5", "decode", "native grid"):
        assert stage in stages
    assert stages.count("step 1 of 5") == 6
    assert {event.target for event in seen if event.stage.startswith("step")} == {"T2", "FLAIR"}
    assert all(event.seconds_left is None or event.seconds_left >= 0 for event in seen)


def test_seconds_are_given_for_every_stage(head, package):
    seconds = synthesize(request_for(head, package)).seconds
    assert set(seconds) == {"load model", "prepare", "encode", "condition", "sample", "decode", "native grid"}
    assert all(value >= 0 for value in seconds.values())


def test_a_run_stops_at_every_announcement_when_told(head, package):
    request, announced = request_for(head, package, steps=3), []
    synthesize(request, progress=announced.append)
    for stop in range(len(announced)):
        seen = []
        with pytest.raises(Cancelled, match="nothing was kept"):
            synthesize(request, progress=seen.append, cancelled=lambda: len(seen) == stop)  # noqa: B023
        assert [event.stage for event in seen] == [event.stage for event in announced[:stop]]


def test_methods_without_chance_make_one_sample_and_say_so(head, package):
    result = synthesize(request_for(head, package, "T2", "FLAIR", method="regression", samples=5, steps=7))
    assert result.notices == ("The method 'regression' is deterministic here; one sample was made.",)
    assert result.deviations == {}
    assert result.provenance["T2"]["samples"] == 1
    assert result.provenance["T2"]["steps"] == 1


def test_provenance_is_complete_and_plain_data(head, package):
    source = replace(head, name="patient T1")
    result = synthesize(Request({"t1w": source}, ["t2w"], package, steps=3, samples=2, seed=9, device="cpu"))
    provenance = result.provenance["T2"]
    assert json.loads(json.dumps(provenance)) == provenance
    expected = {
        "synthetic": True,
        "notice": NOTICE,
        "target": "T2",
        "sources": {"T1": "patient T1"},
        "reference": "patient T1",
        "method": "aldm",
        "mode": "bridge",
        "steps": 3,
        "samples": 2,
        "seed": 9,
        "package": "random",
        "package_version": METADATA["version"],
        "package_sha256": package.digest,
        "device": "cpu",
    }
    assert expected.items() <= provenance.items()
    assert provenance["software"].startswith("MissingModalitySynth ")
    assert provenance["torch"] == torch.__version__
    assert provenance["created"].endswith("+00:00")
    assert "synthetic" in result.volumes["T2"].name


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"sources": {}}, InputError, "At least one source"),
        ({"targets": []}, InputError, "At least one target.*T1, T2, FLAIR"),
        ({"targets": ["XYZ"]}, InputError, "XYZ"),
        ({"targets": ["T1w"]}, InputError, "T1 is both a source and a target"),
        ({"targets": ["PD"]}, InputError, "cannot make PD, only T1, T2, FLAIR"),
        ({"method": "teleport"}, ModelPackageError, "no method 'teleport', only aldm, regression"),
        ({"steps": 0}, InputError, "steps must be between 1 and 1000, not 0"),
        ({"samples": 0}, InputError, "samples must be between 1 and 100, not 0"),
        ({"samples": 101}, InputError, "samples must be between 1 and 100"),
        ({"seed": -1}, InputError, "seed must be a non-negative 64-bit integer, not -1"),
        ({"device": "cuda:99"}, InputError, "no device 'cuda:99'"),
    ],
)
def test_requests_that_cannot_be_done_are_refused_with_the_reason(head, package, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        synthesize(replace(request_for(head, package), **changes))


def test_a_source_that_the_package_does_not_know_is_refused(head, package):
    with pytest.raises(InputError, match="cannot start from PD, only from T1, T2, FLAIR"):
        synthesize(Request({"PD": head}, ["T2"], package))


def test_two_names_of_the_same_modality_are_refused(head, package):
    with pytest.raises(InputError, match="T1 is given twice"):
        synthesize(Request({"T1": head, "T1w": head}, ["T2"], package))


def test_volumes_that_cannot_be_used_are_refused_by_name(head, package):
    array = head.array.copy()
    array[3, 3, 3] = np.nan
    with pytest.raises(InputError, match="'ill' has 1 voxels that are NaN"):
        synthesize(request_for(Volume(array, head.geometry, "ill"), package))


def test_sources_of_another_place_are_refused(smooth_head, head, package):
    x, y, z = PLAIN.origin
    moved = Geometry(PLAIN.size, PLAIN.spacing, (x, y, z + 300), PLAIN.direction)
    elsewhere = Volume(head.array, moved, "elsewhere")
    with pytest.raises(GeometryError, match=r"'elsewhere'.*share only 0 % of the head"):
        synthesize(Request({"T1": head, "FLAIR": elsewhere}, ["T2"], package))


def test_a_package_that_promises_more_than_its_networks_know_is_refused(head, tmp_path):
    package = package_of(tmp_path / "boasting", {"targets": [*MODALITIES, "PD"]}, aldm=ALDM)
    with pytest.raises(ModelPackageError, match=r"'boasting' promises PD.*method 'aldm'"):
        synthesize(request_for(head, package, "PD"))


def test_where_the_gpu_runs_out_of_memory_the_cpu_takes_over_and_that_is_said(head, package, monkeypatch):
    expected = voxels(request_for(head, package))
    to = nn.Module.to

    def full(self, *arguments, **options):
        if arguments == (torch.device("cuda:0"),):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return to(self, *arguments, **options)

    monkeypatch.setattr(nn.Module, "to", full)
    cpu_memory, cpu_type = synthesis.free_memory, synthesis.autocast_dtype
    monkeypatch.setattr(synthesis, "choose_device", lambda _: (torch.device("cuda:0"), ""))
    monkeypatch.setattr(synthesis, "free_memory", lambda d: cpu_memory(d) if d.type == "cpu" else 1 << 40)
    monkeypatch.setattr(synthesis, "autocast_dtype", lambda d: cpu_type(d) if d.type == "cpu" else None)
    seen = []
    result = synthesize(replace(request_for(head, package), device="auto"), progress=seen.append)
    assert result.notices == ("The memory of cuda:0 does not suffice; computed on the CPU instead.",)
    assert result.provenance["T2"]["device"] == "cpu"
    assert np.array_equal(result.volumes["T2"].array, expected)
    fractions = [event.fraction for event in seen]
    assert fractions == sorted(fractions)


def test_where_the_cpu_has_too_little_memory_nothing_is_begun(head, package, monkeypatch):
    monkeypatch.setattr(synthesis, "free_memory", lambda _: 1000)
    with pytest.raises(OutOfMemoryError, match=r"memory of cpu does not suffice for a head of \d+ x \d+ x \d+ voxels"):
        synthesize(request_for(head, package))


def test_a_failure_that_is_not_about_memory_is_not_hidden(head, package, monkeypatch):
    def defect(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(synthesis, "decode", defect)
    with pytest.raises(RuntimeError, match="a defect"):
        synthesize(request_for(head, package))


def test_a_broken_gpu_is_mentioned_in_the_result(head, package, monkeypatch):
    monkeypatch.setattr(synthesis, "choose_device", lambda _: (torch.device("cpu"), "The GPU is broken."))
    assert synthesize(request_for(head, package)).notices == ("The GPU is broken.",)
