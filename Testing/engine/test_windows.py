"""Sums over windows against PyTorch's pooling, and their adjoint against the definition of one."""

import pytest
import torch
from torch.nn import functional as F

from MissingModalitySynthLib.diffusion.windows import MatrixSums, ShiftedSums, window_sums

SHAPES = [(5, 7), (1, 4), (4, 1), (6, 5, 4), (1, 1, 3), (3, 1, 1)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("window", "stride"), [(3, 1), (3, 2), (5, 1), (7, 3)])
def test_they_are_those_of_pooling_with_zeros_beyond_the_border(shape, window, stride):
    maps = noise(2, 3, *shape)
    pool = F.avg_pool2d if len(shape) == 2 else F.avg_pool3d
    padded = F.pad(maps, [window // 2] * 2 * len(shape))  # pooling refuses images smaller than its window
    expected = pool(padded, window, stride, divisor_override=1)
    box = window_sums(shape, window, stride, maps)
    torch.testing.assert_close(box.restore(box(box.lay_out(maps))), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("box", [lambda shape, x: MatrixSums(shape, 3, 1, x), lambda shape, x: ShiftedSums(shape)])
def test_the_adjoint_has_the_same_scalar_product(shape, box):
    maps, gradient = noise(1, 2, *shape), noise(1, 2, *shape, seed=1)
    box = box(shape, maps)
    maps, gradient = box.lay_out(maps), box.lay_out(gradient)
    torch.testing.assert_close((box(maps) * gradient).sum(), (maps * box.adjoint(gradient)).sum())


@pytest.mark.parametrize(("window", "stride"), [(3, 1), (5, 1), (3, 2)])
def test_the_way_that_suits_is_chosen(window, stride):
    chosen = window_sums((4, 4), window, stride, noise(1))
    assert isinstance(chosen, ShiftedSums if (window, stride) == (3, 1) else MatrixSums)
