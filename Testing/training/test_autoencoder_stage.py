"""The autoencoder's losses, its codebook, and the segmenter that compares images."""

import pytest
import torch
from torch import nn

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.networks.autoencoder import Codebook
from MissingModalitySynthLib.networks.segmenter import Segmenter
from MissingModalitySynthLib.segmentation import CLASSES
from training.autoencoder import autoencoder_losses, build_autoencoder, perplexity, revive_dead_codes
from training.batches import Pair
from training.segmenter import SegmenterFeatures, segmenter_losses
from training.simulation.tissues import CLASS
from training.tissue_classes import classes_of

SMALL = {"channels": [8, 8], "latent_channels": 2, "num_res_blocks": 1, "norm_num_groups": 4}
VQ = {"kind": "vq", "num_codes": 16, **SMALL}
KL = {"kind": "kl", **SMALL}


def smooth(seed, size=32):
    coarse = torch.rand(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, size=(size,) * 3, mode="trilinear")


WEIGHTS = (1.0, 2.0, 1.0, 1.0, 4.0, 3.0)  # of CLASSES
PAIR = Pair({"T1": smooth(0)}, "T2", smooth(1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_perplexity_is_the_number_of_codes_that_are_used_alike():
    assert perplexity(torch.arange(12).repeat(5), 16).item() == pytest.approx(12)
    assert perplexity(torch.zeros(40, dtype=torch.long), 16).item() == pytest.approx(1)


def test_dead_codes_move_to_latents_of_the_batch_and_the_others_stay():
    codebook = Codebook(8, 2)
    codebook.ema_cluster_size.fill_(3.0)
    codebook.ema_cluster_size[2] = codebook.ema_cluster_size[5] = 0.01
    before = codebook.embedding.weight.clone()
    latents = 7 + torch.randn(1, 2, 3, 3, 3)
    assert revive_dead_codes(codebook, lambda: latents, 0.05) == 2
    moved = (codebook.embedding.weight != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [2, 5]
    rows = latents.movedim(1, -1).reshape(-1, 2)
    for code in codebook.embedding.weight[moved]:
        assert (rows == code).all(dim=1).any()
    assert revive_dead_codes(codebook, lambda: pytest.fail("nothing is dead"), 0.05) == 0


def test_the_first_batch_seeds_the_codebook_so_that_most_codes_are_used():
    torch.manual_seed(0)
    model = build_autoencoder(VQ, adversarial=False)
    first = autoencoder_losses(model, PAIR, generator())
    assert first["revived_codes"] == 16
    assert first["perplexity"] > 6
    assert autoencoder_losses(model, PAIR, generator())["revived_codes"] == 0
    model.eval()
    before = model["first_stage"].codebook.embedding.weight.clone()
    autoencoder_losses(model, PAIR, generator())
    assert torch.equal(model["first_stage"].codebook.embedding.weight, before)


@pytest.mark.parametrize(("kind", "regulariser"), [(VQ, "quantisation"), (KL, "kl")])
def test_each_term_is_there_only_with_its_weight_and_in_proportion_to_it(kind, regulariser):
    torch.manual_seed(0)
    model = build_autoencoder(kind, adversarial=True, channels=4).eval()
    always = {"reconstruction", regulariser, "perplexity", "revived_codes"} if kind is VQ else {"reconstruction", "kl"}
    assert set(autoencoder_losses(model, PAIR, generator())) == always
    options = {"perceptual": lambda a, b: (a - b).square().mean()}

    def terms(weight):
        torch.manual_seed(1)
        names = ("quantisation", "kl", "perceptual", "adversarial", "spectral")
        return autoencoder_losses(model, PAIR, generator(), **{f"{name}_weight": weight for name in names}, **options)

    one, two = terms(1.0), terms(2.0)
    for name in (regulariser, "perceptual", "adversarial", "spectral"):
        assert one[name].item() > 0
        assert two[name].item() == pytest.approx(2 * one[name].item(), rel=1e-4)
    assert two["discriminator"].item() == pytest.approx(one["discriminator"].item(), rel=1e-4)


def test_the_discriminators_loss_trains_the_discriminator_alone_and_the_adversarial_one_the_autoencoder_alone():
    torch.manual_seed(0)
    model = build_autoencoder(KL, adversarial=True, channels=4)

    def touched(name):
        model.zero_grad(set_to_none=True)
        autoencoder_losses(model, PAIR, generator(), adversarial_weight=1.0)[name].backward()
        return {part for part, child in model.items() if any(p.grad is not None for p in child.parameters())}

    assert touched("discriminator") == {"discriminator"}
    assert touched("adversarial") == {"first_stage"}


@pytest.mark.parametrize("kind", [VQ, KL], ids=["vq", "kl"])
def test_an_autoencoder_learns_to_reconstruct(kind):
    torch.manual_seed(0)
    model = build_autoencoder(kind, adversarial=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    pair = Pair({"T1": smooth(0, 16)}, "T2", smooth(0, 16))
    history = []
    for _ in range(40):
        terms = autoencoder_losses(model, pair, generator())
        optimizer.zero_grad()
        sum(term for term in terms.values() if term.requires_grad).backward()
        optimizer.step()
        history.append(terms["reconstruction"].item())
    assert history[-1] < 0.5 * history[0]


def test_a_first_stage_without_weights_is_refused():
    with pytest.raises(InputError, match="'haar' has nothing to train"):
        build_autoencoder({"kind": "haar", "levels": 1}, adversarial=False)


def test_tissues_become_the_classes_that_are_reported():
    tissues = ["air", "fat", "ventricular CSF", "cortex", "brainstem", "putamen", "lesion", "enhancing tumour"]
    found = classes_of(torch.tensor([CLASS[name] for name in tissues], dtype=torch.uint8))
    names = ["background", "background", "CSF", "grey matter", "white matter", "deep grey matter", "lesion", "lesion"]
    assert [CLASSES[index] for index in found.tolist()] == names


def test_the_segmenter_needs_labels_and_its_loss_is_small_where_it_is_right():
    labels = torch.zeros(1, 1, 16, 16, 16, dtype=torch.uint8)
    labels[..., 8:] = CLASS["cortex"]
    right = nn.functional.one_hot(classes_of(labels)[0, 0], len(CLASSES)).movedim(-1, 0)[None] * 30.0
    pair = Pair({}, "T2", smooth(0, 16), labels=labels)
    good = segmenter_losses(lambda image: right, pair, generator(), class_weights=WEIGHTS)["segmentation"]
    bad = segmenter_losses(lambda image: right.flip(-1), pair, generator(), class_weights=WEIGHTS)["segmentation"]
    absent = [1, 3, 4, 5]  # their Dice is 0, and pushes nowhere
    assert good.item() == pytest.approx(sum(WEIGHTS[index] for index in absent) / len(CLASSES), abs=0.01)
    assert bad > good + 1
    with pytest.raises(InputError, match=r"data\.real=null"):
        segmenter_losses(lambda image: right, PAIR, generator(), class_weights=WEIGHTS)


def test_a_class_that_a_crop_lacks_does_not_pull_the_others():
    logits = torch.zeros(1, len(CLASSES), 16, 16, 16, requires_grad=True)
    labels = torch.zeros(1, 1, 16, 16, 16, dtype=torch.uint8)
    labels[..., 8:] = CLASS["cortex"]
    pair = Pair({}, "T2", smooth(0, 16), labels=labels)
    segmenter_losses(lambda image: logits, pair, generator(), class_weights=WEIGHTS)["segmentation"].backward()
    pushed = logits.grad.mean(dim=(0, 2, 3, 4))
    lesion, fluid = CLASSES.index("lesion"), CLASSES.index("CSF")
    assert pushed[lesion] == pytest.approx(pushed[fluid].item())  # neither by its weight nor by a Dice term of its own
    assert pushed[CLASSES.index("grey matter")] < 0 < pushed[lesion]


def test_the_perceptual_distance_is_zero_for_equal_images_and_grows_with_blur():
    torch.manual_seed(0)
    distance = SegmenterFeatures(Segmenter(8).eval())
    image = smooth(3) + 0.3 * torch.randn(1, 1, 32, 32, 32)

    def blurred(width):
        return nn.functional.avg_pool3d(image, width, stride=1, padding=width // 2)

    assert distance(image, image).item() == pytest.approx(0, abs=1e-7)
    assert 0 < distance(image, blurred(3)) < distance(image, blurred(7))
