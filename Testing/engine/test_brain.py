"""The brain of a whole head: where it is, and that it is synthesized as if its skull had been stripped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from MissingModalitySynthLib import synthesis
from MissingModalitySynthLib.brain import find_brain, shows_skull
from MissingModalitySynthLib.errors import Cancelled
from MissingModalitySynthLib.intensity import head_mask
from MissingModalitySynthLib.metrics import dice
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.networks.segmenter import Segmenter
from MissingModalitySynthLib.package_store import write_package
from MissingModalitySynthLib.preparation import prepare, take_out
from MissingModalitySynthLib.request import Request, checked
from MissingModalitySynthLib.segmentation import CLASSES
from MissingModalitySynthLib.synthesis import synthesize
from MissingModalitySynthLib.translators.regression import RegressionTranslator
from MissingModalitySynthLib.volume import Geometry, Volume
from Testing.conftest import METADATA as TINY

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 128
TISSUE, SCALP, BONE = 600.0, 1000.0, 60.0
MODALITIES = ["T1", "T2"]
REGRESSION = {
    "modalities": MODALITIES,
    "first_stage": {"kind": "haar", "levels": 0},
    "unet": {"features": [8, 8, 8, 8, 8, 8]},
    "outlined": True,
    "brain_apart": True,
}
METADATA = TINY | {"sources": MODALITIES, "targets": MODALITIES, "segmenter": {"classes": list(CLASSES)}}


class ByBrightness(nn.Module):
    """Calls white matter what is as bright as this, in the middle of the range, and all else background."""

    def __init__(self, low=-0.3, high=0.6):
        super().__init__()
        self.range = nn.Parameter(torch.tensor([low, high]))

    def forward(self, image):
        tissue = (image > self.range[0]) & (image < self.range[1])
        logits = torch.zeros(1, len(CLASSES), *image.shape[2:])
        logits[:, CLASSES.index("white matter")] = torch.where(tissue, 9.0, -9.0)
        return logits


def distance(centre=(64, 64, 66), radii=(50, 54, 48)):
    axes = np.ogrid[:SIDE, :SIDE, :SIDE]
    return np.sqrt(sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)))


@pytest.fixture(scope="module")
def anatomy():
    """A head in noise: its image, and the brain in it with a sulcus; muscle as bright as the brain hangs below it."""
    radius = distance()
    brain = radius < 0.85
    noise = np.abs(np.random.default_rng(0).normal(0, 8, brain.shape))
    image = np.where(radius < 1.15, SCALP, noise)
    image = np.where(radius < 1.03, BONE + noise, image)
    image = np.where(brain, TISSUE * (1 + 0.1 * np.sin(np.arange(SIDE) / 5)), image)
    muscle = distance((64, 64, 8), (16, 16, 12)) < 1
    x, y, z = np.ogrid[:SIDE, :SIDE, :SIDE]
    image = np.where(brain & (abs(x - 64) < 3) & (z > 80), BONE + noise, image)  # the sulcus
    stalk = (abs(x - 64) < 2) & (abs(y - 64) < 2)
    muscle |= stalk & (z > 8) & (z < 40)
    return np.where(muscle & ~brain, TISSUE, image).astype(np.float32), brain


@pytest.fixture
def head(anatomy):
    return Volume(anatomy[0], Geometry(anatomy[0].shape), "head")


def test_the_brain_is_found_with_its_sulci_and_without_muscle_that_hangs_on_it(head, anatomy):
    told = []
    found = find_brain(ByBrightness(), head, head_mask(head.array), on_window=told.append)
    assert found[anatomy[1]].mean() > 0.995
    assert dice(found, ndimage.distance_transform_edt(~anatomy[1]) < 5, True) > 0.95  # mm
    assert found[64, 64, 82:100].all()  # the sulcus
    assert not found[:, :, :14].any()  # the muscle
    assert told[0] == 0 and told == sorted(told) and len(told) > 1


def test_the_outline_leaves_some_millimetres_around_the_tissue_whatever_the_spacing(head, anatomy):
    thick = Volume(head.array[:, :, ::2], Geometry((SIDE, SIDE, SIDE // 2), (1, 1, 2)), "thick")
    for volume, brain in ((head, anatomy[1]), (thick, anatomy[1][:, :, ::2])):
        found = find_brain(ByBrightness(), volume, head_mask(volume.array))
        litres = [mask.sum() * np.prod(volume.geometry.spacing) / 1e6 for mask in (brain, found | brain)]
        thickness = np.diff(np.cbrt(np.divide(litres, 4 / 3 * np.pi)))[0] * 100  # of balls of these volumes, in mm
        assert 3 < thickness < 6


def test_no_tissue_is_no_brain_and_a_head_that_is_all_tissue_is_all_brain(head):
    mask = head_mask(head.array)
    assert not find_brain(ByBrightness(0.99, 1.0), head, mask).any()
    assert np.array_equal(find_brain(ByBrightness(-2.0, 2.0), head, mask), mask)


def test_a_speck_is_no_brain(head, anatomy):
    image = np.where(anatomy[1] & (distance() > 0.4), BONE, head.array)
    assert not find_brain(ByBrightness(), replace(head, array=image), head_mask(head.array)).any()


@pytest.mark.parametrize("axis", range(3))
def test_of_a_slab_no_brain_is_found_for_it_may_be_neck(head, axis):
    slab = np.moveaxis(np.moveaxis(head.array, axis, 0)[44:80], 0, axis)  # 54 mm, more than half a litre of tissue
    volume = Volume(np.ascontiguousarray(slab), Geometry(slab.shape, (1.5, 1.5, 1.5)), "slab")
    assert not find_brain(ByBrightness(), volume, head_mask(volume.array)).any()


def test_a_cut_that_leaves_too_little_is_not_made():
    """A crust of tissue around more than a brain: all but a knot of it is thinner than what the thicker cuts spare."""
    radius = distance(radii=(50, 50, 50))
    crust = (radius > 0.84) & (radius < 1.04)
    tissue = crust | (distance((64, 64, 22), (12, 12, 12)) < 1)
    image = np.where(tissue, TISSUE, SCALP * (radius < 1.2)).astype(np.float32)
    volume = Volume(image, Geometry(image.shape, (1.8, 1.8, 1.8)), "crust")
    assert find_brain(ByBrightness(), volume, head_mask(image))[crust].mean() > 0.9


def test_a_skull_shows_by_its_air_or_its_size(head, anatomy):
    brain = anatomy[1]
    stripped = np.where(brain, 0.5, -1.0)
    assert not shows_skull(stripped, brain, 1.0)
    assert shows_skull(np.where(brain, 0.5, -0.99), brain, 1.0)  # air has noise
    assert shows_skull(stripped, brain, 8.0)  # 3 litres


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    torch.manual_seed(0)
    return write_package(
        tmp_path_factory.mktemp("models") / "apart",
        metadata=METADATA,
        networks={"default_method": "regression", "methods": {"regression": REGRESSION}, "segmenter": {"width": 8}},
        tensors={"regression": RegressionTranslator(**REGRESSION).state_dict(), "segmenter": Segmenter(8).state_dict()},
        model_card="Random weights.",
        licence="Apache-2.0",
    )


@pytest.fixture
def found(monkeypatch, anatomy):
    """What the segmenter finds is the true brain; the heads that it was shown."""
    shown = []

    def find(segmenter, volume, head, on_window):
        shown.append(volume)
        on_window(0.0)
        index = np.stack(np.meshgrid(*map(np.arange, volume.geometry.size), indexing="ij"), axis=-1)
        world = volume.geometry.index_to_world(index)
        nearest = np.rint(world).astype(int).clip(0, SIDE - 1)
        return anatomy[1][tuple(np.moveaxis(nearest, -1, 0))]

    monkeypatch.setattr(synthesis, "find_brain", find)
    return shown


def made(volume, package, **options):
    return synthesize(Request({"T1": volume}, ["T2"], package, device="cpu", shading=False, **options))


def test_what_lies_around_a_brain_does_not_change_what_is_made_of_it(head, anatomy, package, found):
    brighter = replace(head, array=np.where(head.array >= 0.9 * SCALP, 1.5 * head.array, head.array))
    inside = distance() < 0.75  # far from the brain's edge
    apart, apart_brighter = (made(each, package).volumes["T2"].array for each in (head, brighter))
    whole, whole_brighter = (made(each, package, brain_apart=False).volumes["T2"].array for each in (head, brighter))
    assert np.abs(apart - apart_brighter)[inside].mean() < 1e-3 * TISSUE  # resampling mixes the edges
    assert np.abs(whole - whole_brighter)[inside].mean() > 0.02 * TISSUE
    assert apart[~anatomy[1] & (distance() < 1.1)].max() > 0  # the skull is there as well
    assert len(found) == 2


def test_the_brain_alone_is_scaled_as_a_stripped_volume_is(head, anatomy, package):
    request = checked(Request({"T1": head}, ["T2"], package, shading=False))
    prepared = prepare(request, 16)
    mask = prepared.mask & (prepared.images["T1"][0, 0].numpy() > -0.5) & (prepared.images["T1"][0, 0].numpy() < 0.6)
    taken = take_out(mask, request, prepared, 16)
    assert all(size % 16 == 0 for size in taken.grid.geometry.size)
    start = [side.start for side in taken.box]
    np.testing.assert_allclose(taken.grid.geometry.origin, prepared.grid.geometry.index_to_world(start))
    image = taken.images["T1"][0, 0].numpy()
    assert np.array_equal(image > -1, taken.mask)
    assert taken.mask.sum() == mask.sum()  # all of it is in the box
    ratio = (image[taken.mask] + 1) / (prepared.images["T1"][0, 0].numpy()[taken.box][taken.mask] + 1)
    assert taken.intensities.top < prepared.intensities.top and np.median(ratio) > 1.2  # by its own tissue, not by fat


def test_result_provenance_and_notices_say_that_the_brain_was_apart(head, package, found):
    result = made(head, package)
    assert result.notices == ("The brain of 'head' was found, and synthesized apart from its skull.",)
    assert result.provenance["T2"]["brain"] == "apart from the skull"
    assert result.seconds["find brain"] >= 0
    whole = made(head, package, brain_apart=False)
    assert "brain" not in whole.provenance["T2"] and whole.notices == ()


def test_stripped_brains_and_packages_that_know_heads_are_not_searched(head, anatomy, package, found, tmp_path):
    stripped = replace(head, array=np.where(anatomy[1], head.array, 0))
    assert "brain" not in made(stripped, package).provenance["T2"]
    knows = {"regression": REGRESSION | {"brain_apart": False}}
    heads = write_package(
        tmp_path / "heads",
        metadata=METADATA,
        networks={"default_method": "regression", "methods": knows, "segmenter": {"width": 8}},
        tensors={name: package.weights(name) for name in ("regression", "segmenter")},
        model_card="Random weights.",
        licence="Apache-2.0",
    )
    assert "brain" not in made(head, heads).provenance["T2"]
    assert not found


@pytest.mark.parametrize(
    ("find", "notices", "whereabouts"),
    [
        (
            np.zeros_like,
            ("No whole brain was found in 'head', so all that it shows was synthesized in one.",),
            "not found",
        ),
        (np.copy, (), "without a skull"),
    ],
    ids=["no brain", "nothing but brain"],
)
def test_a_head_is_made_in_one_where_there_is_no_brain_or_no_skull(
    head, package, monkeypatch, find, notices, whereabouts
):
    monkeypatch.setattr(synthesis, "find_brain", lambda segmenter, volume, mask, on_window: find(mask))
    result = made(head, package)
    assert result.notices == notices
    np.testing.assert_array_equal(
        result.volumes["T2"].array, made(head, package, brain_apart=False).volumes["T2"].array
    )
    assert result.provenance["T2"]["brain"] == whereabouts


def test_both_pieces_are_announced_and_a_run_stops_within_the_search(head, package, found):
    request = Request({"T1": head}, ["T2"], package, device="cpu", shading=False)
    seen = []
    synthesize(request, progress=seen.append)
    fractions = [event.fraction for event in seen]
    assert fractions == sorted(fractions) and 0.9 < fractions[-1] <= 1
    stages = [event.stage for event in seen]
    assert stages.count("find brain") == 2 and stages.count("encode") == 2
    last = len(stages) - 1 - stages[::-1].index("find brain")
    count = []
    with pytest.raises(Cancelled):
        synthesize(request, progress=count.append, cancelled=lambda: len(count) == last)


def test_the_bundled_model_makes_the_brain_of_a_head_apart():
    package = load_package("micro")
    assert package.has_segmenter and package.configuration("regression")["brain_apart"]
