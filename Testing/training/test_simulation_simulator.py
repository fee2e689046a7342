"""The simulator: contrasts, pathology, artefacts, masks and reproducibility."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from training.simulation import MODALITIES, procedural_head, simulate, simulator
from training.simulation.artefacts import THICK, interpolation_matrix, motion_matrices, slice_matrix
from training.simulation.deformation import displace_mass, sampling_positions
from training.simulation.pathology import glioma
from training.simulation.preview import main
from training.simulation.randomness import apply_matrices, gaussian_matrix
from training.simulation.simulator import STRIPPED_BEFORE, _brightest, _brightest_signal, _count_classes
from training.simulation.tissues import CLASS, LEVELS, TEXTURE_RANGE, TISSUES, draw_subject

SHAPE = (72, 80, 72)


@pytest.fixture(scope="module")
def head():
    return procedural_head((104, 116, 104), seed=0)


def run(head, seed=0, **options):
    return simulate(head, shape=SHAPE, generator=torch.Generator().manual_seed(seed), **options)


def median(result, image, tissue):
    where = result.labels.numpy() == CLASS[tissue]
    core = ndimage.binary_erosion(where)
    return float(np.median(image.numpy()[core if core.sum() > 30 else where]))


@pytest.fixture(scope="module")
def healthy(head):
    return run(head, skull_strip=0.0, pathology=0.0, deform=0.3)


def test_the_same_seed_gives_the_same_images_and_another_seed_gives_others(head):
    first, again, other = run(head, 3), run(head, 3), run(head, 4)
    for modality in MODALITIES:
        assert torch.equal(first.sources[modality], again.sources[modality])
        assert torch.equal(first.targets[modality], again.targets[modality])
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)


def test_only_the_requested_modalities_are_computed_and_all_are_finite_and_non_negative(head):
    result = run(head, sources=["T1", "PD"], targets=["FLAIR"])
    assert set(result.sources) == {"T1", "PD"}
    assert set(result.targets) == {"FLAIR"}
    for image in (*result.sources.values(), *result.targets.values()):
        assert image.shape == SHAPE
        assert image.dtype == torch.float32
        assert torch.isfinite(image).all()
        assert image.min() >= 0


@pytest.mark.parametrize(
    ("modality", "order"),
    [
        ("T1", ("fat", "white matter", "cortex", "ventricular CSF")),
        ("T2", ("ventricular CSF", "cortex", "white matter", "cortical bone")),
        ("FLAIR", ("cortex", "white matter", "ventricular CSF")),
        ("PD", ("cortex", "white matter", "cortical bone")),
    ],
)
def test_tissues_of_targets_are_ordered_as_in_textbooks(healthy, modality, order):
    values = [median(healthy, healthy.targets[modality], tissue) for tissue in order]
    assert values == sorted(values, reverse=True)
    assert all(a > 1.04 * b for a, b in pairwise(values))


def test_lesions_are_bright_in_flair_and_t2_and_marked_in_the_mask(head):
    result = run(head, 1, skull_strip=1.0, pathology=10.0, deform=0.3)
    assert set(result.protocol["pathology"]) == {"lesions", "glioma", "infarct"}
    assert result.lesion_mask.sum() > 50
    core = torch.from_numpy(
        ndimage.binary_erosion(result.lesion_mask.numpy() & (result.labels.numpy() != CLASS["cavity"]))
    )
    white = result.labels == CLASS["white matter"]
    for modality in ("T2", "FLAIR"):
        image = result.targets[modality]
        assert image[core].median() > 1.1 * image[white].median()


def test_enhancement_is_the_only_difference_of_t1ce_to_t1(head):
    cases = (run(head, seed, pathology=10.0, deform=0.3, sources=()) for seed in range(30))
    result = next(case for case in cases if (case.labels == CLASS["enhancing tumour"]).sum() > 200)
    ratio = result.targets["T1ce"] / result.targets["T1"].clamp(min=1e-3)
    enhancing = result.labels == CLASS["enhancing tumour"]
    white = torch.from_numpy(ndimage.binary_erosion(result.labels.numpy() == CLASS["white matter"], iterations=2))
    inside = white & result.brain_mask
    assert ratio[enhancing & result.brain_mask].median() > 1.2
    assert ratio[inside].median() == pytest.approx(1, abs=0.1)


def test_skull_stripping_empties_the_same_voxels_of_all_images(head):
    cases = (run(head, seed, skull_strip=1.0) for seed in range(2, 30))
    result = next(case for case in cases if not case.protocol["soft_edges"])
    outside = ~result.brain_mask
    assert 0.05 < result.brain_mask.float().mean() < 0.95
    for image in (*result.sources.values(), *result.targets.values()):
        assert image[outside].max() == 0
    whole = run(head, 2, skull_strip=0.0)
    assert whole.targets["T1"][~whole.brain_mask].max() > 0


def test_sources_of_a_brain_that_was_cut_out_before_have_soft_edges_if_thick_and_targets_sharp_ones(head):
    cases = [run(head, seed, skull_strip=1.0) for seed in range(16)]
    blurred = 0
    for case in (case for case in cases if case.protocol["soft_edges"]):
        outside = ~case.brain_mask
        away = ndimage.distance_transform_edt(outside.numpy())
        for image in case.targets.values():
            assert image[outside].max() == 0
        for name, image in case.sources.items():
            thick = case.protocol["sources"][name].get("slice_thickness", 0) > THICK
            assert (image[outside].max() > 0) == thick
            assert image.numpy()[away > 14].max(initial=0) == 0
            if thick:
                blurred += 1
                assert 0 < image.numpy()[(away > 0) & (away < 1.5)].mean() < 0.7 * image[case.brain_mask].median()
    assert blurred > 2
    assert np.mean([case.protocol["soft_edges"] for case in cases]) == pytest.approx(STRIPPED_BEFORE, abs=0.35)


def test_random_contrast_can_be_forced_and_forbidden(head):
    forced = run(head, random_contrast=1.0).protocol["sources"]
    assert all(protocol["sequence"] == "random" for protocol in forced.values())
    physical = run(head, random_contrast=0.0).protocol["sources"]
    assert all(protocol["sequence"] != "random" for protocol in physical.values())


def test_without_deformation_the_labels_are_a_crop_of_the_anatomy(head):
    positions = sampling_positions(head, SHAPE, torch.Generator().manual_seed(0), torch.device("cpu"), deform=0.0)
    steps = [(positions.diff(dim=k) - torch.eye(3)[k]).abs().max() for k in range(3)]
    assert max(steps) < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_deformations_do_not_fold(head, seed):
    positions = sampling_positions(head, SHAPE, torch.Generator().manual_seed(seed), torch.device("cpu"))
    positions = displace_mass(positions, positions[36, 40, 36], 15.0, 6.0)
    columns = [
        positions.diff(dim=k)[: -1 if k != 0 else None, : -1 if k != 1 else None, : -1 if k != 2 else None]
        for k in range(3)
    ]
    determinant = torch.linalg.det(torch.stack(columns, -1))
    assert (determinant.sign() == determinant.flatten()[0].sign()).float().mean() > 0.9999


def test_severity_runs_from_white_matter_to_the_full_lesion():
    subject = draw_subject(torch.Generator().manual_seed(0))[3.0]
    lesion = subject.t2[CLASS["lesion"]]
    assert lesion[0] == pytest.approx(subject.t2[CLASS["white matter"]].median().item(), rel=1e-5)
    assert (lesion.diff() > 0).all()


def test_signal_is_lost_to_flow_in_moving_fluid_alone():
    flowing = torch.tensor([tissue.void < 1 for tissue in TISSUES])
    for seed in range(10):
        void = draw_subject(torch.Generator().manual_seed(seed))[3.0].void
        assert (void[~flowing] == 1).all()
        assert ((void[flowing] > 0) & (void[flowing] < 1)).all()


def test_lesions_are_grey_to_dark_in_t1_and_brighter_than_cortex_in_t2_and_flair(head):
    options = {"skull_strip": 0.0, "pathology": 10.0, "deform": 0.3, "sources": (), "targets": ("T1", "T2", "FLAIR")}
    ratios = []
    for seed in range(6):
        result = run(head, seed, **options)
        full = torch.from_numpy(ndimage.binary_erosion(np.isin(result.labels, [CLASS["oedema"], CLASS["lesion"]])))
        white, cortex = (result.labels == CLASS[name] for name in ("white matter", "cortex"))
        for name, image in result.targets.items():
            lesion, grey = (image[where].median() / image[white].median() for where in (full, cortex))
            ratios.append((name, lesion.item(), grey.item()))
    for name in ("T2", "FLAIR"):
        lesions, cortex = zip(*[values for key, *values in ratios if key == name], strict=True)
        assert np.median(lesions) > 1.1 * np.median(cortex)
    lesions = [lesion for key, lesion, _ in ratios if key == "T1"]
    assert 0.4 < np.median(lesions) < 0.95


def test_tumours_keep_the_texture_of_tissue_not_the_severity_of_their_oedema(head):
    labels = head.labels.clone()
    level = torch.full_like(labels, LEVELS // 2)
    mass = glioma(labels, level, head.white_matter, torch.zeros(3, dtype=torch.long), torch.Generator().manual_seed(3))
    assert mass is not None
    assert (level[labels == CLASS["oedema"]] != LEVELS // 2).any()
    for name in ("tumour", "enhancing tumour", "cavity"):
        assert (level[labels == CLASS[name]] == LEVELS // 2).all()


def test_the_brightest_signal_is_the_percentile_of_a_head_with_texture():
    generator = torch.Generator().manual_seed(0)
    counts, values = torch.tensor([500_000, 30_000, 6_000]), torch.tensor([0.0, 0.4, 0.9])
    texture = torch.linspace(-TEXTURE_RANGE, TEXTURE_RANGE, LEVELS)
    table = values[:, None] * torch.exp(0.05 * texture)
    image = values.repeat_interleave(counts)
    image = image * torch.exp(0.05 * torch.randn(len(image), generator=generator))
    expected = np.percentile(image, 99.5)
    assert _brightest_signal(counts.double(), table) == pytest.approx(expected, rel=0.01)
    assert _brightest(image) == pytest.approx(expected, rel=1e-4)


def test_a_head_is_counted_with_the_pathology_of_its_crop(head):
    crop = torch.full((10, 10, 10), CLASS["white matter"])
    crop[:4] = CLASS["oedema"]
    counts = _count_classes(head, False, crop)
    assert counts[CLASS["oedema"]] == 400
    for name in ("white matter", "air"):
        assert counts[CLASS[name]] == pytest.approx((head.labels == CLASS[name]).sum().item(), rel=0.05)


def test_targets_are_scaled_as_if_the_head_were_healthy(head):
    """White matter of FLAIR keeps its level, and oedema is brighter than the brightest healthy tissue."""
    options = {"skull_strip": 1.0, "deform": 0.0, "sources": (), "targets": ("FLAIR",)}
    levels, oedema = {0.0: [], 10.0: []}, []
    for pathology, found in levels.items():
        for seed in range(5):
            result = run(head, seed, pathology=pathology, **options)
            image, crop = result.targets["FLAIR"], result.brain_mask
            top = result.target_headroom["FLAIR"] * _brightest((image * crop)[::2, ::2, ::2])
            found.append(image[(result.labels == CLASS["white matter"]) & crop].median().item() / top)
            full = ndimage.binary_erosion((result.labels == CLASS["oedema"]).numpy())
            oedema.append(np.percentile(image.numpy()[full], 90) / top if full.sum() > 200 else 0)
    assert np.median(levels[10.0]) == pytest.approx(np.median(levels[0.0]), abs=0.06)
    assert max(oedema) > 1.1


def test_t1ce_of_the_same_session_is_the_source_t1_but_for_what_takes_up_contrast_agent(head):
    """Far from vessels and lesions, and clean as targets are, it follows the source's protocol, whatever that is."""
    clean = {"random_contrast": 0, "artefacts": 0, "misregistration": 0, "pathology": 0, "skull_strip": 1}
    for seed in range(8):
        case = run(head, seed, sources=["T1"], targets=["T1ce"], **clean)
        before, after = case.protocol["sources"]["T1"], case.protocol["targets"]["T1ce"]
        if not case.protocol["same_session"]:
            assert after["sequence"] == "mprage" and after["flip"] == 9.0
            continue
        assert after.pop("dose") == 1.0
        assert after.items() <= before.items()  # those of the source name its artefacts, too
        white = (case.labels == CLASS["white matter"]) & case.brain_mask
        ratio = (case.targets["T1ce"] / case.sources["T1"])[white]
        assert ratio.median() == pytest.approx(1, abs=0.03)


