"""MS-SPADE against ALDM's equation 1, written out with torch's primitives."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from MissingModalitySynthLib.networks.configurations import count_parameters
from MissingModalitySynthLib.networks.spade import MSSPADE, SwitchableModulation, fuse

SMALL = {"stem": 8, "residual": [12], "spade": [12, 8], "hidden": 4}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def modulation(shared, num_targets=3):
    torch.manual_seed(1)
    return SwitchableModulation(channels=6, num_targets=num_targets, hidden=4, shared=shared)


def network(shared=True, num_targets=3):
    torch.manual_seed(1)
    return MSSPADE(latent_channels=5, num_targets=num_targets, shared=shared, **SMALL)


def conv(x, layer):
    return F.conv3d(x, layer.weight, layer.bias, padding=1)


def equation_1(module, h, target):
    """gamma(h) (h - mu) / sigma + beta(h) of one item (1, C, X, Y, Z), in float64."""
    module, h = module.double(), h.double()
    branch = 0 if module.shared else target
    features = conv(h, module.trunk[branch])
    if module.shared:
        scale, shift = module.film.weight[target].view(2, -1, 1, 1, 1)
        features = features * (1 + scale) + shift
    features = features.clamp_min(0)
    mu = h.mean(dim=(2, 3, 4), keepdim=True)
    sigma = (h.var(dim=(2, 3, 4), keepdim=True, unbiased=False) + 1e-5).sqrt()
    return (1 + conv(features, module.gamma[branch])) * (h - mu) / sigma + conv(features, module.beta[branch])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("target", [0, 2])
def test_the_modulation_is_equation_1(shared, target):
    module, h = modulation(shared), randn(1, 6, 5, 4, 6) * 3 + 1
    with torch.no_grad():
        result = module(h, torch.tensor([target]))
        torch.testing.assert_close(result.double(), equation_1(module, h, target), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_the_normalisation_is_an_instance_normalisation_in_both_memory_layouts(layout, offset):
    h = (randn(2, 6, 24, 24, 16) + offset).contiguous(memory_format=layout)
    result = modulation(True).normalise(h)
    torch.testing.assert_close(result, nn.InstanceNorm3d(6)(h), atol=1e-3, rtol=0)
    assert result.is_contiguous(memory_format=layout)


def test_under_autocast_the_modulation_stays_near_its_float32_result():
    module, h = modulation(True), randn(1, 6, 8, 8, 8) + 1
    with torch.no_grad():
        expected = module(h, torch.tensor([1]))
        with torch.autocast("cpu", torch.bfloat16):
            result = module(h, torch.tensor([1]))
    assert (result.float() - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("shared", [True, False])
def test_the_target_switches_the_result(shared):
    net, z = network(shared), randn(1, 5, 4, 4, 4)
    with torch.no_grad():
        results = [net(z, torch.tensor([target])) for target in range(3)]
    assert results[0].shape == z.shape
    scale = results[0].std()
    assert min((results[a] - results[b]).std() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.01 * scale


@pytest.mark.parametrize("shared", [True, False])
def test_each_item_of_a_batch_has_its_own_target(shared):
    net, z = network(shared), randn(3, 5, 4, 6, 4)
    targets = torch.tensor([2, 0, 2])
    with torch.no_grad():
        together = net(z, targets)
        for i in range(3):
            torch.testing.assert_close(together[i : i + 1], net(z[i : i + 1], targets[i : i + 1]), atol=1e-5, rtol=1e-4)


def test_a_further_target_costs_a_scale_and_a_shift_per_modulation():
    growth = count_parameters(network(True, 4)) - count_parameters(network(True, 3))
    modulations = 2 * len(SMALL["spade"])
    assert growth == modulations * 2 * SMALL["hidden"]


def test_with_convolutions_of_their_own_the_targets_cost_linearly():
    counts = [count_parameters(network(False, n)) for n in (2, 3, 4)]
    hidden, cost = SMALL["hidden"], 0
    for channels in SMALL["spade"]:
        one = (27 * channels * hidden + hidden) + 2 * (27 * hidden * channels + channels)
        cost += 2 * one
    assert counts[1] - counts[0] == counts[2] - counts[1] == cost


def test_an_unused_target_gets_no_gradient():
    net = network(True)
    net(randn(1, 5, 4, 4, 4), torch.tensor([1])).square().sum().backward()
    grad = net.spade_blocks[0].norm1.film.weight.grad
    assert grad[1].abs().max() > 0
    assert grad[[0, 2]].abs().max() == 0


def test_fusion_is_the_mean_over_the_available_sources_in_any_order():
    latents = [randn(1, 5, 3, 3, 3, seed=seed) for seed in range(4)]
    available = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(4, 1, 1, 1, 1, 1)
    masked_mean = (torch.stack(latents) * available).sum(dim=0) / available.sum()
    given = [latents[0], latents[2], latents[3]]
    torch.testing.assert_close(fuse(given), masked_mean)
    torch.testing.assert_close(fuse(given[::-1]), fuse(given))
    assert torch.equal(fuse(given[:1]), given[0])


def test_fusion_of_nothing_is_refused():
    with pytest.raises(ValueError, match="At least one source"):
        fuse([])
