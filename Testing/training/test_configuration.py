"""Recipes, overrides and ablations."""

from pathlib import Path

import pytest
import yaml

import training
from MissingModalitySynthLib.errors import InputError
from training.configuration import ABLATIONS, DEFAULTS, STAGES, load_configuration, network_options, settings_of
from training.stages import build_aldm, is_ablated

RECIPES = sorted((Path(training.__file__).parent / "configs").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data:\n  random_contrast: 0.5\n")
    return path


def test_overrides_come_over_the_recipe_and_the_recipe_over_the_defaults(recipe):
    configuration = load_configuration(recipe, ["diffusion.sigma=0.6", "data.shapes=[[32, 32, 32]]", "seed=3"])
    assert configuration["data"]["random_contrast"] == 0.5
    assert configuration["data"]["skull_strip"] == DEFAULTS["data"]["skull_strip"]
    assert configuration["diffusion"]["sigma"] == 0.6
    assert configuration["data"]["shapes"] == [[32, 32, 32]]
    assert configuration["seed"] == 3
    assert DEFAULTS["seed"] == 0


def test_an_exponent_without_a_point_is_a_number(recipe):
    assert load_configuration(recipe, ["optimizer.learning_rate=2e-6"])["optimizer"]["learning_rate"] == 2e-6
    with pytest.raises(InputError, match=r"learning_rate.*must be a number of 0 or more, not 'fast'"):
        load_configuration(recipe, ["optimizer.learning_rate=fast"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.random_contrats=1", r"Unknown key 'data\.random_contrats'.*known are.*random_contrast"),
        ("sigma=1", "Unknown key 'sigma'"),
        ("data=3", "'data'.*must be a group of keys"),
        ("data.seed", "write key=value"),
        ("diffusion.weighting=p2", r"'diffusion\.weighting' must be one of none, min_snr, not 'p2'"),
        ("networks=huge", "Unknown networks 'huge'; known are paper, full, micro"),
        ("networks={first_stage: {kind: vq}}", "'networks' must be a name or the groups first_stage, spade"),
        ("seed=[", "override 'seed=\\[' is no YAML"),
        ("seed=1.5", "'seed' must be a whole number of 0 or more, not '1.5'"),
        ("optimizer.accumulation=0", r"'optimizer\.accumulation' must be a whole number of 1 or more, not '0'"),
        ("optimizer.learning_rate=null", r"'optimizer\.learning_rate' must be a number of 0 or more, not 'None'"),
        ("optimizer.learning_rate=.nan", r"'optimizer\.learning_rate' must be a number"),
        ("midiffusion.guidance_range=[0.8, 0.2]", r"must be two rising numbers from 0 to 1, not \[0\.8, 0\.2\]"),
        ("midiffusion.guidance_range=[0.8]", r"must be two rising numbers"),
        ("data.real_share=3", r"'data\.real_share' must be a number from 0 to 1, not '3'"),
        ("data.register=maybe", r"'data\.register' must be true or false, not 'maybe'"),
        ("data.real=5", r"'data\.real' must be a text, not 5"),
        ("data.cases=0", r"'data\.cases' must be a whole number of 1 or more"),
        ("data.source_weights.T2=0", r"'data\.source_weights\.T2' must be above 0"),
        ("data.source_weights.CT=1", r"Unknown key 'data\.source_weights\.CT'"),
        ("data.shapes=[32, 32, 32]", r"'data\.shapes' must be a list of sizes such as \[\[96, 96, 96\]\]"),
        ("data.shapes=[[30, 32, 32]]", r"multiples of 16 voxels, not \[30, 32, 32\]"),
        ("modalities=[T1, T9]", "'modalities' must be two or more of T1, T1ce"),
        ("modalities=[T1]", "'modalities' must be two or more of T1, T1ce"),
    ],
)
def test_what_is_not_understood_is_one_sentence(recipe, override, sentence):
    with pytest.raises(InputError, match=sentence):
        network_options(load_configuration(recipe, [override]))


def test_a_recipe_that_is_missing_or_no_yaml_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml' cannot be read"):
        load_configuration(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("data: [")
    with pytest.raises(InputError, match=r"broken\.yaml' cannot be read"):
        load_configuration(tmp_path / "broken.yaml")


def test_a_setting_that_may_be_null_can_be_set_back(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {real: /data, cases: 4}\nfirst_stage: kl\n")
    changed = load_configuration(path, ["data.real=null", "data.cases=null", "first_stage=null"])
    assert (changed["data"], changed["first_stage"]) == (DEFAULTS["data"], None)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_understood(path):
    configuration = load_configuration(path)
    assert set(network_options(configuration)) == {"first_stage", "spade", "denoiser", "regression", "midiffusion"}
    assert configuration != DEFAULTS


def test_the_paper_recipes_have_the_papers_settings():
    folder = RECIPES[0].parent
    brats, ixi = (load_configuration(folder / f"paper-{name}.yaml") for name in ("brats", "ixi"))
    for configuration in (brats, ixi):
        assert network_options(configuration)["first_stage"]["kind"] == "vq"
        assert network_options(configuration)["first_stage"]["num_codes"] == 8192
        assert configuration["diffusion"]["mode"] == "paper"
        assert configuration["optimizer"]["learning_rate"] == 2e-6
    assert brats["data"]["shapes"] == [[192, 192, 144]]
    assert brats["modalities"] == ["T1", "T1ce", "T2", "FLAIR"]
    assert ixi["modalities"] == ["T1", "T2", "PD"]


def test_a_stage_minds_its_own_settings_and_not_the_machines(recipe):
    one = load_configuration(recipe)
    other = load_configuration(recipe, ["device=cuda", "machine.log_steps=7", "regression.optimizer_steps=1"])
    assert settings_of("diffusion", one) == settings_of("diffusion", other)
    assert settings_of("regression", one) != settings_of("regression", other)
    assert set(STAGES) & set(settings_of("spade", one)) == {"spade"}


def test_the_ablations_are_the_rows_of_table_3():
    """Method, then the columns Diff, Palette, SPADE and Reg-type."""
    rows = {
        "a": (True, False, False, "vq"),
        "b": (True, True, False, "vq"),
        "c": (False, True, True, "vq"),  # without diffusion there is no palette to speak of
        "d": (True, True, True, "kl"),
        "ours": (True, True, True, "vq"),
    }
    assert ABLATIONS.keys() == rows.keys()
    smoke = next(path for path in RECIPES if path.stem == "smoke")
    for name, (denoiser, palette, spade, kind) in rows.items():
        configuration = load_configuration(smoke, ablation=name)
        diffusion = configuration["diffusion"]
        assert (diffusion["use_denoiser"], diffusion["use_palette"], diffusion["use_spade"]) == (
            denoiser,
            palette,
            spade,
        )
        assert diffusion["mode"] == "paper"
        assert network_options(configuration)["first_stage"]["kind"] == kind
        assert is_ablated(configuration) is (name in "abc")
        model = build_aldm(configuration)
        assert (sum(parameter.numel() for parameter in model.spade.parameters()) > 0) is spade
    with pytest.raises(InputError, match="Unknown ablation 'e'; known are a, b, c, d, ours"):
        load_configuration(smoke, ablation="e")


def test_recipes_are_plain_yaml_without_a_key_twice():
    for path in RECIPES:
        lines = [line for line in path.read_text().splitlines() if line and line[0] not in " #"]
        assert len({line.split(":")[0] for line in lines}) == len(lines)
        assert isinstance(yaml.safe_load(path.read_text()), dict)
