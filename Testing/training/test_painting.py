"""Pathology painted into scans, here simulated heads that stand in for them."""

from itertools import islice

import numpy as np
import pytest
import torch
from scipy import ndimage

from MissingModalitySynthLib.intensity import BRIGHTEST, DARKEST, normalise
from MissingModalitySynthLib.volume import Geometry
from training.data import painting
from training.data.cache import CanonicalSubject
from training.data.painting import canvas, paint
from training.data.pairs import subject_pairs
from training.data.subjects import Subject
from training.simulation import procedural_head, simulate
from training.simulation.tissues import CLASS

SHAPE = (64, 64, 64)
NAMES = ("T1", "T2", "FLAIR")
START = (6, 6, 6)


@pytest.fixture(scope="module")
def head():
    """A clean, stripped, healthy head, and its tissue classes."""
    made = simulate(
        procedural_head((104, 116, 104)),
        shape=(80, 88, 80),
        generator=torch.Generator().manual_seed(1),
        sources=[],
        targets=NAMES,
        skull_strip=1.0,
        pathology=0.0,
        deform=0.3,
    )
    images = {name: normalise(image.numpy(), brightest=BRIGHTEST)[0] for name, image in made.targets.items()}
    mask = made.brain_mask.numpy()
    images = {name: np.where(mask, np.maximum(image, DARKEST), -1).astype(np.float32) for name, image in images.items()}
    case = CanonicalSubject("head", images, mask, None, Geometry(mask.shape))
    return case, made.labels.numpy() * mask


@pytest.fixture(scope="module")
def scan(head):
    return canvas(head[0])


