"""The baselines of the zero-shot table, and how it counts."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from MissingModalitySynthLib.volume import Geometry, Volume
from training.evaluation.cases import Case

FOLDER = Path(__file__).parents[1] / "benchmark"


@pytest.fixture
def benchmark(monkeypatch):
    """Function: name of a script of Testing/benchmark -> its module."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


class Negative(nn.Module):
    """The contrast that is inverted, there and back."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(-1.0))

    def forward(self, image):
        return self.gain * image


def test_generators_that_undo_each_other_close_the_cycle_and_fail_the_identity(benchmark):
    cyclegan = benchmark("cyclegan")
    model = cyclegan.build()
    model["there"], model["back"] = Negative(), Negative()
    x, y = (2 * torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) - 1 for seed in (0, 1))
    terms = cyclegan.losses(model, cyclegan.Unpaired(x, y), torch.Generator())
    assert terms["cycle"].item() == pytest.approx(0, abs=1e-6)
    expected = cyclegan.IDENTITY * (2 * x.abs().mean() + 2 * y.abs().mean())
    assert terms["identity"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert not cyclegan.losses(model, cyclegan.Unpaired(x, y), torch.Generator(), identity=0.0)["identity"]


def test_each_discriminator_learns_from_its_own_loss_alone(benchmark):
    cyclegan = benchmark("cyclegan")
    torch.manual_seed(0)
    model = cyclegan.build()
    x, y = (2 * torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) - 1 for seed in (0, 1))
    terms = cyclegan.losses(model, cyclegan.Unpaired(x, y), torch.Generator())
    terms["discriminator target"].backward(retain_graph=True)
    moved = {part for part in model for weight in model[part].parameters() if weight.grad is not None}
    assert moved == {"target"}
    model.zero_grad(set_to_none=True)
    terms["adversarial target"].backward()
    moved = {part for part in model for weight in model[part].parameters() if weight.grad is not None}
    assert moved == {"there"}


def test_a_generator_that_changes_nothing_gives_the_source_back_on_its_own_grid(benchmark, tmp_path):
    benchmark("cyclegan").load = lambda run, name: nn.Identity()
    zero_shot = benchmark("zero_shot")
    array = np.zeros((48, 56, 40), np.float32)
    array[8:40, 8:48, 8:32] = 1 + np.random.default_rng(0).random((32, 40, 24))
    volume = Volume(array, Geometry(array.shape, (1.0,) * 3, (5.0, 6.0, 7.0), np.diag((-1.0, 1.0, 1.0))), "head")
    case = Case("someone", {"PD": volume, "T2": volume}, {"T1": volume}, mask=array > 0)
    (tmp_path / "PD").mkdir()
    contend = zero_shot.by_slices(tmp_path)
    assert contend(case, "T2") is None  # it was not trained
    made = contend(case, "PD")
    assert made.shape == array.shape
    low, high = np.percentile(array, [0.5, 99.5])
    inside = (array > 0) & (array < high)
    np.testing.assert_allclose(made[inside] / 2, ((array - low) / (high - low))[inside], atol=0.01)


@pytest.mark.parametrize(("count", "kept"), [(None, range(40)), (8, range(16, 24)), (100, range(40))])
def test_a_slab_is_the_middle_of_the_head_where_it_lay(benchmark, count, kept):
    array = np.zeros((4, 5, 40), np.float32)
    array[:, :, 10:30] = np.arange(20) + 1
    volume = Volume(array, Geometry(array.shape, (1.0, 1.0, 2.0), (5.0, 6.0, 7.0), np.diag((-1.0, 1.0, 1.0))), "head")
    case = Case("someone", {"PD": volume}, {"T1": volume}, mask=array > 0, tissues=array.astype(np.uint8))
    slab = benchmark("zero_shot").slab_of(case, count)
    for cut in (slab.sources["PD"], slab.targets["T1"]):
        np.testing.assert_array_equal(cut.array, array[:, :, kept])
        np.testing.assert_allclose(cut.geometry.index_to_world((1, 2, 0)), (4.0, 8.0, 7.0 + 2 * kept[0]))
    assert slab.mask.shape == slab.tissues.shape == slab.sources["PD"].array.shape


def test_of_judged_slices_the_published_form_sees_these_and_all_others_the_whole_head(benchmark, monkeypatch):
    zero_shot, seen = benchmark("zero_shot"), {}
    monkeypatch.setattr(zero_shot, "label", lambda judge, volume, mask: volume)
    array = np.random.default_rng(0).integers(0, 5, (16, 16, 40)).astype(np.float32)
    volume = Volume(array, Geometry(array.shape), "head")
    case = Case("someone", {"PD": volume}, {"T1": volume}, mask=array >= 0, tissues=array.astype(np.uint8))

    def identity(row):
        return row, lambda case, name: seen.setdefault(row, case.sources[name].array)

    published = f"{zero_shot.PUBLISHED}, 10 steps"
    rows = [identity(published), identity("ours")]
    records = list(zero_shot.records_of(case, "simulated", None, rows, judged=12))
    np.testing.assert_array_equal(seen[published], array[:, :, 14:26])
    np.testing.assert_array_equal(seen["ours"], array)
    parts = [(record["row"], record["scope"]) for record in records]
    assert parts == [(published, "12 slices"), ("ours", "head"), ("ours", "12 slices")]
    for record in records:
        assert record["dice"] == record["agreement"] == 1 and record["psnr"] > 60  # the same slices of both
    known = {zero_shot.identity(record) for record in records[1:]}
    (again,) = zero_shot.records_of(case, "simulated", None, rows, known, judged=12)
    assert again["row"] == published


def test_a_slab_is_not_taken_for_the_head_and_classes_that_no_one_has_are_left_out(benchmark, monkeypatch):
    zero_shot = benchmark("zero_shot")
    monkeypatch.setattr(zero_shot, "label", lambda judge, volume, mask: volume)
    array = np.random.default_rng(0).integers(0, 5, (16, 16, 12)).astype(np.float32)
    volume = Volume(array, Geometry(array.shape), "head")
    case = Case("someone", {"PD": volume}, {"T1": volume}, mask=array >= 0, tissues=array.astype(np.uint8))
    rows = [("ours", lambda case, name: case.sources[name].array)]
    known = {("simulated", "someone", "PD", "ours", "head")}
    (record,) = zero_shot.records_of(case, "simulated", None, rows, known, part="12 slices alone")
    assert record["scope"] == "12 slices alone" and len(record["by_class"]) == 4  # no lesions


@pytest.mark.parametrize("name", ["package", "run"])
def test_ours_is_a_run_or_a_package_with_options_of_the_sampler_changed(
    benchmark, zero_shot_packages, zero_shot_run, name
):
    source = {"package": zero_shot_packages.alone, "run": zero_shot_run}[name]
    model = benchmark("zero_shot").zero_shot_model(str(source), guidance=0.3, window=15)
    assert (model.guidance, model.window, model.modalities) == (0.3, 15, ("T1",))


def test_slices_that_were_made_are_judged_amid_the_acquired_ones_and_between_their_percentiles(benchmark):
    acquired = np.random.default_rng(0).random((16, 16, 40)).astype(np.float32)
    slices = np.s_[:, :, 14:26]
    whole = benchmark("zero_shot").amid(acquired, slices, 30 * acquired[slices] + 5)
    np.testing.assert_allclose(whole, acquired, atol=1e-5)
    other = benchmark("zero_shot").amid(acquired, slices, -acquired[slices])
    np.testing.assert_array_equal(np.delete(other, range(14, 26), 2), np.delete(acquired, range(14, 26), 2))
    np.testing.assert_allclose(
        np.percentile(other[slices], [0.5, 99.5]), np.percentile(acquired[slices], [0.5, 99.5]), atol=1e-5
    )


def test_the_table_has_means_over_heads_and_a_row_for_each_contender(benchmark):
    zero_shot = benchmark("zero_shot")
    common = {"kind": "simulated", "source": "PD", "seconds": 2.0, "scope": "head", "agreement": 0.95}
    records = [
        common | {"row": "ours", "dice": 0.9, "psnr": 20.0},
        common | {"row": "ours", "dice": 0.8, "psnr": 22.0},
        common | {"row": "SDEdit", "dice": 0.5, "psnr": 15.0, "seconds": 1.0},
        common | {"row": "ours", "dice": 0.4, "psnr": 14.0, "scope": "12 slices", "kind": "scans"},
    ]
    lines = zero_shot.tables(records).splitlines()
    assert lines[0] == "Judged: head"
    assert lines[2] == "| | PD → T1, simulated | seconds | images |"
    assert lines[4] == "| ours | 0.850 ± 0.071 (0.950), 21.00 dB | 2.0 | 2 |"
    assert lines[5] == "| SDEdit | 0.500 (0.950), 15.00 dB | 1.0 | 1 |"
    assert lines[7] == "Judged: 12 slices"
    assert lines[11] == "| ours | 0.400, 14.00 dB | 2.0 | 1 |"
