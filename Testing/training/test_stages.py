"""The stages in miniature: what they pass on, and that all of them together give a package that synthesizes."""

import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from safetensors.torch import save_file

import training
from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.request import Request
from MissingModalitySynthLib.segmentation import CLASSES, segment
from MissingModalitySynthLib.synthesis import synthesize
from MissingModalitySynthLib.volume_io import read_volume
from training.__main__ import main
from training.batches import by_number, simulated_pairs
from training.checkpoint import averaged_weights
from training.configuration import load_configuration
from training.examples import load_anatomies, make_examples
from training.export import export
from training.loop import generator_at
from training.package_parts import finite_as_float16
from training.stages import (
    CHECKPOINT,
    build_aldm,
    build_stage,
    check_shapes,
    load_translator,
    run_stage,
    whiten,
)

SMOKE = Path(training.__file__).parent / "configs" / "smoke.yaml"
ORDER = ("segmenter", "autoencoder", "spade", "diffusion", "regression")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a run of all stages of the smoke recipe."""
    run = tmp_path_factory.mktemp("runs") / "smoke"
    for stage in ORDER:
        assert main([stage, "--config", str(SMOKE), "--run", str(run)]) == 0
    return run


def configuration(*overrides, ablation=None):
    return load_configuration(SMOKE, overrides, ablation)


def test_all_stages_export_and_synthesize(trained, tmp_path):
    package, subjects = tmp_path / "smoke", tmp_path / "subjects"
    settings = ["--config", str(SMOKE)]
    assert main(["export", *settings, "--run", str(trained), "--output", str(package)]) == 0
    assert main(["simulate", *settings, "--cases", "1", "--output", str(subjects)]) == 0
    assert (subjects / "preview.png").stat().st_size > 1000
    loaded = load_package(package)
    assert set(loaded.methods) == {"aldm", "regression"}
    t1 = read_volume(subjects / "acquired" / "simulated-0001" / "simulated-0001_T1.nii.gz")
    for method in loaded.methods:
        result = synthesize(Request({"T1": t1}, ["FLAIR"], loaded, method=method, device="cpu"))
        assert result.volumes["FLAIR"].geometry.matches(t1.geometry)
        assert np.isfinite(result.volumes["FLAIR"].array).all()
    assert loaded.metadata["segmenter"] == {"classes": list(CLASSES), "contrasts": None}
    labels = segment(t1, loaded, device="cpu")
    assert labels.geometry.matches(t1.geometry)
    assert labels.array.max() < len(CLASSES)
    card = (package / "docs" / "README.md").read_text()
    for stage in ORDER:
        assert f"| {stage} |" in card
    assert "The networks saw no patient's image." in card


def test_later_stages_take_over_the_averaged_autoencoder_and_leave_it_as_it_is(trained):
    stages = {name: averaged_weights(trained / name / CHECKPOINT)[0] for name in ORDER}
    learned = {name: value for name, value in stages["autoencoder"].items() if name.startswith("first_stage")}
    measured = ("first_stage.latent_mean", "first_stage.latent_std")
    for later in ("spade", "diffusion"):
        for name, value in learned.items():
            assert torch.equal(stages[later][name], value) is (name not in measured)
    for name, value in stages["spade"].items():
        assert torch.equal(stages["diffusion"][name], value) is (name != "spread")  # which is measured
    assert not any(name.startswith("denoiser") for name in stages["spade"])


def test_latents_are_whitened_on_images_of_any_size():
    model = build_aldm(configuration("first_stage=kl"))
    images = [torch.randn(1, 1, *shape) for shape in ((16, 16, 16), (24, 16, 8))]
    whiten(model.first_stage, images)
    with torch.no_grad():
        latents = torch.cat([model.first_stage.encode(image).flatten(2) for image in images], dim=2)
    assert torch.allclose(latents.mean(dim=(0, 2)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std(dim=(0, 2)), torch.ones(4), atol=1e-3)


def test_a_stage_that_is_interrupted_and_resumed_equals_one_that_is_not(trained, tmp_path, same_tensors):
    settings = configuration("diffusion.optimizer_steps=3", "machine.tensorboard=false")
    for run in ("whole", "parts"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "spade").symlink_to(trained / "spade")
    run_stage("diffusion", settings, tmp_path / "whole")
    for _ in range(3):
        run_stage("diffusion", settings, tmp_path / "parts", max_minutes=0)
    files = [tmp_path / run / "diffusion" / CHECKPOINT for run in ("whole", "parts")]
    same_tensors(*files)


def test_gradient_checkpointing_changes_no_weight_of_a_stage_and_computes_its_blocks_again(
    trained, tmp_path, monkeypatch
):
    calls = []
    original = DiffusionUNetResnetBlock.forward
    monkeypatch.setattr(DiffusionUNetResnetBlock, "forward", lambda *inputs: calls.append(1) or original(*inputs))
    weights, counts = [], []
    for name in ("kept", "again"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "spade").symlink_to(trained / "spade")
        settings = configuration("machine.tensorboard=false", f"machine.gradient_checkpointing={name == 'again'}")
        calls.clear()
        run_stage("diffusion", settings, tmp_path / name)
        counts.append(len(calls))
        weights.append(averaged_weights(tmp_path / name / "diffusion" / CHECKPOINT)[0])
    assert counts[1] == 2 * counts[0]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_an_earlier_stage_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="train the stage 'segmenter' first"):
        run_stage("autoencoder", configuration(), tmp_path)
    with pytest.raises(InputError, match="train the stage 'spade' first"):
        run_stage("diffusion", configuration(), tmp_path)
    with pytest.raises(InputError, match="train the stage 'autoencoder' first"):
        run_stage("spade", configuration(), tmp_path)
    with pytest.raises(InputError, match="nothing to train"):
        run_stage("diffusion", configuration(ablation="c"), tmp_path)


def test_an_earlier_stage_of_other_networks_is_named(trained, tmp_path):
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    with pytest.raises(InputError, match=r"autoencoder.*holds weights of other networks than the recipe's"):
        run_stage("spade", configuration("first_stage=kl"), tmp_path)
    shutil.copytree(trained / "spade", tmp_path / "spade")
    with pytest.raises(InputError, match=r"spade.*holds weights of other networks than the recipe's"):
        run_stage("diffusion", configuration("modalities=[T1, T2]"), tmp_path)
    assert not (tmp_path / "diffusion").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("networks=micro", "networks"),
        ("modalities=[T1, T2]", "modalities"),
        ("diffusion.sigma=0.9", "diffusion.sigma"),
        ("diffusion.mode=paper", "diffusion.mode"),
    ],
)
def test_settings_that_do_not_belong_to_the_weights_are_not_exported(trained, tmp_path, capsys, override, named):
    arguments = ["--config", str(SMOKE), "--run", str(trained), "--output", str(tmp_path / "out"), override]
    assert main(["export", *arguments]) == 3
    assert f"belongs to another configuration (different: {named})" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_model_card_tells_the_data_of_the_run_and_not_of_the_command(trained, tmp_path):
    package = export(configuration("data.real=/scans/BraTS"), trained, tmp_path / "out")
    card = (package.path / "docs" / "README.md").read_text()
    assert "The networks saw no patient's image." in card
    assert "BraTS" not in card
    assert "by the simulator" in card


def test_a_run_without_its_log_is_exported(trained, tmp_path):
    shutil.copytree(trained / "regression", tmp_path / "run" / "regression")
    (tmp_path / "run" / "regression" / "log.jsonl").write_text('{"step": 2, "minu')
    assert export(configuration(), tmp_path / "run", tmp_path / "out").methods == ("regression",)


def test_a_package_that_replaces_another_counts_its_version_on(trained, tmp_path):
    shutil.copytree(trained / "regression", tmp_path / "run" / "regression")
    versions = [export(configuration(), tmp_path / "run", tmp_path / "out").metadata["version"] for _ in range(2)]
    assert versions == ["0.1.0", "0.2.0"]
    assert list(load_package(tmp_path / "out").metadata["changelog"]) == ["0.2.0", "0.1.0"]


def test_the_card_counts_the_steps_of_each_run_that_the_weights_come_from(trained, tmp_path):
    overrides = [f"initial={trained}", "regression.optimizer_steps=1"]
    run_stage("regression", configuration(*overrides), tmp_path / "run")
    package = export(configuration(*overrides), tmp_path / "run", tmp_path / "out")
    card = (package.path / "docs" / "README.md").read_text(encoding="utf-8")
    assert f"| {configuration()['regression']['optimizer_steps']} + 1 |" in card


def test_the_licence_of_a_package_is_found_where_pip_installed_the_project(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("training.export.__file__", str(tmp_path / "training" / "export.py"))
    package = export(configuration(), trained, tmp_path / "out")
    licence = Path(__file__).parents[2] / "LICENSE"
    assert (package.path / "LICENSE").read_text() == licence.read_text()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["device=tpu"], "has no device 'tpu'"),
        (["device=cuda:99"], "CUDA|no device"),
        (["data.shapes=[[16, 16, 16]]"], "multiples of 16 and 32 or more for this stage"),
        (["segmenter.width=1", "--output", "x"], "--output belongs to"),
        (["--cases", "0"], "--cases and --samples of 1 or more"),
    ],
)
def test_what_a_stage_cannot_use_is_one_sentence(tmp_path, capsys, overrides, sentence):
    try:
        assert main(["segmenter", "--config", str(SMOKE), "--run", str(tmp_path), *overrides]) == 3
    except SystemExit as end:
        assert end.code == 2
    assert re.search(sentence, capsys.readouterr().err.splitlines()[-1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["spade", "regression", "midiffusion"])
@pytest.mark.parametrize("recipe", sorted(SMOKE.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_crops_of_every_recipe_suit_its_networks(recipe, stage):
    settings = load_configuration(recipe)
    with torch.device("meta"):
        check_shapes(settings["data"]["shapes"], build_stage(stage, settings).model)


def test_networks_that_cannot_be_built_are_one_sentence():
    networks = "{first_stage: {kind: lp}, spade: {}, denoiser: {}, regression: {}, midiffusion: {}}"
    with pytest.raises(InputError, match=r"stage 'autoencoder' cannot be built.*Unknown first stage 'lp'"):
        build_stage("autoencoder", configuration(f"networks={networks}"))


def test_memory_that_runs_out_and_an_interruption_have_a_sentence_and_a_code(tmp_path, capsys, monkeypatch):
    ends = {
        6: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        130: KeyboardInterrupt(),
        3: ModuleNotFoundError("No module named 'nilearn'", name="nilearn"),
    }
    for code, end in ends.items():
        monkeypatch.setattr("training.__main__.run_stage", Mock(side_effect=end))
        assert main(["segmenter", "--config", str(SMOKE), "--run", str(tmp_path)]) == code
    memory, cancelled, missing = capsys.readouterr().err.splitlines()
    assert "too little memory" in memory
    assert "goes on from its last checkpoint" in cancelled
    assert "package 'nilearn' is missing" in missing


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert main(["regression", "--config", str(SMOKE), "--run", str(tmp_path), "data.shapse=1"]) == 3
    assert main(["export", "--config", str(SMOKE), "--run", str(tmp_path), "--output", str(tmp_path / "x")]) == 3
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert "Unknown key 'data.shapse'" in error[0]
    assert "has no checkpoint" in error[1]


@pytest.mark.parametrize("row", ["a", "b", "c"])
def test_the_ablated_translators_sample_without_the_parts_that_they_lack(row):
    torch.manual_seed(0)
    model = build_aldm(configuration(ablation=row)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    source, other = torch.randn(2, 1, 1, 16, 16, 16).unbind()

    def run(image, seed=0):
        with torch.no_grad():
            condition = model.condition(model.encode({"T1": image}), "T2")
            options = {"steps": 3, "generator": torch.Generator().manual_seed(seed), "on_step": lambda *_: None}
            return condition, model.sample(condition, "T2", **options)

    condition, sample = run(source)
    assert torch.isfinite(sample).all()
    assert not torch.allclose(sample, run(other)[1])  # in each row, the source matters
    if row in "ab":
        assert torch.equal(condition, model.first_stage.encode(source))
        assert not torch.allclose(sample, run(source, seed=1)[1])
    if row == "c":
        assert torch.equal(sample, condition)
    if row == "a":
        noisy, time, y = torch.randn(1, 4, 8, 8, 8), torch.tensor([5.0]), torch.tensor([1])
        with torch.no_grad():
            seen = [model.denoiser(noisy, palette, time, y) for palette in (condition, torch.zeros_like(condition))]
        assert torch.equal(*seen)


@pytest.mark.parametrize("row", ["a", "b", "c", "ours"])
def test_every_row_of_table_3_is_trained_and_loaded_from_its_stages(trained, tmp_path, row):
    for earlier in ("autoencoder", "spade"):
        (tmp_path / earlier).symlink_to(trained / earlier)
    settings = configuration("machine.tensorboard=false", ablation=row)
    if row != "c":
        run_stage("diffusion", settings, tmp_path)
    model = load_translator("aldm", settings, tmp_path)
    assert not model.training
    stage = "spade" if row == "c" else "diffusion"
    expected, _ = averaged_weights(tmp_path / stage / CHECKPOINT)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    condition = model.condition(model.encode({"T1": torch.zeros(1, 1, 32, 32, 32)}), "PD")
    options = {"steps": 2, "generator": torch.Generator().manual_seed(0), "on_step": lambda *_: None}
    sample = model.sample(condition, "PD", **options)
    assert torch.isfinite(model.decode(sample)).all()
    assert torch.equal(sample, condition) is (row == "c")


def test_an_ablation_is_not_exported(trained, tmp_path, capsys):
    arguments = ["export", "--config", str(SMOKE), "--run", str(trained), "--output", str(tmp_path / "b")]
    assert main([*arguments, "--ablation", "b"]) == 3
    assert "evaluate it" in capsys.readouterr().err


def test_an_early_run_of_ms_spade_and_bridge_together_can_be_exported(trained, tmp_path):
    """Its folder is "aldm", and its checkpoint knows other settings."""
    weights, _ = averaged_weights(trained / "diffusion" / CHECKPOINT)
    (tmp_path / "run" / "aldm").mkdir(parents=True)
    save_file(
        {f"average.{name}": value for name, value in weights.items()},
        tmp_path / "run" / "aldm" / CHECKPOINT,
        metadata={"state": '{"step": 5, "configuration": {"aldm": {}}, "optimizer_scalars": {}}'},
    )
    (tmp_path / "run" / "aldm" / "log.jsonl").write_text('{"step": 5, "minutes": 2.0, "bridge": 0.5}\n')
    arguments = ["--config", str(SMOKE), "--run", str(tmp_path / "run"), "--output", str(tmp_path / "early")]
    assert main(["export", *arguments]) == 0
    assert set(load_package(tmp_path / "early").methods) == {"aldm"}


def test_sums_of_a_codebook_that_float16_cannot_hold_are_replaced_and_the_codes_are_kept(trained):
    weights, _ = averaged_weights(trained / "diffusion" / CHECKPOINT)
    prefix = "first_stage.codebook."
    weights[prefix + "ema_w"] = torch.full_like(weights[prefix + "ema_w"], 1e6)
    finite = finite_as_float16(weights)
    assert finite.keys() == weights.keys()
    assert all(value.half().isfinite().all() for value in finite.values())
    assert torch.equal(finite[prefix + "embedding.weight"], weights[prefix + "embedding.weight"])
    quotient = finite[prefix + "ema_w"] / finite[prefix + "ema_cluster_size"][:, None]
    assert torch.equal(quotient, weights[prefix + "embedding.weight"])


def test_an_example_is_a_function_of_its_number_and_names_itself(tmp_path):
    settings = configuration("modalities=[T1, T2, PD]")
    forwards, backwards = make_examples(settings, tmp_path), make_examples(settings, tmp_path)
    seen = [forwards(number) for number in range(4)]
    for number in reversed(range(4)):
        again = backwards(number)
        assert torch.equal(again.image, seen[number].image)
        assert str(again) == str(seen[number])
        assert {*again.sources, again.target} <= {"T1", "T2", "PD"}
        assert "procedural" in str(again)
        assert again.labels.shape == again.image.shape
    assert not torch.equal(seen[0].image, seen[2].image)


def test_a_numbered_stream_is_the_stream_of_a_generator_of_its_own_for_each_case():
    heads = load_anatomies("procedural")

    def stream(generator):
        return simulated_pairs(heads, generator, shapes=[[32, 32, 32]])

    pair = by_number(stream, 5, 2)(7)
    expected = stream(generator_at(5, 3))
    next(expected)
    assert torch.equal(pair.image, next(expected).image)


def test_scans_and_simulated_heads_are_mixed(tmp_path, data_set):
    names = [(subject, contrast) for subject in ("anna", "ben", "cleo") for contrast in ("T1", "T2")]
    scans = data_set({f"{subject}/{subject}_{contrast}.nii.gz": contrast for subject, contrast in names})
    splits = ["data.splits.train=0.4", "data.splits.validation=0.3", "data.splits.test=0.3"]
    settings = configuration(f"data.real={scans}", "data.real_share=0.5", "data.pairs_per_case=1", *splits)
    examples = make_examples(settings, tmp_path / "run")
    kinds = [examples(number).labels is None for number in range(12)]
    assert True in kinds
    assert False in kinds
    assert (tmp_path / "run" / "splits.json").exists()