def test_t1ce_of_the_same_session_has_the_gamma_of_the_source_t1(head, monkeypatch):
    made = []
    for drawn in ({}, {"gamma": 0.7}):
        monkeypatch.setattr(simulator, "acquire", lambda image, *_, drawn=drawn, **__: (image, drawn))
        cases = (run(head, seed, sources=["T1"], targets=["T1", "T1ce"], random_contrast=0) for seed in range(9))
        made.append(next(case for case in cases if case.protocol["same_session"]))
    plain, curved = made
    torch.testing.assert_close(curved.targets["T1ce"], plain.targets["T1ce"] ** 0.7, rtol=1e-4, atol=1e-6)
    assert torch.equal(curved.targets["T1"], plain.targets["T1"])
    assert curved.target_headroom["T1ce"] == pytest.approx(plain.target_headroom["T1ce"] ** 0.7)


def test_blur_along_matrices_agrees_with_scipy():
    volume = torch.rand(24, 20, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    blurred = apply_matrices(volume, [gaussian_matrix(n, 1.1) for n in volume.shape])
    expected = ndimage.gaussian_filter(volume.numpy(), 1.1, truncate=8)
    inner = (slice(6, -6),) * 3
    np.testing.assert_allclose(blurred[inner], expected[inner], atol=1e-4)


@pytest.mark.parametrize("cubic", [False, True])
def test_thick_slices_keep_linear_ramps_and_lose_fine_detail(cubic):
    down = slice_matrix(96, 4.0, 4.4, 0.7)
    up = interpolation_matrix(96, len(down), 4.4, 0.7, cubic=cubic)
    ramp = torch.arange(96.0)
    torch.testing.assert_close((up @ (down @ ramp))[12:-12], ramp[12:-12], atol=1e-2, rtol=0)
    stripes = 1.0 * (torch.arange(96) % 2)
    assert (up @ (down @ stripes))[12:-12].std() < 0.02


def test_motion_of_one_constant_shift_translates_the_image():
    real, imaginary = motion_matrices(32, torch.full((32,), 3.0))
    signal = torch.zeros(32)
    signal[10:14] = 1
    shifted = torch.hypot(real @ signal, imaginary @ signal)
    torch.testing.assert_close(shifted, signal.roll(3), atol=0.03, rtol=0)
    assert math.isclose(shifted.sum().item(), signal.sum().item(), rel_tol=0.05)


def test_the_preview_writes_a_sheet(tmp_path, monkeypatch):
    monkeypatch.setattr("training.simulation.preview.mni_anatomy", lambda: procedural_head((96, 96, 96)))
    main(["--out", str(tmp_path / "sheet.png"), "--cases", "1"])
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
