"""Widened networks against the narrow ones: the same function, from channels that then learn different things."""

from __future__ import annotations

import pytest
import torch

from MissingModalitySynthLib.networks.unet import build_unet
from training.widening import widen

NARROW = [8, 16, 24, 16, 32, 8]
SHAPE = (1, 3, 32, 16, 16)


def made(features, seed=0):
    """A network whose biases and norms are no identities, as after training."""
    torch.manual_seed(seed)
    unet = build_unet(3, 2, features=features).double().eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.3, 1.2)
    return unet


def widened(narrow, features):
    wide = made(features, seed=1)
    generator = torch.Generator().manual_seed(0)
    wide.load_state_dict(widen(narrow.state_dict(), wide.state_dict(), generator))
    return wide


@pytest.mark.parametrize(
    "features",
    [NARROW, [8, 32, 24, 16, 32, 8], [16, 16, 24, 16, 32, 24], [24, 32, 48, 48, 64, 16]],
    ids=["the same", "one level", "full resolution", "all levels"],
)
def test_a_wider_network_computes_the_same(features):
    narrow = made(NARROW)
    x = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = narrow(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(widened(narrow, features)(x), expected, rtol=1e-9, atol=1e-9)


def test_copies_of_a_channel_learn_different_things():
    wide = widened(made(NARROW), [8, 32, 24, 16, 32, 8])
    wide(torch.randn(SHAPE, dtype=torch.float64)).square().mean().backward()
    first, second = wide.down_1.convs.conv_1.conv.weight.grad.unflatten(0, (16, 2)).unbind(1)
    assert (first - second).norm() > 0.05 * first.norm()


@pytest.mark.parametrize("features", [[8, 24, 24, 16, 32, 8], [8, 8, 24, 16, 32, 8]], ids=["half as wide more", "less"])
def test_only_whole_times_as_wide(features):
    with pytest.raises(ValueError, match="whole times"):
        widened(made(NARROW), features)


@pytest.mark.parametrize(("taken", "made"), [(6, 2), (3, 4)], ids=["sources", "targets"])
def test_what_goes_in_and_comes_out_is_not_widened(taken, made):
    other = build_unet(taken, made, features=NARROW).state_dict()
    with pytest.raises(ValueError, match="more than the widths"):
        widen(build_unet(3, 2, features=NARROW).state_dict(), other, torch.Generator())


def test_of_other_networks_nothing_is_taken():
    weights = build_unet(3, 2, features=NARROW).state_dict()
    other = {name: tensor for name, tensor in weights.items() if "upcat_1" not in name}
    with pytest.raises(ValueError, match="more than the widths"):
        widen(weights, other, torch.Generator())
