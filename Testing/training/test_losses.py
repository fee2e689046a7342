"""The losses of the translators against closed forms."""

import math
from dataclasses import replace

import pytest
import torch
from skimage.metrics import structural_similarity as skimage_ssim
from torch import nn

from MissingModalitySynthLib.diffusion.bridge import preconditioning, sample_bridge
from MissingModalitySynthLib.diffusion.schedules import alphas_cumprod
from MissingModalitySynthLib.translators.aldm import AldmTranslator
from MissingModalitySynthLib.translators.regression import RegressionTranslator
from training.batches import Pair
from training.losses import (
    bridge_losses,
    diffusion_losses,
    mutual_information,
    regression_losses,
    spade_losses,
    step_weights,
    structural_similarity,
)

UNET = {"channels": [8, 8], "attention": [False, False], "num_head_channels": 4, "norm_num_groups": 4}
MODALITIES = ["T1", "T2", "FLAIR"]


def image(seed, size=8):
    return torch.rand(1, 1, size, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def translator(**options):
    torch.manual_seed(0)
    spade = {"stem": 8, "residual": [8], "spade": [8], "hidden": 4, "kernel": 3}
    return AldmTranslator(MODALITIES, {"kind": "haar", "levels": 1}, spade, UNET, **options)


class Fixed(nn.Module):
    """Returns what a function makes of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


PAIR = Pair({"T1": image(0), "FLAIR": image(1)}, "T2", image(2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rho", [0.0, 0.3, -0.6, 0.8, 0.9])
def test_the_mutual_information_of_gaussians_is_minus_half_the_logarithm_of_one_minus_rho_squared(rho):
    a = torch.randn(1, 4, 30, 30, 30, generator=generator(1))
    b = rho * a + math.sqrt(1 - rho**2) * torch.randn(a.shape, generator=generator(2))
    exact = -0.5 * math.log(1 - rho**2)
    assert mutual_information(a, b).item() == pytest.approx(exact, abs=0.03 + 0.06 * exact)


def test_mutual_information_does_not_mind_a_contrast_that_is_inverted_but_one_that_is_shuffled():
    a = torch.randn(1, 2, 16, 16, 16, generator=generator())
    shuffled = a.flatten(2)[..., torch.randperm(16**3, generator=generator())].view_as(a)
    assert mutual_information(a, -a) == pytest.approx(mutual_information(a, a).item(), rel=1e-3)
    assert mutual_information(a, shuffled) < 0.2 * mutual_information(a, a)


def test_climbing_the_gradient_of_mutual_information_aligns_what_was_independent():
    target = torch.randn(1, 1, 12, 12, 12, generator=generator(1))
    z = torch.randn(target.shape, generator=generator(2)).requires_grad_()
    before = mutual_information(z, target).item()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (-mutual_information(z, target)).backward()
        optimizer.step()
    assert mutual_information(z, target).item() > before + 0.2


def test_every_loss_of_ms_spade_is_zero_where_its_answer_is_right():
    model = translator()
    right = model.first_stage.encode(PAIR.image)
    model.spade = Fixed(lambda z, target: right + 0 * z)
    terms = spade_losses(model, PAIR, generator(), self_weight=1.0, cycle_weight=1.0, information_weight=0.5)
    for name in ("spade", "self", "cycle"):
        assert terms[name].item() == pytest.approx(0, abs=1e-6)
    assert terms["information"].item() == pytest.approx(-0.5 * mutual_information(right, right).item())


def test_terms_of_ms_spade_measure_what_they_say():
    model = translator()
    latents = model.first_stage.encode(PAIR.image)
    model.spade = Fixed(lambda z, target: z + 1.0 + target.view(-1, 1, 1, 1, 1))  # adds 1 for T1, 2 for T2, 3 for FLAIR
    terms = spade_losses(model, PAIR, generator(), image_weight=0.0, self_weight=1.0, cycle_weight=1.0)
    sources = [model.first_stage.encode(source) for source in PAIR.sources.values()]
    expected = sum((z + 2.0 - latents).square().mean() for z in sources) / 2
    assert terms["spade"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["self"].item() == pytest.approx(2.0, rel=1e-5)
    assert terms["cycle"].item() in (pytest.approx(1.0 + 2.0, rel=1e-5), pytest.approx(3.0 + 2.0, rel=1e-5))


def test_terms_of_weight_zero_are_not_computed():
    model = translator()
    calls = []
    model.spade = Fixed(lambda z, target: calls.append(1) or z)
    terms = spade_losses(model, PAIR, generator())
    assert set(terms) == {"spade"}
    assert len(calls) == len(PAIR.sources)


def test_the_noise_that_was_added_has_no_loss_and_no_noise_at_all_has_a_loss_of_one():
    """E ||epsilon||^2 = 1: what eq. 2 gives for a network that predicts 0."""
    model = translator(mode="paper")
    latents = model.first_stage.encode(PAIR.image)

    def oracle(z_t, start, t, y):
        a = model.alpha_bar[t.long()].float()
        return (z_t - a.sqrt() * latents) / (1 - a).sqrt()

    model.denoiser = Fixed(oracle)
    assert diffusion_losses(model, PAIR, generator())["diffusion"].item() == pytest.approx(0, abs=1e-3)
    model.denoiser = Fixed(lambda z_t, start, t, y: torch.zeros_like(z_t))
    values = [diffusion_losses(model, PAIR, generator(seed))["diffusion"].item() for seed in range(10)]
    assert sum(values) / 10 == pytest.approx(1.0, abs=0.05)


def test_min_snr_caps_the_weight_of_the_clean_latents_at_five():
    alpha_bar = alphas_cumprod().float()
    weights = step_weights(alpha_bar, "min_snr")
    snr = alpha_bar / (1 - alpha_bar)
    clean_error = weights / ((1 - alpha_bar) / alpha_bar)  # an error of the noise as one of the clean latents
    assert torch.allclose(clean_error, snr.clamp(max=5), rtol=1e-4)
    assert (weights[snr < 5] == 1).all()
    assert torch.equal(step_weights(alpha_bar, "none"), torch.ones_like(alpha_bar))
    with pytest.raises(ValueError, match="none, min_snr"):
        step_weights(alpha_bar, "p2")


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_the_right_velocity_has_no_loss_on_the_bridge_and_ends_at_the_target(sigma):
    model = translator(sigma=sigma)
    latents = model.first_stage.encode(PAIR.image)
    model.spade = Fixed(lambda z, target: z)

    def perfect(departure, start, time, y):
        skip, scale_in, scale_out = preconditioning(time / 1000, model.sigma, model.spread)
        return (latents - start - skip * departure / scale_in) / scale_out

    model.denoiser = Fixed(perfect)
    for seed in range(4):
        terms = bridge_losses(model, PAIR, generator(seed))
        assert set(terms) == {"bridge"}
        assert terms["bridge"].item() == pytest.approx(0, abs=1e-5)
    start = model.condition(model.encode(PAIR.sources), "T2")
    end = sample_bridge(lambda x, tau: latents - start, start, steps=3, sigma=sigma, generator=generator())
    assert torch.allclose(end, latents, atol=1e-5)


def test_the_regression_is_judged_in_every_contrast_that_is_known():
    torch.manual_seed(0)
    model = RegressionTranslator(MODALITIES, {"kind": "haar", "levels": 1}, {"features": [8] * 6})
    known = {"T1": image(3), "T2": PAIR.image}
    latents = model.encode(known)
    model.unet = Fixed(
        lambda x: torch.cat([latents["T1"], latents["T2"] + 0.5, torch.zeros_like(latents["T1"])], dim=1)
    )
    target_alone = regression_losses(model, PAIR, generator(), image_weight=0.0, latent_weight=1.0)["regression"]
    assert target_alone.item() == pytest.approx(0.25, rel=1e-5)
    both = regression_losses(model, replace(PAIR, images=known), generator(), image_weight=0.0, latent_weight=1.0)
    assert both["regression"].item() == pytest.approx(0.125, rel=1e-5)


def test_voxels_of_lesions_weigh_more_in_the_image():
    """An error of 0.5 everywhere, 1 in 8 of 512 voxels: (512 + 6 * 8) / 512 * 0.25, and without lesions 0.25."""
    torch.manual_seed(0)
    model = RegressionTranslator(MODALITIES, {"kind": "haar", "levels": 0}, {"features": [8] * 6})
    model.predict = lambda condition: {"T2": model.encode({"T2": PAIR.image + 0.5})["T2"]}
    lesions = torch.zeros(PAIR.image.shape, dtype=torch.bool)
    lesions[..., :2, :2, :2] = True
    weights = {"latent_weight": 0.0, "image_weight": 2.0, "lesion_weight": 6.0}
    alone = regression_losses(model, PAIR, generator(), **weights)["regression"]
    marked = regression_losses(model, replace(PAIR, lesions=lesions), generator(), **weights)["regression"]
    assert alone.item() == pytest.approx(2 * 0.25, rel=1e-4)
    assert marked.item() == pytest.approx(2 * 0.25 * (512 + 6 * 8) / 512, rel=1e-4)


def test_structural_similarity_is_that_of_scikit_image_where_windows_fit():
    a = image(1, 20)
    b = 0.6 * a + 0.4 * image(2, 20)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    _, full = skimage_ssim(a[0, 0].numpy(), b[0, 0].numpy(), data_range=2.0, **options)
    assert structural_similarity(a, b).item() == pytest.approx(full[5:-5, 5:-5, 5:-5].mean(), abs=1e-5)
    assert structural_similarity(a, a).item() == pytest.approx(1)


def test_structure_counts_in_the_head_of_the_target_alone():
    """What is made beside it is cut off: with noise there, the loss is that of an answer which is right all over."""
    torch.manual_seed(0)
    model = RegressionTranslator(MODALITIES, {"kind": "haar", "levels": 0}, {"features": [8] * 6})
    target = image(3, 24).clamp(min=-0.9)
    target[..., :8] = -1
    pair = replace(PAIR, sources={"T1": image(0, 24)}, image=target)
    noise = torch.where(target > -1, 0, image(4, 24))
    for error, expected in ((noise, 0.0), (noise + (target > -1) * image(5, 24), 0.5)):
        model.predict = lambda inputs, made=target + error: {"T2": model.encode({"T2": made})["T2"]}
        found = regression_losses(model, pair, generator(), structure_weight=2.0)["structure"].item()
        assert found == pytest.approx(0, abs=1e-5) if expected == 0 else found > expected


@pytest.mark.parametrize("loss", [bridge_losses, diffusion_losses])
def test_the_gradient_reaches_the_denoiser_and_not_ms_spade(loss):
    model = translator(mode="bridge" if loss is bridge_losses else "paper")
    nn.init.normal_(model.denoiser.unet.out[-1].conv.weight)  # MONAI starts it at 0, which stops the gradient
    sum(loss(model, PAIR, generator()).values()).backward()
    assert model.spade.out.weight.grad is None
    assert model.denoiser.unet.conv_in.conv.weight.grad.abs().sum() > 0
