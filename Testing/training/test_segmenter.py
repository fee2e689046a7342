"""What the segmenter learns from."""

from pathlib import Path

import pytest
import torch

import training
from MissingModalitySynthLib.errors import InputError
from training.batches import simulated_pairs
from training.configuration import load_configuration
from training.examples import make_examples
from training.segmenter import segmenter_losses
from training.simulation.anatomy import procedural_head

SMOKE = Path(training.__file__).parent / "configs" / "smoke.yaml"


def test_a_judge_of_one_contrast_sees_that_contrast_alone_acquired_and_clean(tmp_path):
    configuration = load_configuration(SMOKE, ["segmenter.contrasts=[T1]", "data.skull_strip=1.0"])
    examples = make_examples(configuration, tmp_path, contrasts=configuration["segmenter"]["contrasts"])
    for number in range(6):
        pair = examples(number)
        assert pair.target == "T1"
        assert list(pair.sources) == list(pair.images) == ["T1"]
        assert pair.labels.shape == pair.image.shape
        assert not torch.equal(pair.image, pair.sources["T1"])


def test_made_up_contrasts_are_of_the_target_and_take_the_place_of_what_was_acquired(tmp_path):
    """Drawn with a share of one, no example is the target or its source, and the labels stay those of the target."""
    configuration = load_configuration(SMOKE, ["segmenter.contrasts=[T1]", "data.skull_strip=1.0"])
    pair = make_examples(configuration, tmp_path, contrasts=["T1"])(0)
    seen = []

    def network(image):
        seen.append(image)
        return torch.zeros(1, 6, *image.shape[2:])

    for number in range(8):
        for share in (0.0, 1.0):
            generator = torch.Generator().manual_seed(number)
            segmenter_losses(network, pair, generator, class_weights=[1.0] * 6, made_up_share=share)
    known = [pair.image.clamp(max=1), pair.sources["T1"]]  # the range in which the engine shows images to a segmenter
    assert pair.image.max() > 1
    assert all(any(torch.equal(image, each) for each in known) for image in seen[::2])
    assert not any(torch.equal(image, each) for image in seen[1::2] for each in known)
    head = pair.image > -1
    assert all((image[~head] == -1).all() and (image[head] > -1).float().mean() > 0.99 for image in seen[1::2])


def test_a_judge_of_several_contrasts_sees_each_of_them():
    generator = torch.Generator().manual_seed(0)
    stream = simulated_pairs(
        [procedural_head((96, 104, 96))], generator, shapes=[(32, 32, 32)], contrasts=["T2", "FLAIR"], pairs_per_case=4
    )
    seen = [next(stream) for _ in range(8)]
    assert {pair.target for pair in seen} == {"T2", "FLAIR"}
    assert all(list(pair.sources) == [pair.target] for pair in seen)


def test_outside_the_brain_of_a_stripped_head_all_is_background(tmp_path):
    configuration = load_configuration(SMOKE, ["segmenter.contrasts=[T1]", "data.skull_strip=1.0"])
    pair = make_examples(configuration, tmp_path, contrasts=["T1"])(0)
    outside = pair.image == pair.image.min()
    assert outside.any()
    assert not pair.labels[outside & (pair.sources["T1"] == pair.sources["T1"].min())].any()


@pytest.mark.parametrize("wrong", ["[]", "[T1, T7]", "T1"])
def test_contrasts_that_are_not_known_are_refused(wrong):
    for key in ("segmenter.contrasts", "data.real_targets", "midiffusion.targets"):
        with pytest.raises(InputError, match=f"'{key}' must be"):
            load_configuration(SMOKE, [f"{key}={wrong}"])
