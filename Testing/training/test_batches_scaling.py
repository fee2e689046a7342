"""Crops of simulated heads: scaled as the engine would scale the whole head that they are cut from; and what becomes a
source, what a target."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from MissingModalitySynthLib.intensity import BRIGHTEST, DARKEST, intensity_range, normalise
from training import batches
from training.batches import BLACK_LEVEL, LIFT, SOURCE_COUNTS, DarkEnd, draw_roles, outlined, scaled, simulated_pairs
from training.simulation.simulator import Simulation


@pytest.fixture(scope="module")
def head():
    """Tissue of 3 to 9 units in air, with a bright centre."""
    axes = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    tissue = 6 + 3 * np.sin(7 * axes[0]) * np.cos(5 * axes[1]) + 6 * np.exp(-((radius / 0.2) ** 2))
    return np.where(radius < 0.9, tissue, 0).astype(np.float32)


@pytest.mark.parametrize("corner", [(0, 0, 0), (16, 16, 16), (14, 20, 12), (24, 8, 24)])
def test_a_crop_is_scaled_as_its_whole_head_with_or_without_air_in_it(head, corner):
    box = tuple(slice(start, start + 16) for start in corner)
    headroom = intensity_range(head).high / intensity_range(head[box]).high
    found = scaled(torch.from_numpy(head[box].copy()), headroom)
    assert found.shape == (1, 1, 16, 16, 16)
    found = outlined(found, torch.from_numpy(head[box] > 0))
    np.testing.assert_allclose(found[0, 0].numpy(), normalise(head)[0][box], atol=1e-5)


def test_a_head_that_is_the_crop_has_no_headroom(head):
    for brightest in (1.0, BRIGHTEST):
        found = scaled(torch.from_numpy(head), brightest=brightest)[0, 0].numpy()
        np.testing.assert_allclose(found, normalise(head, brightest=brightest)[0], atol=1e-5)
    assert found.max() > 1


def test_the_dark_end_is_cut_off_or_lifted_and_air_peak_and_order_stay(head):
    """A cut is a line to the peak above its level; a lift is a power of the signal, which makes no voxel darker."""
    image = outlined(scaled(torch.from_numpy(head)), torch.from_numpy(head > 0))
    cut = lifted = 0
    for seed in range(60):
        found = outlined(DarkEnd.draw(torch.Generator().manual_seed(seed))(image), torch.from_numpy(head > 0))
        if torch.equal(found, image):
            continue
        assert found.max() == pytest.approx(float(image.max()), abs=1e-5)
        assert torch.equal(found == -1, image == -1) and found[image > -1].min() >= DARKEST
        if (found > image + 1e-6).any():
            lifted += 1
            inside = (image > -0.99) & (image < 0.99)
            power = torch.log((found[inside] + 1) / 2) / torch.log((image[inside] + 1) / 2)
            assert LIFT[0] - 1e-3 <= power.min() and power.max() <= LIFT[1] + 1e-3
            assert power.std() < 1e-3
            continue
        cut += 1
        above, cut_off = found > DARKEST, found == DARKEST
        if cut_off.any():
            assert image[above].min() >= image[cut_off].max()
            assert image[cut_off].max() <= -1 + 2 * BLACK_LEVEL + 1e-6 + DARKEST + 1
        line = np.polyfit(image[above].numpy(), found[above].numpy(), 1)
        np.testing.assert_allclose(np.polyval(line, image[above].numpy()), found[above].numpy(), atol=1e-5)
    assert 8 < cut < 30 and 12 < lifted < 36


def test_t1ce_of_the_same_session_has_the_dark_end_of_its_t1(head, monkeypatch):
    """Without contrast agent: whatever curve its T1 went through, its T1ce is the same image but for the gain."""
    image = torch.from_numpy(head)

    def twice(anatomy, *, sources, targets, **options):
        inside, one = image > 0, {"T1": 1.0, "T1ce": 1.0}
        protocol = {"same_session": True, "skull_stripped": True, "anatomy": "a sphere"}
        images = dict.fromkeys(targets, image), dict.fromkeys(sources, image)
        return Simulation(*images, inside.byte(), torch.zeros_like(inside), inside, one, one, protocol)

    monkeypatch.setattr(batches, "simulate", twice)
    stream = simulated_pairs([None], torch.Generator().manual_seed(0), shapes=[head.shape], modalities=["T1", "T1ce"])
    curved = 0
    for pair in (pair for pair in islice(stream, 60) if pair.target == "T1ce"):
        before, after = pair.sources["T1"], pair.image
        inside = (before > DARKEST) & (before < 0.99) & (after > -0.99)
        line = np.polyfit(before[inside], after[inside], 1)
        plain = scaled(image, brightest=BRIGHTEST)
        curved += bool((after - plain).abs().max() > 0.05)
        np.testing.assert_allclose(np.polyval(line, before[inside]), after[inside], atol=0.06)
        assert torch.equal(after == -1, plain == -1)
    assert curved > 10


def test_targets_are_drawn_evenly_and_sources_by_their_weights():
    """Single sources: 1/5 of the targets is the contrast itself, else its share is its weight among the other four."""
    generator, names = torch.Generator().manual_seed(0), ("T1", "T1ce", "T2", "FLAIR", "PD")
    weights = {"T1": 3.0, "T1ce": 1.0, "T2": 2.0, "FLAIR": 1.0, "PD": 1.0}
    drawn = [draw_roles(generator, names, weights) for _ in range(20000)]
    assert all(target not in sources and len(set(sources)) == len(sources) for sources, target in drawn)
    targets = Counter(target for _, target in drawn)
    assert all(targets[name] == pytest.approx(4000, rel=0.06) for name in names)
    counts = Counter(len(sources) for sources, _ in drawn)
    assert [counts[n] / 20000 for n in (1, 2, 3)] == pytest.approx(SOURCE_COUNTS, abs=0.015)
    single = Counter(sources[0] for sources, _ in drawn if len(sources) == 1)
    for name, weight in weights.items():
        share = sum(weight / (8 - weights[other]) for other in names if other != name) / 5
        assert single[name] / single.total() == pytest.approx(share, abs=0.015)
    plain = Counter(draw_roles(generator, names)[0][0] for _ in range(20000))
    assert all(plain[name] / 20000 == pytest.approx(0.2, abs=0.012) for name in names)
    two = [draw_roles(generator, names[:2], weights) for _ in range(50)]
    assert {(tuple(sources), target) for sources, target in two} == {(("T1",), "T1ce"), (("T1ce",), "T1")}
