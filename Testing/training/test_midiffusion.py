"""MIDiffusion's training: the target alone, what stands in for the source, and the stage from start to package."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import training
from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.package_store import write_package
from MissingModalitySynthLib.request import Request
from MissingModalitySynthLib.synthesis import synthesize
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import write_volume
from training import pseudo_sources
from training.batches import Pair
from training.checkpoint import averaged_weights, with_prefix
from training.configuration import load_configuration
from training.data.subjects import Subject, check_subjects
from training.examples import make_examples
from training.export import export
from training.loop import generator_at
from training.midiffusion import midiffusion_losses, published_losses
from training.package_parts import kept_parts
from training.pseudo_sources import intensity_map, pseudo_source, tissue_contrast
from training.simulation.tissues import CLASS
from training.stages import CHECKPOINT, build_stage, load_translator, run_stage

SMOKE = Path(training.__file__).parent / "configs" / "smoke.yaml"
PUBLISHED = ["midiffusion.mode=published", "midiffusion.spatial_dims=2", "midiffusion.steps=2"]


pytestmark = pytest.mark.usefixtures("one_thread")


def configuration(*overrides):
    return load_configuration(SMOKE, ["machine.tensorboard=false", *overrides])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    settings = configuration("data.skull_strip=1.0")
    return make_examples(settings, tmp_path_factory.mktemp("run"), targets_alone=["T1"])(0)


def test_the_examples_hold_the_target_and_nothing_else(pair):
    assert (pair.target, pair.sources, set(pair.images)) == ("T1", {}, {"T1"})
    assert torch.equal(pair.images["T1"], pair.image)


def test_a_loss_is_the_same_whatever_sources_an_example_has(pair):
    model = build_stage("midiffusion", configuration()).model
    other = Pair({"T2": torch.randn_like(pair.image)}, "T1", pair.image, labels=pair.labels)
    losses = [midiffusion_losses(model, each, generator_at(5))["midiffusion"] for each in (pair, other)]
    assert losses[0] == losses[1]


def test_maps_of_intensities_rise_fall_or_do_neither_and_leave_no_tissue_dark():
    kinds = {"rises": 0, "falls": 0, "neither": 0}
    for number in range(400):
        values = intensity_map(generator_at(number))
        steps = values.diff()
        kinds["rises" if (steps > 0).all() else "falls" if (steps < 0).all() else "neither"] += 1
        assert values.min() == pytest.approx(0.05) and values.max() == pytest.approx(1.0)
        steps = intensity_map(generator_at(number), monotone=True).diff()
        assert (steps > 0).all() or (steps < 0).all()
    assert 60 < kinds["rises"] < 140 and 60 < kinds["falls"] < 140 and kinds["neither"] > 150


def test_a_pseudo_source_has_the_anatomy_and_background_of_the_target_and_contrasts_of_all_signs(pair):
    head = pair.image > -1
    correlations = []
    for number in range(12):
        source = pseudo_source(pair.image, generator_at(number), artefacts=0.0)
        assert source.shape == pair.image.shape and source.min() >= -1 and source.max() <= 1
        assert (source[~head] == -1).all() and (source[head] > -1).float().mean() > 0.99
        assert torch.equal(source, pseudo_source(pair.image, generator_at(number), artefacts=0.0))
        correlations.append(spearmanr(pair.image[head], source[head]).statistic)
        inverted_or_not = pseudo_source(pair.image, generator_at(number), artefacts=0.0, monotone_share=1.0)
        assert abs(spearmanr(pair.image[head], inverted_or_not[head]).statistic) > 0.99
    assert min(correlations) < -0.5 and max(correlations) > 0.5
    by_tissue = pseudo_source(pair.image, generator_at(1), artefacts=0.0, labels=pair.labels)
    assert (by_tissue[~head] == -1).all() and (by_tissue[head] > -1).float().mean() > 0.99
    assert not torch.equal(by_tissue, pseudo_source(pair.image, generator_at(1), artefacts=0.0))


def test_a_contrast_of_tissues_is_even_within_each_and_free_between_them():
    """With a target that is even within each tissue: far from edges one intensity a tissue, in any order."""
    labels = torch.zeros(24, 24, 24, dtype=torch.uint8)
    white, cortex, fluid = (CLASS[name] for name in ("white matter", "cortex", "ventricular CSF"))
    labels[:8], labels[8:16], labels[16:] = white, cortex, fluid
    signal = torch.tensor([0.9, 0.5, 0.2]).repeat_interleave(8).view(24, 1, 1).expand(24, 24, 24)
    orders, spans = set(), []
    for number in range(40):
        made = tissue_contrast(labels, signal, generator_at(number))
        assert made.min() >= 0.05 and made.max() <= 1
        spans.append(1 - float(made.min() / made.max()))
        middles = made[3:24:8]
        assert (middles - middles[:, :1, :1]).abs().max() < 1e-3
        orders.add(tuple(middles[:, 0, 0].argsort().tolist()))
    assert len(orders) == 6
    assert 0.4 < np.mean(np.array(spans) < 0.6) < 0.9 and max(spans) > 0.8  # flat ones and others


def test_some_contrasts_of_tissues_have_grey_and_white_matter_alike_and_fluid_apart(monkeypatch):
    """How far apart grey and white matter are, of what the three tissues span: for three independent even draws, less
    than x with a probability of 2 x / 3, since in a third of them these two are the extremes."""
    labels = torch.zeros(24, 24, 24, dtype=torch.uint8)
    labels[:8], labels[8:16], labels[16:] = (CLASS[name] for name in ("white matter", "cortex", "ventricular CSF"))

    def near(share):
        monkeypatch.setattr(pseudo_sources, "ALIKE_SHARE", share)
        found = []
        for number in range(200):
            made = tissue_contrast(labels, torch.full((24, 24, 24), 0.5), generator_at(number))[3:24:8, 12, 12]
            found.append(float((made[0] - made[1]).abs() / (made.max() - made.min())))
        return np.mean(np.array(found) < 0.3)

    assert near(0.0) == pytest.approx(0.2, abs=0.08)
    assert near(0.6) > 0.29  # of all that are not flat


def test_detail_of_the_target_within_a_tissue_goes_over_in_either_direction():
    labels = torch.full((16, 16, 16), CLASS["white matter"], dtype=torch.uint8)
    signal = 0.5 + 0.02 * torch.randn(16, 16, 16, generator=generator_at(0))
    slopes = []
    for number in range(24):
        made = tissue_contrast(labels, signal, generator_at(number))
        slopes.append(np.polyfit(signal.flatten(), made.flatten(), 1)[0])
    assert -1.01 < min(slopes) < -0.5 and 0.5 < max(slopes) < 1.01


@pytest.mark.parametrize(("overrides", "losses"), [([], midiffusion_losses), (PUBLISHED, published_losses)])
def test_training_steps_lower_the_loss_of_a_fixed_example(pair, overrides, losses):
    torch.manual_seed(0)
    model = build_stage("midiffusion", configuration(*overrides)).model
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    values = []
    for _ in range(12):
        loss = losses(model, pair, generator_at(7))["midiffusion"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


def test_a_run_that_is_interrupted_and_resumed_equals_one_that_is_not(tmp_path, same_tensors):
    settings = configuration("midiffusion.optimizer_steps=3")
    for run in ("whole", "parts"):
        run_stage("segmenter", settings, tmp_path / run)
    run_stage("midiffusion", settings, tmp_path / "whole")
    for _ in range(3):
        run_stage("midiffusion", settings, tmp_path / "parts", max_minutes=0)
    files = [tmp_path / run / "midiffusion" / CHECKPOINT for run in ("whole", "parts")]
    same_tensors(*files)


def test_the_latents_are_whitened_on_targets(zero_shot_run):
    weights = averaged_weights(zero_shot_run / "midiffusion" / CHECKPOINT)[0]
    assert weights["first_stage.latent_std"].min() > 0
    assert not torch.equal(weights["first_stage.latent_std"], torch.ones(1))


def test_the_tissues_are_told_by_the_segmenter_of_the_run_which_learns_no_more(zero_shot_run, tmp_path):
    packed = with_prefix(averaged_weights(zero_shot_run / "midiffusion" / CHECKPOINT)[0], "tissues.")
    learned = averaged_weights(zero_shot_run / "segmenter" / CHECKPOINT)[0]
    assert packed.keys() == learned.keys() and all(torch.equal(packed[name], learned[name]) for name in learned)
    with pytest.raises(InputError, match="train the stage 'segmenter' first"):
        run_stage("midiffusion", configuration(), tmp_path / "without")


def test_a_package_takes_zero_shot_translation_from_a_run_of_its_own(zero_shot_run, tmp_path):
    for stage in ("segmenter", "regression"):
        run_stage(stage, configuration("seed=3"), tmp_path / "run")
    package = export(configuration(), tmp_path / "run", tmp_path / "both", zero_shot=zero_shot_run)
    assert package.methods == ("regression", "midiffusion")
    for part, run in (("segmenter", tmp_path / "run"), ("midiffusion", zero_shot_run)):
        learned = averaged_weights(run / part / CHECKPOINT)[0]
        packed = package.weights(part)
        assert packed.keys() == learned.keys()
        assert all(torch.equal(packed[name], learned[name].half()) for name in learned)
    card = (package.path / "docs" / "README.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in card.splitlines() if " min | " in line] == [
        "| segmenter",
        "| regression",
        "| midiffusion",
        "| segmenter of midiffusion",
    ]
    with pytest.raises(InputError, match="has no checkpoint of midiffusion"):
        export(configuration(), tmp_path / "run", tmp_path / "none", zero_shot=tmp_path / "run")


def test_a_package_keeps_the_parts_that_no_run_has_trained_anew(zero_shot_run, tmp_path):
    for stage in ("segmenter", "regression"):
        run_stage(stage, configuration("seed=3"), tmp_path / "run")
    first = export(configuration(), tmp_path / "run", tmp_path / "first", zero_shot=zero_shot_run)
    run_stage("regression", configuration("seed=4"), tmp_path / "again")
    package = export(configuration(), tmp_path / "again", tmp_path / "second", keep=tmp_path / "first")
    assert package.methods == ("regression", "midiffusion") and package.default_method == "regression"
    assert package.zero_shot_targets == first.zero_shot_targets
    assert package.metadata["segmenter"] == first.metadata["segmenter"]
    for part in ("segmenter", "midiffusion"):
        kept, packed = first.weights(part), package.weights(part)
        assert package.configuration(part) == first.configuration(part)
        assert packed.keys() == kept.keys() and all(torch.equal(packed[name], kept[name]) for name in kept)
    cards = [(each.path / "docs" / "README.md").read_text(encoding="utf-8") for each in (first, package)]
    for start in ("| segmenter |", "| midiffusion |", "| segmenter of midiffusion |", "Zero-shot", "The segmenter saw"):
        lines = [[line for line in card.splitlines() if line.startswith(start)] for card in cards]
        assert lines[0] == lines[1] and len(lines[0]) == 1
    third = export(configuration(), tmp_path / "run", tmp_path / "third", keep=package.path)  # has a segmenter
    learned = averaged_weights(tmp_path / "run" / "segmenter" / CHECKPOINT)[0]
    assert all(torch.equal(each, learned[name].half()) for name, each in third.weights("segmenter").items())


def test_the_bundled_package_can_be_kept_from():
    assert [part.stage for part in kept_parts("micro", ["classifier"])] == ["segmenter", "midiffusion"]


def test_parts_of_a_package_that_says_nothing_of_their_training_are_not_kept(zero_shot_run, tmp_path):
    first = export(configuration(), zero_shot_run, tmp_path / "first")
    silent = write_package(
        tmp_path / "silent",
        metadata={key: value for key, value in first.metadata.items() if key != "parts"},
        networks=first.networks,
        tensors={part: first.weights(part) for part in ("segmenter", "midiffusion")},
        model_card="none",
        licence="none",
    )
    run_stage("regression", configuration(), tmp_path / "run")
    with pytest.raises(InputError, match="'silent' does not say how its segmenter was trained"):
        export(configuration(), tmp_path / "run", tmp_path / "out", keep=silent.path)
    assert not (tmp_path / "out").exists()


def test_the_published_form_trains_on_images_and_is_loaded_again(tmp_path):
    settings = configuration(*PUBLISHED, "data.shapes=[[16, 16, 16]]")
    run_stage("midiffusion", settings, tmp_path)
    model = load_translator("midiffusion", settings, tmp_path)
    assert (model.mode, model.spatial_dims, model.first_stage.factor, model.default_steps) == ("published", 2, 1, 2)
    assert torch.equal(model.first_stage.latent_std, torch.ones(1))


def test_a_run_becomes_a_package_that_makes_the_target_from_a_contrast_of_no_name(zero_shot_run, tmp_path):
    package = export(configuration(), zero_shot_run, tmp_path / "zero-shot")
    assert package.methods == ("midiffusion",)
    assert (package.sources, package.targets, package.zero_shot_targets) == ((), (), ("T1",))
    axis = np.linspace(-1, 1, 32)
    radius = np.sqrt(sum(np.square(each) for each in np.meshgrid(axis, axis, axis, indexing="ij")))
    head = 1000 * (radius < 0.8) * (1.2 + np.sin(7 * radius) + 0.3 * np.sin(9 * axis))
    volume = Volume(head.astype(np.float32), Geometry((32, 32, 32), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), "scan")
    result = synthesize(Request({"other": volume}, ["T1"], package, method="midiffusion", device="cpu"))
    made = result.volumes["T1"]
    assert made.geometry.matches(volume.geometry) and np.isfinite(made.array).all() and made.array.max() > 0


def test_weights_of_another_mode_are_not_exported(zero_shot_run, tmp_path):
    with pytest.raises(InputError, match=r"different: midiffusion\.mode"):
        export(configuration("midiffusion.mode=published"), zero_shot_run, tmp_path / "out")


def test_scans_of_the_target_alone_are_enough(tmp_path, scan):
    for number in range(3):
        folder = tmp_path / "bids" / f"sub-{number}" / "anat"
        folder.mkdir(parents=True)
        write_volume(scan("T1"), folder / f"sub-{number}_T1w.nii.gz")
    everyone = "data.splits={train: 1.0, validation: 0.0, test: 0.0}"
    settings = configuration(f"data.real={tmp_path / 'bids'}", "data.shapes=[[32, 32, 32]]", everyone)
    examples = make_examples(settings, tmp_path / "run", targets_alone=["T1"])
    found = [examples(number) for number in range(4)]
    assert all(each.target == "T1" and not each.sources for each in found)
    with pytest.raises(InputError, match="two contrasts or more"):
        make_examples(settings | {"data": settings["data"] | {"broken": "stop"}}, tmp_path / "other")
    lonely = Subject("nobody", {})
    assert "one of the targets" in check_subjects([lonely], fewest=1)["nobody"]
