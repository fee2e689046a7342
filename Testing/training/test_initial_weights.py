"""Stages that begin with the weights of another run or of a package, say to be fine-tuned on scans of one's own."""

from pathlib import Path

import pytest
import torch

import training
from MissingModalitySynthLib.errors import InputError
from training.__main__ import main
from training.checkpoint import averaged_weights
from training.configuration import load_configuration
from training.export import export
from training.stages import CHECKPOINT, begin_with, build_stage, run_stage

SMOKE = Path(training.__file__).parent / "configs" / "smoke.yaml"


def configuration(*overrides):
    return load_configuration(SMOKE, ["first_stage=haar", "machine.tensorboard=false", *overrides])


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A run of the regression, MS-SPADE and the diffusion, and its package."""
    run = tmp_path_factory.mktemp("runs") / "earlier"
    for stage in ("regression", "spade", "diffusion"):
        run_stage(stage, configuration(), run)
    export(configuration(), run, run.parent / "package")
    return run


@pytest.mark.parametrize("stage", ["regression", "spade", "diffusion"])
def test_a_stage_without_learning_keeps_the_weights_that_it_began_with(stage, earlier, tmp_path):
    still = configuration(f"initial={earlier}", "optimizer.learning_rate=0", "seed=7")
    if stage == "diffusion":
        run_stage("spade", still, tmp_path)
    run_stage(stage, still, tmp_path)
    before = averaged_weights(earlier / stage / CHECKPOINT)[0]
    after = averaged_weights(tmp_path / stage / CHECKPOINT)[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {"spread"}  # which the diffusion measures anew


def test_zero_shot_translation_begins_with_an_earlier_unet_and_the_segmenter_of_its_own_run(tmp_path):
    for name, overrides in (("first", ["seed=1"]), ("second", [f"initial={tmp_path / 'first'}", "seed=2"])):
        run_stage("segmenter", configuration(*overrides), tmp_path / name)
        run_stage("midiffusion", configuration(*overrides, "optimizer.learning_rate=0"), tmp_path / name)
    first, second = (averaged_weights(tmp_path / name / "midiffusion" / CHECKPOINT)[0] for name in ("first", "second"))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed
    assert all(name.startswith("tissues.") for name in changed)
    segmenter = averaged_weights(tmp_path / "second" / "segmenter" / CHECKPOINT)[0]
    assert all(torch.equal(second[f"tissues.{name}"], tensor) for name, tensor in segmenter.items())


@pytest.mark.parametrize("stage", ["regression", "spade", "diffusion"])
def test_a_package_gives_the_weights_of_its_run_rounded_to_half_precision(stage, earlier):
    model = build_stage(stage, configuration()).model
    untrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    begin_with(model, earlier.parent / "package", stage)
    trained = averaged_weights(earlier / stage / CHECKPOINT)[0]
    taken = [name for name in trained if name != "spread" and (stage != "diffusion" or name.startswith("denoiser."))]
    for name, tensor in model.state_dict().items():
        if name in taken:
            torch.testing.assert_close(tensor, trained[name], rtol=1e-3, atol=1e-4)
        elif stage == "diffusion":
            assert torch.equal(tensor, untrained[name])


def test_the_regression_begins_with_a_narrower_network_of_the_same_function(earlier):
    narrow = build_stage("regression", configuration()).model
    begin_with(narrow, earlier, "regression")
    wider = {"networks": configuration()["networks"] | {"regression": {"features": [16, 32, 16, 48, 16, 16]}}}
    wide = build_stage("regression", configuration() | wider).model
    begin_with(wide, earlier, "regression")
    x = torch.randn(1, 10, 32, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(wide.eval().unet(x), narrow.eval().unet(x), rtol=1e-3, atol=1e-4)


def test_a_resumed_run_goes_on_with_its_own_weights(earlier, tmp_path):
    begun = configuration(f"initial={earlier}")
    run_stage("regression", begun, tmp_path)
    after = averaged_weights(tmp_path / "regression" / CHECKPOINT)[0]
    run_stage("regression", begun, tmp_path)
    again = averaged_weights(tmp_path / "regression" / CHECKPOINT)[0]
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_what_holds_no_weights_of_the_stage_is_named(earlier, tmp_path, capsys):
    with pytest.raises(InputError, match="neither a package nor a run that has trained 'regression'"):
        run_stage("regression", configuration(f"initial={tmp_path}"), tmp_path / "run")
    other = configuration(f"initial={earlier}", "modalities=[T1, T2]")
    with pytest.raises(InputError, match="holds weights of other networks"):
        run_stage("regression", other, tmp_path / "run")
    arguments = ["regression", "--config", str(SMOKE), "--run", str(tmp_path / "run"), "initial=3"]
    assert main(arguments) != 0
    assert "'initial' must be a text" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
