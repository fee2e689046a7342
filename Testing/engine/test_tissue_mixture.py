"""Tissues by their brightness in this image: known mixtures are told, and no contrast is preferred."""

import pytest
import torch
from torch.nn import functional as F

from MissingModalitySynthLib import tissue_mixture
from MissingModalitySynthLib.tissue_mixture import refine_tissues

SIZE = 32


@pytest.fixture(scope="module")
def tissues():
    """Three tissues in blobs of a few voxels, (1, 3, 32, 32, 32), one-hot."""
    generator = torch.Generator().manual_seed(0)
    fields = F.interpolate(torch.randn(1, 3, 8, 8, 8, generator=generator), (SIZE,) * 3, mode="trilinear")
    return F.one_hot(fields.argmax(dim=1), 3).movedim(-1, 1).float()


@pytest.fixture(scope="module")
def unsure(tissues):
    """What a network might say: blurred, and wrong in a quarter of the voxels."""
    blurred = F.avg_pool3d(tissues, 7, stride=1, padding=3, count_include_pad=False)
    return (blurred + 0.3) / (blurred + 0.3).sum(dim=1, keepdim=True)


def painted(tissues, values, noise=0.05, seed=1):
    """Each tissue in one value, with Gaussian noise."""
    image = sum(value * tissue for value, tissue in zip(values, tissues[0], strict=True))[None, None]
    return image + noise * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))


def right(shares, tissues):
    """Share of the voxels whose most probable tissue is the true one."""
    return (shares.argmax(dim=1) == tissues.argmax(dim=1)).float().mean().item()


@pytest.mark.parametrize("values", [(-0.5, 0.0, 0.6), (0.6, 0.0, -0.5), (0.0, 0.6, -0.5), (-0.2, 0.8, 0.2)])
def test_tissues_of_any_contrast_are_told_by_their_brightness(tissues, unsure, values):
    assert right(unsure, tissues) < 0.85
    found = refine_tissues(unsure, painted(tissues, values), rounds=10)
    assert right(found, tissues) > 0.97
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, SIZE, SIZE, SIZE))


def test_two_tissues_of_one_brightness_are_left_to_the_network(tissues, unsure):
    """Of the third nothing is lost, and between the two it decides about as before."""
    found = refine_tissues(unsure, painted(tissues, (0.0, 0.0, 0.7)), rounds=10)
    third = tissues[:, 2] > 0
    assert (found.argmax(dim=1)[third] == 2).float().mean() > 0.97
    pair = ~third & (unsure.argmax(dim=1) != 2)
    same = found[:, :2].argmax(dim=1)[pair] == unsure[:, :2].argmax(dim=1)[pair]
    assert same.float().mean() > 0.85


def test_a_coil_that_doubles_the_brightness_across_the_head_is_followed(tissues, unsure, monkeypatch):
    image = painted(tissues, (0.2, 0.4, 0.6), noise=0.01) * torch.linspace(0.7, 1.4, SIZE)
    assert 0.7 * 0.6 < 1.4 * 0.4
    found = []
    for coil in (8.0, 60.0):  # a quarter of this head, as the setting is of a true one; one brightness everywhere
        monkeypatch.setattr(tissue_mixture, "COIL", coil)
        found.append(right(refine_tissues(unsure, image, rounds=10), tissues))
    assert found[0] > 0.96 and found[1] < 0.92


def test_neither_inversion_nor_gain_nor_offset_changes_what_is_found(tissues, unsure):
    image = painted(tissues, (-0.5, 0.0, 0.6))
    found = refine_tissues(unsure, image)
    for other in (-image, 0.8 * image + 0.1):
        torch.testing.assert_close(refine_tissues(unsure, other), found, atol=0.03, rtol=0)


def test_background_stays_as_the_network_says_and_gives_no_brightness(tissues, unsure):
    image = painted(tissues, (-0.5, 0.0, 0.6))
    image[..., :12] = -1
    found = refine_tissues(unsure, image, rounds=10)
    assert torch.equal(found[..., :12], unsure[..., :12])
    assert right(found[..., 14:], tissues[..., 14:]) > 0.97


def test_one_round_is_the_rule_of_bayes_with_known_gaussians():
    """Two voxel populations, even shares everywhere but where they are known: the posterior is that of the formula."""
    generator = torch.Generator().manual_seed(2)
    truth = torch.rand(1, 1, 16, 16, 16, generator=generator) < 0.5
    image = torch.where(truth, 0.4, -0.4) + 0.2 * torch.randn(truth.shape, generator=generator)
    certain = torch.cat([truth, ~truth], dim=1).float()
    found = refine_tissues(certain, image, rounds=1)[:, 0]
    bright, dark = image[truth], image[~truth]
    likelihood = [
        torch.distributions.Normal(part.mean(), part.std()).log_prob(image[:, 0]).exp() for part in (bright, dark)
    ]
    prior = F.avg_pool3d(certain, 3, stride=1, padding=1, count_include_pad=False)
    expected = prior[:, 0] * likelihood[0] / (prior[:, 0] * likelihood[0] + prior[:, 1] * likelihood[1])
    inner = (slice(None), *[slice(2, -2)] * 3)
    assert (found[inner] - expected[inner]).abs().mean() < 0.03
