"""The classifier of contrasts: what it learns from, what is measured of it, and what the bundled one tells apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import training
from MissingModalitySynthLib.input_range import range_warnings
from MissingModalitySynthLib.intensity import normalise
from MissingModalitySynthLib.modality import MODALITIES
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.volume import Geometry, Volume
from training.__main__ import main
from training.classifier import (
    HEADS,
    SIMULATED_MM,
    SLICE_MM,
    TrainedClassifier,
    classifier_losses,
    contrast_views,
    draw_views,
    halved,
    outlier,
    simulate_coarse,
)
from training.simulation.anatomy import mni_anatomy, procedural_head
from training.simulation.artefacts import acquire
from training.simulation.simulator import simulate
from training.simulation.tissues import CLASS
from training.stages import CHECKPOINT

SMOKE = Path(training.__file__).parent / "configs" / "smoke.yaml"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def anatomy():
    return procedural_head((96, 112, 96))


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "heads"


@pytest.fixture(scope="module")
def views(anatomy, heads):
    return contrast_views(lambda: [anatomy], 5, modalities=MODALITIES, cases=2, folder=heads)


def test_an_anatomy_at_2_mm_has_the_tissues_of_that_at_1_mm_in_the_same_shares(anatomy):
    small = halved(anatomy)
    assert small.labels.shape == tuple((n + 1) // 2 for n in anatomy.labels.shape)
    shares = [labels.flatten().bincount(minlength=40) / labels.numel() for labels in (anatomy.labels, small.labels)]
    assert (shares[0] - shares[1]).abs().max() < 0.01
    white = small.labels[tuple(small.white_matter.long().T)] == CLASS["white matter"]
    assert white.float().mean() > 0.8  # lesions still begin in white matter


def test_heads_are_scaled_as_the_engine_does_it_and_their_extent_is_that_of_the_anatomy(anatomy):
    made = simulate_coarse(anatomy, generator(), MODALITIES)
    for images in (made["whole"], made["brain"]):
        assert len(images) == len(MODALITIES) + 1
        assert images.min() == -1
        assert 0.5 < images.float().amax() <= 1
    whole, brain = made["whole extent"], made["brain extent"]
    assert (brain < whole).all()
    size = SIMULATED_MM * torch.tensor(halved(anatomy).labels.shape)
    assert ((whole > 0.75 * size) & (whole <= size)).all()  # the deformation scales by up to 20 %, fields of view cut


def test_examples_of_a_number_are_always_the_same_and_others_differ(views):
    assert torch.equal(views(3).features, views(3).features)
    assert not torch.equal(views(1).features, views(3).features)
    assert views(3).classes.tolist() == HEADS * list(range(len(MODALITIES) + 1))
    assert len(views(3).extents) == HEADS


def test_a_run_that_goes_on_takes_the_heads_that_it_has_simulated(views, heads):
    def none():
        raise AssertionError("simulated again")

    again = contrast_views(none, 5, modalities=MODALITIES, cases=2, folder=heads)
    assert torch.equal(again(3).features, views(3).features)


def test_views_stay_in_the_networks_range_and_outliers_of_a_brain_replace_the_ct():
    images = torch.rand(6, 1, 20, 22, 18, generator=generator()) * 2 - 1
    for seed in range(12):
        drawn = draw_views(images, generator(seed), stripped=True)
        assert len(drawn) == 6
        assert drawn.abs().max() <= 1
        assert drawn.isfinite().all()
        assert min(drawn.shape[2:]) >= 7
        alone = outlier((20, 22, 18), images[:1], generator(seed))
        assert alone.shape == (1, 1, 20, 22, 18)
        assert alone.abs().max() <= 1


def test_ranges_are_the_lowest_and_the_highest_of_the_examples(views):
    model, examples = TrainedClassifier(MODALITIES, 4), [views(n) for n in range(3)]
    model.measure(examples)
    for index in range(len(MODALITIES)):
        found = np.concatenate([each.quantiles[each.classes == index].numpy() for each in examples])
        np.testing.assert_allclose(model.quantiles[index].numpy(), np.stack([found.min(0), found.max(0)], 1))
    extents = np.concatenate([each.extents.numpy() for each in examples])
    np.testing.assert_allclose(model.extents.numpy(), np.stack([extents.min(0), extents.max(0)], 1))


def test_slices_are_no_thicker_in_the_simulator_than_the_packages_say():
    image = torch.rand(56, 56, 56, generator=generator())
    drawn = [acquire(image, generator(seed), generator(seed))[1].get("slice_thickness", 0.0) for seed in range(80)]
    assert 0.9 * SLICE_MM < max(drawn) <= SLICE_MM


class Answers(torch.nn.Module):
    def __init__(self, names):
        super().__init__()
        order = (*MODALITIES, "")
        self.logits = 50.0 * torch.eye(6)[[order.index(name) for name in names]].repeat(HEADS, 1)

    def forward(self, features):
        return self.logits


def test_mixing_up_t1_and_t1ce_counts_as_no_error(views):
    model = TrainedClassifier(MODALITIES, 4)
    model.network.decide = Answers(("T1ce", "T1", "T2", "FLAIR", "T2", ""))
    assert classifier_losses(model, views(0), generator())["error"].item() == pytest.approx(1 / 6)


def test_it_learns_to_tell_the_contrasts_of_heads_apart(views):
    torch.manual_seed(0)
    model, example = TrainedClassifier(MODALITIES, 32), views(0)
    before = classifier_losses(model.eval(), example, generator())["error"]
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        classifier_losses(model, example, generator())["cross_entropy"].backward()
        optimizer.step()
    assert before > 0.5
    assert classifier_losses(model.eval(), example, generator())["error"] < 0.1


def test_a_run_with_a_classifier_is_exported_with_the_ranges_of_its_training(tmp_path):
    settings = ["--config", str(SMOKE), "--run", str(tmp_path / "run"), "first_stage=haar"]
    for stage in ("regression", "classifier"):
        assert main([stage, *settings]) == 0
    assert (tmp_path / "run" / "classifier" / CHECKPOINT).is_file()
    assert main(["export", *settings, "--output", str(tmp_path / "made")]) == 0
    package = load_package(tmp_path / "made")
    assert package.methods == ("regression",)
    assert package.configuration("classifier") == {"classes": list(MODALITIES), "width": 8}
    trained = json.loads((package.path / "configs" / "metadata.json").read_text())["trained_on"]
    assert package.trained_on == trained
    assert set(trained["quantiles"]) == set(MODALITIES)
    assert all(low < high for low, high in trained["extent_mm"])
    assert "| classifier |" in (package.path / "docs" / "README.md").read_text()


# --- the bundled classifier -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled():
    package = load_package("micro")
    if package.trained_on is None:
        pytest.skip("the bundled package has no classifier")
    return package


@pytest.fixture(scope="module")
def simulated():
    """Clean images of one head, skull-stripped, by contrast."""
    anatomy = halved(mni_anatomy())
    return simulate(
        anatomy, shape=tuple(anatomy.labels.shape), generator=generator(3), sources=(), skull_strip=1.0, pathology=0.0,
        deform=0.0,
    ).targets  # fmt: skip


def doubts(package, array, modality):
    array = np.asarray(array, np.float32)
    volume = Volume(array, Geometry(array.shape, (2.0, 2.0, 2.0), direction=np.diag((-1, -1, 1))), "scan.nii.gz")
    image = torch.from_numpy(normalise(array)[0])[None, None]
    return [each for each in range_warnings(package, {modality: volume}, {modality: image}, (2.0, 2.0, 2.0))
            if "field of view" not in each]  # fmt: skip


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_contrast_that_was_named_rightly_is_not_doubted(bundled, simulated, modality):
    assert doubts(bundled, simulated[modality], modality) == []


@pytest.mark.parametrize(
    ("shown", "said"), [("T2", "T1"), ("T1", "T2"), ("FLAIR", "T2"), ("T2", "FLAIR"), ("T1", "PD")]
)
def test_a_contrast_that_was_named_wrongly_is_doubted_with_its_right_name(bundled, simulated, shown, said):
    assert doubts(bundled, simulated[shown], said) == [
        f"'scan.nii.gz' does not look like a {said} (it looks like a {shown}); check the contrast you chose."
    ]


def test_noise_looks_like_no_contrast(bundled):
    air = torch.randn(80, 96, 80, generator=generator()).abs().numpy()
    speckles = np.kron(air[:20, :24, :20], np.ones((4, 4, 4)))
    for array in (air, speckles):
        for modality in ("T1", "T2", "FLAIR", "PD"):
            assert any("nor like another contrast" in each for each in doubts(bundled, array, modality))
