"""The learned first stages: the codebook against MONAI's, the KL term against torch.distributions."""

import pytest
import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer
from torch.distributions import Normal, kl_divergence

from MissingModalitySynthLib.networks.autoencoder import Codebook, KLAutoencoder, VQAutoencoder
from MissingModalitySynthLib.networks.configurations import build_first_stage
from MissingModalitySynthLib.networks.first_stage import FirstStage

CODES, DIM = 24, 4
SMALL = {"channels": (8, 16, 16), "latent_channels": 3, "norm_num_groups": 4}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def codebooks():
    """A codebook of ours (with chunks much smaller than the input) and MONAI's, in the same state."""
    torch.manual_seed(0)
    ours = Codebook(CODES, DIM, chunk=7)
    theirs = EMAQuantizer(spatial_dims=3, num_embeddings=CODES, embedding_dim=DIM)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_codes_loss_and_gradient_equal_those_of_monai(codebooks):
    results = []
    for codebook in codebooks:
        x = randn(2, DIM, 3, 4, 5).requires_grad_()
        quantized, loss, *_ = codebook.eval()(x)
        (quantized.square().sum() + 3 * loss).backward()
        results.append((quantized.detach(), loss.detach(), x.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_indices_are_those_of_the_nearest_codes(codebooks):
    ours, _ = codebooks
    x = randn(2, DIM, 3, 4, 5)
    _, _, indices = ours.eval()(x)
    distances = torch.cdist(x.movedim(1, -1).reshape(-1, DIM).double(), ours.embedding.weight.double())
    assert torch.equal(indices.flatten(), distances.argmin(dim=1))


def test_three_training_steps_move_the_codes_as_in_monai(codebooks):
    for step in range(3):
        x = randn(2, DIM, 3, 4, 5, seed=step)
        for codebook in codebooks:
            codebook.train()(x)
    ours, theirs = (codebook.state_dict() for codebook in codebooks)
    for name in ("embedding.weight", "ema_cluster_size", "ema_w"):
        torch.testing.assert_close(ours[name], theirs[name], msg=name)


def test_codes_that_are_never_used_stay_where_they_are():
    torch.manual_seed(0)
    codebook = Codebook(CODES, DIM)
    before = codebook.embedding.weight.clone()
    x = before[:2].T.reshape(1, DIM, 2, 1, 1)  # exactly two of the codes
    for _ in range(20):
        codebook.train()(x)
    torch.testing.assert_close(codebook.embedding.weight, before, atol=1e-2, rtol=1e-3)


def test_the_codebook_does_not_follow_its_inputs_in_evaluation(codebooks):
    ours, _ = codebooks
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    ours.eval()(randn(1, DIM, 2, 2, 2))
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_latents_are_a_quarter_of_the_image_along_each_axis(kind):
    stage = build_first_stage({"kind": kind, **SMALL})
    x = randn(2, 1, 16, 8, 12)
    latents = stage.encode(x)
    assert (stage.factor, stage.channels) == (4, 3)
    assert latents.shape == (2, 3, 4, 2, 3)
    assert stage.decode(latents).shape == x.shape
    assert stage(x)[0].shape == x.shape


def test_an_unknown_first_stage_is_named():
    with pytest.raises(ValueError, match=r"'fourier'.*vq, kl, haar"):
        build_first_stage({"kind": "fourier"})


def test_vq_decodes_codes_not_latents():
    torch.manual_seed(0)
    stage = VQAutoencoder(num_codes=CODES, **SMALL).eval()
    latents = randn(1, 3, 4, 4, 4)
    codes, _, _ = stage.codebook(latents)
    # a small step from a code towards its latents stays in the code's cell
    torch.testing.assert_close(stage.decode(latents), stage.decode(codes + 0.1 * (latents - codes)))
    torch.testing.assert_close(stage.decode(latents), stage.decoder(stage.after(codes)))


def test_the_vq_training_pass_reaches_the_encoder():
    torch.manual_seed(0)
    stage = VQAutoencoder(num_codes=CODES, **SMALL)
    reconstruction, loss, indices = stage(randn(1, 1, 8, 8, 8))
    assert indices.shape == (1, 2, 2, 2)
    (reconstruction.square().mean() + loss).backward()
    assert all(parameter.grad is not None for parameter in stage.encoder.parameters())


def test_the_kl_term_is_the_divergence_from_the_standard_normal():
    torch.manual_seed(0)
    stage = KLAutoencoder(**SMALL)
    stage.before.weight.data.mul_(5)
    x = randn(2, 1, 8, 8, 8)
    mean, log_variance = stage.moments(x)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(stage(x)[1], expected)


def test_kl_samples_its_latents_in_training_and_takes_their_mean_in_use():
    torch.manual_seed(0)
    stage = KLAutoencoder(**SMALL)
    x = randn(1, 1, 8, 8, 8)
    mean, log_variance = stage.moments(x)
    torch.testing.assert_close(stage.encode(x), mean)
    torch.manual_seed(3)
    reconstruction, _ = stage(x)
    torch.manual_seed(3)
    torch.testing.assert_close(reconstruction, stage.decode(Normal(mean, (log_variance / 2).exp()).rsample()))


def test_whitening_is_undone_exactly_even_where_the_encoder_computes_in_bfloat16():
    class Rounding(FirstStage):
        def raw_encode(self, image):
            return image.bfloat16()

        def raw_decode(self, latents):
            return latents

    stage = Rounding(channels=1, factor=1)
    x = (randn(2, 1, 6, 6, 6) * 0.37 - 1.3).bfloat16().float()
    stage.whiten_on(x)
    latents = stage.encode(x)
    torch.testing.assert_close(latents.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(stage.decode(latents), x, atol=1e-6, rtol=1e-6)
