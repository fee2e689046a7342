"""Translators: any sources to any target, and weights that do not fit are refused."""

from itertools import combinations

import pytest
import torch
from torch import nn

from MissingModalitySynthLib.diffusion.samplers import no_report
from MissingModalitySynthLib.errors import ModelPackageError
from MissingModalitySynthLib.intensity import DARKEST
from MissingModalitySynthLib.translators import METHODS, build_translator
from MissingModalitySynthLib.translators.aldm import AldmTranslator

MODALITIES = ["T1", "T2", "FLAIR"]
UNET = {
    "channels": [8, 8],
    "attention": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 4,
    "norm_num_groups": 4,
}
CONFIGURATIONS = {
    "aldm": {
        "modalities": MODALITIES,
        "first_stage": {"kind": "haar"},
        "spade": {"stem": 8, "residual": [8], "spade": [8], "hidden": 4},
        "denoiser": UNET,
    },
    "regression": {"modalities": MODALITIES, "first_stage": {"kind": "haar"}, "unet": {"features": [16] * 6}},
}


def build(method, **options):
    """A translator whose weights are all random: as built, the last convolutions are 0."""
    torch.manual_seed(0)
    translator = METHODS[method](**CONFIGURATIONS[method] | options)
    for parameter in translator.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(1 / parameter[0].numel()) ** 0.5)
    return translator.eval()


SIZE = {"aldm": (8, 8, 8), "regression": (32, 32, 32)}  # each a multiple of what the method asks for


def images(*modalities, size=SIZE["aldm"]):
    generator = torch.Generator().manual_seed(5)
    drawn = {modality: torch.rand(1, 1, *size, generator=generator) * 2 - 1 for modality in MODALITIES}
    return {modality: drawn[modality] for modality in modalities}


@torch.inference_mode()
def translate(translator, sources, target, steps=2, seed=0, on_step=no_report):
    condition = translator.condition(translator.encode(sources), target)
    generator = torch.Generator().manual_seed(seed)
    latents = translator.sample(condition, target, steps=steps, generator=generator, on_step=on_step)
    return translator.decode(latents)


@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_any_non_empty_set_of_sources_makes_any_other_target(method):
    translator = build(method)
    for target in MODALITIES:
        others = [name for name in MODALITIES if name != target]
        subsets = [chosen for n in (1, 2) for chosen in combinations(others, n)]
        results = [translate(translator, images(*chosen, size=SIZE[method]), target) for chosen in subsets]
        assert all(result.shape == (1, 1, *SIZE[method]) and result.isfinite().all() for result in results)
        assert not any(torch.allclose(a, b, atol=1e-3) for a, b in combinations(results, 2))


