"""The denoiser: what its cross-attention to a single one-hot token is, and what its result depends on."""

import pytest
import torch
from torch import nn

from MissingModalitySynthLib.networks.configurations import CONFIGURATIONS, build_first_stage, count_parameters
from MissingModalitySynthLib.networks.denoiser import Denoiser
from MissingModalitySynthLib.networks.spade import MSSPADE

SMALL = {
    "channels": [8, 16],
    "attention": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 8,
    "norm_num_groups": 4,
}
TARGETS = 4


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_random_weights(net):
    """As built, the last convolution of the UNet and of each of its blocks is 0."""
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(1 / parameter[0].numel()) ** 0.5)
    return net.eval()


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return with_random_weights(Denoiser(latent_channels=3, num_targets=TARGETS, **SMALL))


def run(net, x, condition, time=500.0, target=1):
    batch = x.shape[0]
    with torch.no_grad():
        return net(x, condition, torch.full((batch,), float(time)), torch.full((batch,), target))


def test_cross_attention_to_one_token_adds_its_value_to_every_position(denoiser):
    seen = []
    blocks = [m for name, m in denoiser.named_modules() if name.endswith("attn2") or name.endswith("cross_attn")]
    assert blocks
    for block in blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append((module, output)))
    run(denoiser, randn(1, 3, 4, 4, 4), randn(1, 3, 4, 4, 4, seed=1), target=2)
    assert len(seen) == len(blocks)
    one_hot = torch.eye(TARGETS)[2]
    for module, output in seen:
        attention = module if hasattr(module, "to_v") else module.attn
        value = attention.to_v.weight @ one_hot  # eq. 3: softmax over a single key is 1
        expected = attention.out_proj.weight @ value + attention.out_proj.bias
        torch.testing.assert_close(output, expected.expand_as(output), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("what", ["noisy", "condition", "time", "target"])
def test_every_input_matters(denoiser, what):
    x, condition = randn(1, 3, 4, 4, 4), randn(1, 3, 4, 4, 4, seed=1)
    changed = {
        "noisy": (x + 0.5, condition),
        "condition": (x, condition + 0.5),
        "time": (x, condition, 100.0),
        "target": (x, condition, 500.0, 3),
    }[what]
    expected = run(denoiser, x, condition)
    assert (run(denoiser, *changed) - expected).abs().max() > 1e-3 * expected.abs().max()


def test_neighbouring_times_of_the_bridge_are_told_apart(denoiser):
    x, condition = randn(1, 3, 4, 4, 4), randn(1, 3, 4, 4, 4, seed=1)
    assert not torch.equal(run(denoiser, x, condition, 250.0), run(denoiser, x, condition, 250.5))


def test_the_target_reaches_the_levels_without_attention_through_the_time_embedding():
    torch.manual_seed(0)
    net = with_random_weights(Denoiser(3, TARGETS, **SMALL))
    for name, parameter in net.named_parameters():
        if name.endswith("attn2.to_v.weight") or "cross_attn.to_v" in name:
            nn.init.zeros_(parameter)
    with torch.no_grad():
        x = randn(1, 3, 4, 4, 4)
        a, b = (net(x, x, torch.zeros(1), torch.tensor([target])) for target in (0, 1))
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


def test_the_shape_is_kept_for_multiples_of_the_factor(denoiser):
    assert denoiser.factor == 2
    x = randn(2, 3, 6, 4, 10)
    assert run(denoiser, x, x).shape == x.shape


def test_each_item_of_a_batch_has_its_own_time_and_target(denoiser):
    x, condition = randn(2, 3, 4, 4, 4), randn(2, 3, 4, 4, 4, seed=1)
    time, target = torch.tensor([10.0, 900.0]), torch.tensor([3, 0])
    with torch.no_grad():
        together = denoiser(x, condition, time, target)
        for i in range(2):
            part = slice(i, i + 1)
            alone = denoiser(x[part], condition[part], time[part], target[part])
            torch.testing.assert_close(together[part], alone, atol=1e-5, rtol=1e-4)


def test_an_untrained_denoiser_predicts_zero():
    x = randn(1, 3, 4, 4, 4)
    net = Denoiser(latent_channels=3, num_targets=TARGETS, **SMALL).eval()
    assert run(net, x, x).abs().max() == 0


def build(name):
    with torch.device("meta"):
        stage = build_first_stage(CONFIGURATIONS[name]["first_stage"])
        spade = MSSPADE(stage.channels, 4, **CONFIGURATIONS[name]["spade"])
        unet = Denoiser(stage.channels, 4, **CONFIGURATIONS[name]["denoiser"])
    return stage, spade, unet


def test_the_paper_configuration_has_nearly_the_published_numbers_of_parameters():
    stage, spade, unet = build("paper")
    assert count_parameters(stage) + count_parameters(spade) == pytest.approx(237e6, rel=0.03)
    assert count_parameters(unet) == pytest.approx(658e6, rel=0.01)


def test_the_micro_configuration_fits_in_16_megabytes():
    assert sum(2 * count_parameters(module) for module in build("micro")) < 16e6
