"""Zero-shot translation: the source's contrast and name do not matter, and the pull raises what it should."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from MissingModalitySynthLib.diffusion.guidance import descending_times, sample_guided, towards_information
from MissingModalitySynthLib.diffusion.mutual_information import PUBLISHED, local_mutual_information
from MissingModalitySynthLib.diffusion.samplers import gaussian, no_report
from MissingModalitySynthLib.diffusion.schedules import alphas_cumprod
from MissingModalitySynthLib.errors import DivergenceError, InputError
from MissingModalitySynthLib.networks.haar import HaarFirstStage
from MissingModalitySynthLib.tissue_mixture import refine_tissues
from MissingModalitySynthLib.translators import METHODS, build_translator
from MissingModalitySynthLib.translators.midiffusion import MidiffusionTranslator, ranks, slices_of, spread_flat

GUIDED = {"modalities": ["T1", "T2"], "first_stage": {"kind": "haar", "levels": 0}} | {
    "unet": {"features": [16] * 6, "tissues": 16}
}
UNET = {
    "channels": [8, 8],
    "attention": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 4,
    "norm_num_groups": 4,
}
PUBLISHED_FORM = {"modalities": ["T1", "T2"], "first_stage": {"kind": "haar", "levels": 0}, "unet": UNET} | {
    "mode": "published",
    "steps": 2,
}


def build(options, **changes):
    """A translator whose weights are all random."""
    torch.manual_seed(0)
    model = MidiffusionTranslator(**options | changes)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(1 / parameter[0].numel()) ** 0.5)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def head():
    """A textured ball in air, (1, 1, 32, 32, 32) in [-1, 1], air at -1."""
    generator = torch.Generator().manual_seed(3)
    texture = F.interpolate(torch.rand(1, 1, 9, 9, 9, generator=generator), (32, 32, 32), mode="trilinear")
    axis = torch.linspace(-1, 1, 32)
    radius = sum(x.square() for x in torch.meshgrid(axis, axis, axis, indexing="ij")).sqrt()
    return torch.where(radius < 0.85, 1.6 * texture - 0.7, -1.0)


def inverted(image):
    """Another contrast of the same head: what was bright is dark, air is air."""
    return torch.where(image > -1, -image.clamp(-0.9, 0.9), -1.0)


def translate(model, image, target="T1", name="PD", steps=2, seed=0, on_step=no_report):
    condition = model.condition(model.encode({name: image}), target)
    generator = torch.Generator().manual_seed(seed)
    return model.decode(model.sample(condition, target, steps=steps, generator=generator, on_step=on_step))


@pytest.mark.parametrize("options", [GUIDED, PUBLISHED_FORM | {"spatial_dims": 2}], ids=["guided", "published"])
def test_the_name_of_the_source_is_irrelevant_and_the_target_is_not(options, head):
    model = build(options)
    image = head if options is GUIDED else head[:, :, 6:26, 6:26, 8:24]
    first = translate(model, image, name="PD")
    assert first.shape == image.shape and first.isfinite().all()
    assert torch.equal(translate(model, image, name="other"), first)
    assert (translate(model, image, target="T2") - first).abs().max() > 0.01


def test_ranks_are_those_of_any_increasing_map_and_change_their_sign_with_a_decreasing_one(head):
    mask = head > -1
    known = ranks(head, mask)
    assert torch.equal(ranks(torch.where(mask, 4 * head, -1.0), mask), known)
    assert torch.allclose(ranks(torch.where(mask, head.exp(), -1.0), mask), known, atol=2e-3)  # rounding makes ties
    assert torch.allclose(ranks(torch.where(mask, -head, -1.0), mask), -known, atol=1e-6)
    assert known[~mask].abs().max() == 0
    order = head[mask].argsort()
    assert (known[mask][order].diff() >= 0).all()
    assert known[mask].min() < -0.99 and known[mask].max() > 0.99 and abs(known[mask].mean()) < 0.02


def test_a_flat_contrast_is_spread_between_its_dark_and_its_bright_whatever_its_range(head):
    mask = head > -1

    def flat(low, high):
        return torch.where(mask, low + (high - low) * (head + 1) / 2, -1.0)

    narrow, other = (spread_flat(flat(*ends)) for ends in ((0.5, 0.9), (0.7, 0.95)))
    torch.testing.assert_close(narrow, other, atol=1e-4, rtol=0)
    values = flat(0.5, 0.9)[mask].sort().values
    low, high = values[len(values) // 10], values[-len(values) // 50]
    expected = (-0.8 + 1.8 * (flat(0.5, 0.9) - low) / (high - low)).clamp(-0.996, 1)
    torch.testing.assert_close(narrow[mask], expected[mask], atol=0.03, rtol=0)
    assert (narrow[~mask] == -1).all() and (narrow[mask] > -1).all()
    assert torch.equal(spread_flat(head), head)  # its darkest tenth is dark
    constant, nothing = torch.where(mask, 0.5, -1.0), torch.full_like(head, -1.0)
    assert torch.equal(spread_flat(constant), constant) and torch.equal(spread_flat(nothing), nothing)


def test_the_segmenter_sees_flat_contrasts_spread_and_the_mixture_as_they_are(head):
    model = build(GUIDED)
    flat = torch.where(head > -1, 0.8 + head / 8, -1.0)
    told = model.tissues(spread_flat(flat)).softmax(dim=1)
    expected = torch.cat([flat, told, refine_tissues(told, flat)], dim=1)
    torch.testing.assert_close(model.describe(flat).channels, expected)


@pytest.mark.parametrize("levels", [0, 1])
def test_the_network_sees_state_source_tissues_time_and_target_and_no_source_where_it_is_hidden(head, levels):
    model = build(GUIDED, first_stage={"kind": "haar", "levels": levels})
    seen = []
    model.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    condition, channels = model.describe(head), 8**levels
    x = gaussian(model.first_stage.encode(head), torch.Generator().manual_seed(0))
    for shown in (condition, condition.hidden()):
        model.clean(x, shown, torch.tensor([400]), torch.tensor([1]))
    a = model.alpha_bar[400].float()
    state, source, tissues, time, target = seen[0].split([channels, channels, 12 * channels, 2, 2], dim=1)
    torch.testing.assert_close(state, a.sqrt() * x)
    assert torch.equal(source.flatten().sort().values, head.flatten().sort().values)
    assert (time[0, 0] == a.sqrt()).all() and (time[0, 1] == (1 - a).sqrt()).all()
    assert (target[0, 0] == 0).all() and (target[0, 1] == 1).all()
    told = model.tissues(head).softmax(dim=1)
    told = torch.cat([told, refine_tissues(told, head)], dim=1)
    torch.testing.assert_close(tissues.flatten().sort().values, told.flatten().sort().values)
    assert seen[1][:, channels : 14 * channels].abs().max() == 0
    assert torch.equal(seen[1][:, :channels], state)


def test_an_estimate_weighs_the_state_by_its_noise(head):
    """As two Gaussians: what the source says, of variance s^2, and x_t / sqrt(a), of variance (1 - a) / a."""
    model = build(GUIDED)
    model.unet.forward = lambda x: torch.zeros_like(x[:, :1]) + 0.3
    condition, time, y = model.describe(head), torch.tensor([400]), torch.tensor([0])
    x = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    a, precision = model.alpha_bar[400].float(), (-2 * model.log_spread).exp()
    expected = (precision * 0.3 + a / (1 - a) * x / a.sqrt()) / (precision + a / (1 - a))
    torch.testing.assert_close(model.clean(x, condition, time, y), expected, atol=1e-4, rtol=1e-4)


def test_one_step_of_the_pull_raises_the_local_mutual_information_and_leaves_the_background(head):
    stage = HaarFirstStage()
    generator = torch.Generator().manual_seed(1)
    estimate = stage.encode(torch.where(head > -1, 0.4 * torch.randn(head.shape, generator=generator), -1.0))
    mask = head > -1

    def shared(latents):
        return local_mutual_information(head, stage.decode(latents), mask=mask).sum()

    before = shared(estimate)
    with torch.inference_mode():
        pulled = towards_information(estimate, head, stage, weight=0.02, mask=mask, window=7, bins=8, stride=2)
    assert shared(pulled) > 1.05 * before
    change = stage.decode(pulled) - stage.decode(estimate)
    assert change[~mask].abs().max() < 1e-5
    assert change[mask].square().mean().sqrt() == pytest.approx(0.02, rel=1e-3)


def test_more_guidance_gives_a_result_that_shares_more_with_the_source(head):
    results = [translate(build(GUIDED, guidance=weight, steps=4), head, steps=4) for weight in (0.0, 0.1)]
    mask = head > -1
    unguided, guided = (local_mutual_information(head, result, mask=mask).sum() for result in results)
    assert guided > 1.05 * unguided


def test_the_pull_acts_within_its_range_of_times_alone(head):
    free = translate(build(GUIDED, guidance=0.0), head)
    assert torch.equal(translate(build(GUIDED, guidance=0.3, guidance_range=(0.6, 0.9)), head), free)  # times 1, 0.5
    assert not torch.equal(translate(build(GUIDED, guidance=0.3, guidance_range=(0.4, 0.6)), head), free)


def test_without_guidance_and_condition_and_from_the_noised_source_it_is_sdedit(head):
    """Compared with SDEdit written down here: noise the source, then DDIM with the same network."""
    model = build(GUIDED, guidance=0.0, conditioned=False, start=0.5)
    result = translate(model, head, steps=3, seed=4)
    a = alphas_cumprod("cosine")
    latents = model.first_stage.encode(head)
    noise = gaussian(latents, torch.Generator().manual_seed(4))
    x = a[499] ** 0.5 * latents + (1 - a[499]) ** 0.5 * noise
    nothing, y = model.describe(head).hidden(), torch.tensor([0])
    for t, following in ((499, 332), (332, 166), (166, None)):
        clean = model.clean(x.float(), nothing, torch.tensor([t]), y)
        if following is not None:
            epsilon = (x - a[t] ** 0.5 * clean) / (1 - a[t]) ** 0.5
            x = a[following] ** 0.5 * clean + (1 - a[following]) ** 0.5 * epsilon
    torch.testing.assert_close(result, model.decode(clean), atol=1e-4, rtol=1e-4)


def test_from_a_start_near_zero_the_source_comes_back_and_from_one_the_image_knows_noise_alone(head):
    a = alphas_cumprod("cosine")
    perfect = sample_guided(lambda x, t: x / a[t] ** 0.5, head, a, times=descending_times(1, 1))
    torch.testing.assert_close(perfect, head, atol=1e-4, rtol=1e-4)
    blind = build(GUIDED, guidance=0.0, conditioned=False, start=1.0)
    assert torch.equal(translate(blind, head), translate(blind, inverted(head)))


@pytest.mark.parametrize(("last", "steps", "expected"), [(1000, 4, [999, 749, 499, 249]), (500, 1, [499]), (3, 9, 3)])
def test_times_descend_evenly_and_stop_a_step_above_the_clean_image(last, steps, expected):
    times = descending_times(last, steps)
    assert times == (expected if isinstance(expected, list) else [2, 1, 0])


def test_the_exact_denoiser_of_a_gaussian_is_sampled_to_its_mean_and_spread():
    """Data N(2, 0.25): x_0(x_t) = 2 + 0.25 sqrt(a) (x_t - 2 sqrt(a)) / (0.25 a + 1 - a), the mean given x_t."""
    a = alphas_cumprod("cosine")
    noise = torch.randn(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def estimate(x, t):
        return 2 + 0.25 * a[t] ** 0.5 * (x - 2 * a[t] ** 0.5) / (0.25 * a[t] + 1 - a[t])

    result = sample_guided(estimate, noise, a, times=descending_times(1000, 200))
    assert result.mean() == pytest.approx(2.0, abs=0.02)
    assert result.std() == pytest.approx(0.5, rel=0.05)
    single = sample_guided(estimate, noise, a, times=descending_times(1000, 1))
    assert single.std() < 0.01


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e4])
def test_what_diverges_names_the_step_and_keeps_what_came_before(bad):
    """Estimates and pulls, and what is good before the one that is not."""
    cases = {
        "step 3 of 4": ([0.1, 0.2, 0.3, 0.4], [0.5, 0.25, bad, 0.0], 0.3),  # the estimate that was pulled away
        "step 2 of 4": ([0.1, bad, 0.3, 0.4], [0.5, 0.25, 0.0, 0.0], 0.6),  # the first, pulled
        "step 1 of 1": ([0.1], [bad], 0.1),
    }
    for words, (estimates, pulls, good) in cases.items():
        estimate, pull = iter(estimates), iter(pulls)
        with pytest.raises(DivergenceError, match=f"diverged at {words}") as caught:
            sample_guided(
                lambda x, t, values=estimate: torch.full_like(x, next(values)),
                torch.ones(8),
                alphas_cumprod("cosine"),
                times=descending_times(1000, len(estimates)),
                pull=lambda clean, time, values=pull: clean + next(values),
            )
        torch.testing.assert_close(caught.value.last_good, torch.full((8,), good))


def test_too_strong_a_pull_is_a_divergence_of_the_translator(head):
    with pytest.raises(DivergenceError, match="at step 2 of 4"):  # the first lies outside of the range
        translate(build(GUIDED, guidance=1e3, guidance_range=(0.2, 0.8)), head, steps=4)


def test_published_sampling_whose_numbers_overflow_names_the_step_and_keeps_what_came_before(head):
    model, calls = build(PUBLISHED_FORM | {"spatial_dims": 2}), []
    head = head[:, :, 6:26, 6:26, 8:24]

    def overflow(module, inputs, output):
        calls.append(1)
        return output * math.inf if len(calls) > seen else output

    model.unet.register_forward_hook(overflow)
    seen = math.inf
    whole = translate(model, head, steps=4)
    per_step, seen = len(calls) // 4, 3 * len(calls) // 4
    calls.clear()
    with pytest.raises(DivergenceError, match="at step 4 of 4") as caught:
        translate(model, head, steps=4)
    assert len(calls) == seen + per_step
    assert caught.value.last_good.shape == whole.shape
    assert caught.value.last_good.isfinite().all()
    seen = per_step
    calls.clear()
    with pytest.raises(DivergenceError, match="at step 2 of 4") as caught:
        translate(model, head, steps=4)
    assert caught.value.last_good is None  # noise, as yet


@pytest.mark.parametrize("options", [GUIDED, PUBLISHED_FORM], ids=["guided", "published"])
def test_a_source_that_shows_nothing_and_several_sources_are_one_sentence(options, head):
    model = build(options)
    noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    for nothing in (noise, torch.zeros_like(head), torch.where(head > -1, noise, -1.0)):
        with pytest.raises(InputError, match="source, PD, shows no structure"):
            translate(model, nothing)
    with pytest.raises(InputError, match="takes one source, not T2, PD"):
        model.condition({"T2": head, "PD": head}, "T1")


def test_cancelling_works_at_every_step(head):
    def stop(step, steps):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        translate(build(GUIDED), head, steps=4, on_step=stop)


def test_the_published_form_sees_the_state_and_the_source_through_the_published_information_alone(head):
    """Its input channels are x_t, LMI(source, x_t) and LMI(source, source)."""
    model = build(PUBLISHED_FORM, spatial_dims=2)
    condition = model.describe(head[..., 14:16])
    slices = head[0, 0, :, :, 14:16].movedim(-1, 0)[:, None]
    assert torch.equal(condition.image, slices) and torch.equal(slices_of(head[..., 14:16]), slices)
    seen = []
    model.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(slices.shape, generator=torch.Generator().manual_seed(0))
    model.noise(x, condition.image, condition.channels, torch.tensor([5, 5]), torch.tensor([0, 0]))
    pairs = [(slices, x), (slices, slices)]
    expected = torch.cat([x, *(local_mutual_information(*pair, **PUBLISHED) for pair in pairs)], dim=1)
    torch.testing.assert_close(seen[0], expected)


def test_the_published_form_compares_volumes_in_three_dimensions(head):
    model = build(PUBLISHED_FORM, spatial_dims=3)
    image, seen = head[:, :, 8:16, 8:16, 8:16], []
    model.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(0)
    result = model.sample(model.describe(image), "T1", steps=1, generator=generator, on_step=no_report)
    assert result.shape == image.shape and result.isfinite().all()
    noise = gaussian(image, torch.Generator().manual_seed(0))
    expected = [noise, *(local_mutual_information(image, other, **PUBLISHED) for other in (noise, image))]
    torch.testing.assert_close(seen[0], torch.cat(expected, dim=1))


@pytest.mark.parametrize(
    ("options", "steps", "stochastic"),
    [(GUIDED, 1, False), (GUIDED, 2, True), (GUIDED | {"start": 0.5}, 1, True), (PUBLISHED_FORM, 2, True)],
)
def test_two_seeds_give_two_results_where_the_translator_says_so(head, options, steps, stochastic):
    model = build(options)
    image = head if options is not PUBLISHED_FORM else head[:, :, 8:16, 8:16, 8:16]
    assert model.stochastic(steps) is stochastic
    first, second = (translate(model, image, steps=steps, seed=seed) for seed in (0, 1))
    assert torch.equal(first, second) is not stochastic


@pytest.mark.parametrize(
    "options", [{"mode": "mixed"}, {"mode": "guided", "spatial_dims": 2}, {"start": 0.0}, {"start": 1.5}]
)
def test_options_that_no_mode_has_are_refused(options):
    with pytest.raises(ValueError, match=r"mode|start"):
        MidiffusionTranslator(**GUIDED | options)


def test_a_package_gives_the_translator_that_was_packed(head):
    model = build(GUIDED)
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    again = build_translator("midiffusion", GUIDED, weights)
    assert METHODS["midiffusion"] is MidiffusionTranslator and not again.training
    assert (translate(again, head) - translate(model, head)).abs().max() < 0.1