@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_the_order_in_which_sources_are_given_does_not_matter(method):
    translator = build(method)
    expected = translate(translator, images("T1", "T2", size=SIZE[method]), "FLAIR")
    swapped = translate(translator, images("T2", "T1", size=SIZE[method]), "FLAIR")
    torch.testing.assert_close(swapped, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_the_target_switches_the_result(method):
    translator = build(method)
    a, b = (translate(translator, images("T1", size=SIZE[method]), target) for target in ("T2", "FLAIR"))
    assert (a - b).abs().max() > 0.01


@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_axes_of_any_allowed_length_work(method):
    translator = build(method)
    size = tuple(count * translator.multiple for count in (1, 3, 2))
    assert translate(translator, images("T1", size=size), "T2").shape == (1, 1, *size)


def test_target_like_latents_of_several_sources_are_the_mean_of_those_of_each():
    translator = build("aldm")
    latents = translator.encode(images(*MODALITIES))
    with torch.inference_mode():
        singles = [translator.condition({name: z}, "FLAIR") for name, z in latents.items()]
        together = translator.condition(latents, "FLAIR")
    torch.testing.assert_close(together, sum(singles) / 3, atol=1e-6, rtol=1e-5)


def test_a_missing_source_of_the_regression_is_an_empty_slot_and_a_flag():
    translator = build("regression")
    latents = translator.encode(images("T2"))
    condition = translator.inputs(latents)
    slots, flags = condition[:, :24].unflatten(1, (3, 8)), condition[:, 24:]
    torch.testing.assert_close(slots[:, 1], latents["T2"])
    assert slots[:, [0, 2]].abs().max() == 0
    assert [flags[:, i].unique().tolist() for i in range(3)] == [[0.0], [1.0], [0.0]]


def test_all_targets_of_a_condition_are_made_at_once():
    translator, passes = build("regression"), []
    translator.unet.register_forward_hook(lambda *_: passes.append(1))
    condition = translator.condition(translator.encode(images("T1", size=SIZE["regression"])), "T2")
    options = {"steps": 1, "generator": torch.Generator(), "on_step": no_report}
    with torch.inference_mode():
        made = [translator.sample(condition, target, **options) for target in ("T2", "FLAIR")]
    assert len(passes) == 1
    sources = images("T1", size=SIZE["regression"])
    for target, latents in zip(("T2", "FLAIR"), made, strict=True):
        torch.testing.assert_close(translator.decode(latents), translate(translator, sources, target))


def test_a_mirrored_head_has_the_mirror_image_of_its_result():
    """Of the mean with the mirror image; a plain UNet does not know left from right."""
    head = images("T1", size=SIZE["regression"])
    mirror = {name: image.flip(2) for name, image in head.items()}
    options = {"first_stage": {"kind": "haar", "levels": 0}}
    plain, both = (build("regression", **options, mirrored=mirrored) for mirrored in (False, True))
    there, back = (translate(both, sources, "T2") for sources in (head, mirror))
    torch.testing.assert_close(back.flip(2), there, atol=1e-5, rtol=1e-5)
    one, other = (translate(plain, sources, "T2") for sources in (head, mirror))
    torch.testing.assert_close((one + other.flip(2)) / 2, there, atol=1e-5, rtol=1e-5)
    assert (one - there).abs().max() > 0.01


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_window_as_large_as_the_image_changes_nothing(mirrored):
    sources = images("T1", size=(32, 48, 32))
    options = {"first_stage": {"kind": "haar", "levels": 0}, "mirrored": mirrored}
    plain, windowed = (build("regression", **options, window=window) for window in (None, 48))
    assert torch.equal(translate(windowed, sources, "T2"), translate(plain, sources, "T2"))


def test_what_windows_see_is_all_that_counts_in_them():
    """Far from the seams of its windows an image is that of a crop: a change elsewhere does not reach it."""
    windowed = build("regression", first_stage={"kind": "haar", "levels": 0}, window=32)
    here = images("T1", size=(80, 32, 32))
    changed = {"T1": here["T1"].clone()}
    changed["T1"][:, :, 48:] = here["T1"][:, :, 48:].flip(2)
    before, after = (translate(windowed, sources, "T2") for sources in (here, changed))
    assert torch.equal(before[:, :, :24], after[:, :, :24])  # windows begin at 0, 24 and 48
    assert not torch.equal(before[:, :, 56:], after[:, :, 56:])
    crop = {"T1": here["T1"][:, :, :32]}
    torch.testing.assert_close(before[:, :, :24], translate(windowed, crop, "T2")[:, :, :24], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32, 32), (48, 32, 80), (64, 96, 32)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_each_window_is_announced_before_it_is_translated(size, mirrored):
    options = {"first_stage": {"kind": "haar", "levels": 0}, "mirrored": mirrored, "window": 32}
    translator, announced, translated = build("regression", **options), [], []
    translator.unet.register_forward_hook(lambda *_: translated.append(len(announced)))
    condition = translator.condition(translator.encode(images("T1", size=size)), "T2")
    with torch.inference_mode():
        translator.sample(
            condition, "T2", steps=1, generator=torch.Generator(), on_step=lambda *step: announced.append(step)
        )
    count = translator.passes(size)
    assert announced == [(number, count) for number in range(count)]
    assert translated == list(range(1, count + 1))


def test_windows_of_unlike_brightness_leave_no_seam():
    windowed, levels = build("regression", first_stage={"kind": "haar", "levels": 0}, window=96), iter((0.0, 1.0))
    windowed.unet.register_forward_hook(lambda unet, inputs, made: torch.full_like(made, next(levels)))
    profile = translate(windowed, images("T1", size=(168, 16, 16)), "T2")[0, 0, :, 8, 8]
    profile = (profile - profile.min()) / (profile.max() - profile.min())
    assert profile[0] == 0 and profile[-1] == 1
    assert 0 <= profile.diff().min() and profile.diff().max() < 0.1


def test_windows_need_less_memory():
    whole, windowed = (build("regression", window=window) for window in (None, 32))
    assert windowed.working_bytes(192**3, 2) < whole.working_bytes(192**3, 2) / 1.5


@pytest.mark.parametrize("window", [0, 8, 40])
def test_windows_fit_the_levels_of_the_unet(window):
    with pytest.raises(ValueError, match="multiple of 16"):
        build("regression", window=window)


def test_a_source_cannot_be_outlined_in_latents_that_see_beyond_a_block():
    stage = {"kind": "kl", "channels": [8, 8], "latent_channels": 4, "norm_num_groups": 4}
    with pytest.raises(ValueError, match="Haar"):
        build("regression", first_stage=stage, outlined=True)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_an_outlined_source_is_available_inside_its_head_alone(levels):
    """Fluid just above -1 is inside; what is exactly -1 in whole blocks of the Haar transform is outside."""
    stage = {"kind": "haar", "levels": levels}
    heads = {name: torch.full((1, 1, 32, 32, 32), -1.0) for name in ("T1", "T2")}
    heads["T1"][:, :, 8:24, 4:28, 12:] = images("T1", size=(16, 24, 20))["T1"].clamp(min=DARKEST)
    heads["T1"][:, :, 12:16, 12:16, 16:20] = DARKEST
    heads["T2"][:, :, :16] = 0.5
    for whitened in (False, True):
        translator = build("regression", first_stage=stage, outlined=True)
        if whitened:
            translator.first_stage.whiten_on(heads["T1"])
        flags = translator.inputs(translator.encode(heads))[:, -3:]
        block = 2**levels
        expected = torch.zeros(2, *3 * (32 // block,))
        expected[0, 8 // block : 24 // block, 4 // block : 28 // block, 12 // block :] = 1
        expected[1, : 16 // block] = 1
        torch.testing.assert_close(flags[0, :2], expected)
        assert not flags[0, 2].any()


@pytest.mark.parametrize(
    ("options", "stochastic"),
    [
        ({"mode": "bridge", "sigma": 0.0}, False),
        ({"mode": "bridge", "sigma": 0.5}, True),
        ({"mode": "paper"}, True),
        ({"mode": "paper", "eta": 1.0}, True),
    ],
)
def test_two_seeds_differ_where_a_translator_says_so(options, stochastic):
    translator = build("aldm", **options)
    assert translator.stochastic(1) is stochastic
    a, again, b = (translate(translator, images("T1"), "T2", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, again)
    assert torch.equal(a, b) is not stochastic


def test_the_paper_mode_with_eta_1_and_all_steps_is_ddpm_by_either_route():
    schedule = {"num_steps": 6}
    sample = translate(build("aldm", mode="paper", eta=1.0, schedule=schedule), images("T1"), "T2", steps=6)
    # 0.999999 is sent to DDIM, whose limit DDPM is
    limit = translate(build("aldm", mode="paper", eta=0.999999, schedule=schedule), images("T1"), "T2", steps=6)
    torch.testing.assert_close(sample, limit, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "times"), [({}, [0.0, 250.0, 500.0, 750.0]), ({"mode": "paper"}, [999, 666, 333, 0])]
)
def test_the_denoiser_is_asked_at_the_times_it_was_trained_for(options, times):
    translator, seen = build("aldm", **options), []
    translator.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2].item()))
    translate(translator, images("T1"), "T2", steps=4)
    assert seen == times


@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_every_step_is_announced_before_it_is_taken(method):
    steps = []
    translate(
        build(method),
        images("T1", size=SIZE[method]),
        "T2",
        steps=3,
        on_step=lambda step, total: steps.append((step, total)),
    )
    assert steps == ([(0, 3), (1, 3), (2, 3)] if METHODS[method].iterative else [(0, 1)])


@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_a_translator_survives_the_way_through_its_weights(method):
    translator = build(method)
    translator.first_stage.whiten_on(images("T1")["T1"])
    again = build_translator(method, CONFIGURATIONS[method], translator.state_dict())
    assert not again.training
    assert torch.equal(
        translate(again, images("T1", size=SIZE[method]), "T2"),
        translate(translator, images("T1", size=SIZE[method]), "T2"),
    )


def test_half_precision_weights_are_computed_with_in_single_precision():
    weights = {name: tensor.half() for name, tensor in build("aldm").state_dict().items()}
    translator = build_translator("aldm", CONFIGURATIONS["aldm"], weights)
    assert {parameter.dtype for parameter in translator.parameters()} == {torch.float32}


def damaged(method, how):
    weights = build(method).state_dict()
    name = next(name for name, tensor in weights.items() if tensor.ndim == 5)
    if how == "missing tensor":
        del weights[name]
    elif how == "additional tensor":
        weights["surplus"] = torch.zeros(2)
    else:
        weights[name] = weights[name][:1]
    return weights


@pytest.mark.parametrize("how", ["missing tensor", "additional tensor", "other shape"])
@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_weights_that_do_not_fit_are_refused(method, how):
    with pytest.raises(ModelPackageError, match=f"method '{method}' do not fit"):
        build_translator(method, CONFIGURATIONS[method], damaged(method, how))


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "magic"},
        {"first_stage": {"kind": "fourier"}},
        {"first_stage": 3},
        {"spade": {"residual": []}},
        {"denoiser": UNET | {"channels": [], "attention": []}},
        {"denoiser": UNET | {"norm_num_groups": 0}},
        {"denoiser": UNET | {"norm_num_groups": 3}},
        {"schedule": {"schedule": "none"}},
        {"surplus": 1},
        {"modalities": None},
    ],
)
def test_configurations_that_make_no_network_are_refused(change):
    weights = build("aldm").state_dict()
    with pytest.raises(ModelPackageError, match="do not fit"):
        build_translator("aldm", CONFIGURATIONS["aldm"] | change, weights)


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(ModelPackageError, match=r"'teleport'.*aldm, regression"):
        build_translator("teleport", {}, {})


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match=r"'magic'.*bridge, paper"):
        AldmTranslator(**CONFIGURATIONS["aldm"], mode="magic")