@pytest.fixture(scope="module")
def crop(head):
    box = tuple(slice(first, first + size) for first, size in zip(START, SHAPE, strict=True))
    return {name: image[box] for name, image in head[0].images.items()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def painted(scan, crop, seeds=range(12), strength=10.0):
    return [result for seed in seeds if (result := paint(scan, crop, START, generator(seed), strength))]


def test_white_matter_is_found_where_it_is_and_lesions_start_there(head, scan):
    case, truth = head
    shifted = scan.anatomy.white_matter.long() + scan.corner
    hit = truth[tuple(shifted.T.numpy())]
    assert len(hit) > 100
    assert np.mean(np.isin(hit, [CLASS["white matter"], CLASS["cerebellar white matter"], CLASS["brainstem"]])) > 0.9
    inner = ndimage.binary_erosion(truth == CLASS["white matter"])
    for name, image in case.images.items():
        assert scan.white[name] == pytest.approx(np.median((image[inner] + 1) / 2), rel=0.05)


def test_there_is_no_canvas_without_a_t1_or_with_a_skull(head):
    case, _ = head
    without = CanonicalSubject("a", {"T2": case.images["T2"]}, case.mask, None, case.geometry)
    assert canvas(without) is None
    size = (140, 140, 140)  # 2.7 litres
    whole = CanonicalSubject("b", {"T1": np.ones(size, np.float32)}, np.ones(size, bool), None, Geometry(size))
    assert canvas(whole) is None


def test_targets_change_in_lesions_alone_and_sources_by_one_gain_elsewhere(scan, crop):
    results = painted(scan, crop)
    assert len(results) == 12
    for sources, targets, lesions in results:
        assert lesions.any() and lesions.dtype == bool and lesions.shape == SHAPE
        for name, image in crop.items():
            np.testing.assert_allclose(targets[name][~lesions], image[~lesions], atol=1e-6)
            assert np.abs(targets[name] - image)[lesions].max() > 0.05
            rest = ~lesions & (image > -0.9)
            gains = (sources[name][rest] + 1) / (image[rest] + 1)
            np.testing.assert_allclose(gains, gains.mean(), rtol=1e-4)
            assert gains.mean() <= 1 + 1e-6
            for role in (sources, targets):
                assert role[name].dtype == np.float32
                assert role[name].max() <= BRIGHTEST
                np.testing.assert_array_equal(role[name] == -1, image == -1)


def test_oedema_is_dark_in_t1_and_bright_in_t2_and_flair_by_as_much_as_the_simulator_says(scan, crop, monkeypatch):
    """Everything in a ball becomes oedema at its fullest, of a subject without deviations."""
    middle = np.indices(SHAPE) - 32

    def ball(labels, severity, anatomy, origin, generator, strength):
        inside = torch.from_numpy((middle**2).sum(0) < 18**2) & (labels == CLASS["white matter"])
        labels[inside], severity[inside] = CLASS["oedema"], 31

    monkeypatch.setattr(painting, "paint_pathology", ball)
    ratios = {name: [] for name in crop}
    for seed in range(8):
        _, targets, lesions = paint(scan, crop, START, generator(seed))
        core = ndimage.binary_erosion(lesions, iterations=2)
        assert core.sum() > 50
        for name, image in crop.items():
            ratios[name].append(np.median((targets[name][core] + 1) / (image[core] + 1)))
    # T1 850 -> 1550, T2 73 -> 170, PD 0.70 -> 0.87 at 3 T: the spin echo of T2 by its closed form
    expected = 0.87 / 0.70 * np.exp(-94 / 170 + 94 / 73) * (1 - np.exp(-5500 / 1550)) / (1 - np.exp(-5500 / 850))
    assert np.median(ratios["T2"]) == pytest.approx(expected, rel=0.25)
    assert 0.4 < np.median(ratios["T1"]) < 0.8
    assert np.median(ratios["FLAIR"]) > 1.4


def test_sources_are_scaled_as_the_whole_scan_with_its_lesions(head, scan, crop):
    """The engine's percentile of the whole scan, in which the crop is replaced by what was painted."""
    case, _ = head
    box = tuple(slice(first, first + size) for first, size in zip(START, SHAPE, strict=True))
    results = painted(scan, crop)
    scaled = 0
    for sources, _, lesions in results:
        for name, image in case.images.items():
            rest = ~lesions & (crop[name] > -0.9)
            gain = float(np.median((sources[name][rest] + 1) / (crop[name][rest] + 1)))
            whole = (image + 1) / 2
            before = np.percentile(whole, 99.5)
            whole[box] = (sources[name] + 1) / 2 / gain
            after = np.percentile(whole, 99.5)
            assert 1 / gain == pytest.approx(max(after / before, 1), rel=0.06)
            scaled += gain < 0.97
    assert scaled > 0


def test_the_same_generator_paints_the_same_and_no_chance_paints_nothing(scan, crop):
    one, two = (paint(scan, crop, START, generator(4), 10.0) for _ in range(2))
    for a, b in zip(one[:2], two[:2], strict=True):
        for name in NAMES:
            np.testing.assert_array_equal(a[name], b[name])
    assert all(paint(scan, crop, START, generator(seed), 0.0) is None for seed in range(4))


def test_a_crop_larger_than_the_scan_is_painted_within_it(head, scan):
    case, _ = head
    padded = {name: np.pad(image, 8, constant_values=-1.0) for name, image in case.images.items()}
    _, targets, lesions = paint(scan, padded, (-8, -8, -8), generator(2), 10.0)
    truth = np.pad(case.mask, 8)
    assert lesions.any() and not (lesions & ~truth).any()
    for name, image in padded.items():
        np.testing.assert_allclose(targets[name][~lesions], image[~lesions], atol=1e-6)


def test_pairs_show_the_same_lesions_in_source_target_and_mask(head, monkeypatch):
    """A block at one end of each crop, flipped with it or not."""
    case, _ = head
    block = np.zeros(SHAPE, bool)
    block[2:20, 30:40, 30:40] = True

    def mark(scan, images, start, generator, strength):
        box = tuple(slice(first, first + size) for first, size in zip(start, SHAPE, strict=True))
        for name, image in images.items():
            np.testing.assert_array_equal(image, case.images[name][box])
        roles = ({name: np.where(block, value, image) for name, image in images.items()} for value in (0.75, 1.5))
        return *roles, block

    monkeypatch.setattr("training.data.pairs.paint", mark)
    monkeypatch.setattr("training.data.pairs.canvas", lambda case: True)
    subject = Subject("head", dict.fromkeys(NAMES, "unused"))
    options = {"shapes": [SHAPE], "pairs_per_case": 1, "load": lambda subject: case}
    ends = set()
    for pair in islice(subject_pairs([subject], generator(7), pathology=1.0, **options), 8):
        for image, value in ((pair.image, 1.5), *((source, 0.75) for source in pair.sources.values())):
            assert torch.equal(image == value, pair.lesions)
        ends.add(bool(pair.lesions[0, 0, :32].any()))
    assert ends == {False, True}
    assert all(pair.lesions is None for pair in islice(subject_pairs([subject], generator(7), **options), 4))


def test_a_canvas_is_made_once_while_it_is_kept(head, scan):
    assert canvas(head[0]) is scan
