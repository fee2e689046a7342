"""Artefacts one by one, each against its definition, a closed form or scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from training.simulation import procedural_head, simulate
from training.simulation.artefacts import (
    THICK,
    acquire,
    bias_field,
    motion_matrices,
    power,
    random_shifts,
    rician,
    slice_matrix,
)
from training.simulation.deformation import rigid_motion, rotation_matrix, sampling_positions
from training.simulation.randomness import slight_blur, smooth_sum
from training.simulation.simulator import SHIFT, TURN, sample_nearest, sample_signals


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def head():
    return procedural_head((104, 116, 104), seed=0)


def test_the_bias_field_is_positive_and_its_logarithm_has_the_wanted_spread():
    fields = torch.stack([bias_field((48, 48, 48), 0.2, 16, seeded(seed), "cpu") for seed in range(12)])
    assert fields.min() > 0
    logarithm = fields.log()
    assert logarithm.std().item() == pytest.approx(0.2, rel=0.15)
    assert logarithm.mean().abs() < 0.05


def test_the_bias_field_has_no_detail_finer_than_its_spacing():
    spacing = 16
    logarithm = bias_field((96, 48, 48), 0.2, spacing, seeded(), "cpu").log().numpy()
    power_spectrum = np.abs(np.fft.rfft(logarithm * np.hanning(96)[:, None, None], axis=0)) ** 2
    frequency = np.fft.rfftfreq(96)
    assert power_spectrum[frequency > 1.5 / spacing].sum() < 1e-3 * power_spectrum.sum()


@pytest.mark.parametrize("seed", range(6))
def test_an_acquisition_of_twice_the_signal_is_twice_the_acquisition(seed):
    image = torch.rand(24, 20, 28, generator=seeded(99)) + 0.2
    once, drawn = acquire(image, seeded(seed), seeded(seed))
    twice, _ = acquire(2 * image, seeded(seed), seeded(seed))
    scale = 1 if "gamma" in drawn else 2  # gamma is applied to intensities relative to the brightest
    torch.testing.assert_close(twice, scale * once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("signal", [0.0, 0.05, 0.3])
def test_noise_has_the_distribution_of_rice(signal):
    sigma = 0.1
    noisy = rician(torch.full((40, 40, 40), signal), sigma, seeded()).flatten().numpy()
    distribution = stats.rice(signal / sigma, scale=sigma)
    assert noisy.mean() == pytest.approx(distribution.mean(), rel=0.01)
    assert (noisy**2).mean() == pytest.approx(signal**2 + 2 * sigma**2, rel=0.01)
    assert stats.kstest(noisy[:5000], distribution.cdf).pvalue > 0.01


def test_noise_is_independent_from_voxel_to_voxel():
    noise = rician(torch.ones(40, 40, 40), 0.05, seeded()).numpy() - 1
    for axis in range(3):
        neighbours = np.moveaxis(noise, axis, 0)
        correlation = np.corrcoef(neighbours[1:].ravel(), neighbours[:-1].ravel())[0, 1]
        assert abs(correlation) < 0.02


@pytest.mark.parametrize("gamma", [0.75, 1.0, 1.3])
def test_gamma_is_a_straight_line_in_logarithms_that_keeps_air_and_the_peak(gamma):
    intensities = torch.linspace(0, 4, 101)
    changed = power(intensities, gamma, 4.0)
    assert changed[0] == 0
    assert changed[-1].item() == pytest.approx(1, abs=1e-5)
    slope = np.polyfit(np.log(intensities[1:].numpy()), np.log(changed[1:].numpy()), 1)[0]
    assert slope == pytest.approx(gamma, rel=1e-4)


@pytest.mark.parametrize("thickness", [1.0, 2.5, 4.0, 7.0])
@pytest.mark.parametrize("box", [False, True])
def test_slices_of_a_ramp_hold_the_positions_of_their_centres(thickness, box):
    slices = slice_matrix(120, thickness, 1.1 * thickness, 0.3, box=box) @ torch.arange(120.0)
    centres = 0.3 + (torch.arange(len(slices)) + 0.5) * 1.1 * thickness - 0.5
    inner = (centres > 2.5 * thickness) & (centres < 119 - 2.5 * thickness)
    # voxels at the ends of a box count at their centres, and a Gaussian of 1 voxel is sampled coarsely
    tolerance = 0.07 if box or thickness < 2 else 1e-3
    torch.testing.assert_close(slices[inner], centres[inner], atol=tolerance, rtol=0)


@pytest.mark.parametrize("thickness", [2.0, 4.5, 7.0])
def test_the_response_of_gaussian_slices_to_a_thin_plate_has_their_thickness_as_half_width(thickness):
    plate = torch.zeros(1001)
    plate[500] = 1
    response = slice_matrix(1001, thickness, 0.05) @ plate  # slices so dense that they show the profile
    offset = (torch.arange(len(response)) + 0.5) * 0.05 - 0.5 - 500
    above_half = offset[response > response.max() / 2]
    assert (above_half.max() - above_half.min()).item() == pytest.approx(thickness, abs=0.11)
    sigma = thickness / math.sqrt(8 * math.log(2))
    expected = torch.exp(-0.5 * (offset / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    torch.testing.assert_close(response, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("thickness", [1, 3, 5, 7])
def test_box_slices_are_means_over_their_voxels(thickness):
    signal = torch.rand(7 * thickness, generator=seeded())
    slices = slice_matrix(len(signal), thickness, thickness, box=True) @ signal
    torch.testing.assert_close(slices, signal.view(7, thickness).mean(1))


def test_a_thick_slice_across_a_border_mixes_the_signals_by_their_shares():
    signal = torch.where(torch.arange(40) < 21, 0.2, 1.0)  # the slice of voxels 18 to 23 is half of each
    slices = slice_matrix(40, 6, 6, box=True) @ signal
    assert slices[3].item() == pytest.approx(0.6)
    assert slices[2].item() == pytest.approx(0.2)


def test_voxels_between_tissues_mix_their_signals():
    index = torch.zeros(6, 6, 6, dtype=torch.int16)
    index[3:] = 1
    tables = torch.tensor([[0.2, 1.0], [0.6, 0.0]])  # two tissues, two contrasts
    positions = torch.full((1, 1, 5, 3), 2.0)
    positions[..., 0] = torch.tensor([2.0, 2.25, 2.5, 2.75, 3.0])
    first, second = sample_signals(index, tables, positions)
    torch.testing.assert_close(first.flatten(), torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6]))
    torch.testing.assert_close(second.flatten(), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_sampled_signals_and_labels_agree_with_scipy():
    index = torch.randint(0, 50, (14, 12, 16), generator=seeded(), dtype=torch.int16)
    tables = torch.rand(50, 3, generator=seeded(1))
    positions = torch.rand(6, 7, 8, 3, generator=seeded(2)) * torch.tensor([12.9, 10.9, 14.9])
    points = positions.numpy().reshape(-1, 3).T
    for contrast, image in enumerate(sample_signals(index, tables, positions)):
        looked_up = tables[:, contrast].numpy()[index.numpy()]
        expected = ndimage.map_coordinates(looked_up, points, order=1)
        np.testing.assert_allclose(image.numpy().ravel(), expected, atol=1e-5)
    nearest = ndimage.map_coordinates(index.numpy(), points, order=0)
    np.testing.assert_array_equal(sample_nearest(index, positions).numpy().ravel(), nearest)


def test_motion_takes_each_line_of_k_space_from_the_image_at_its_own_place():
    size = 24
    shifts = torch.randint(-3, 4, (size,), generator=seeded()).float()
    signal = np.random.default_rng(0).random(size)
    lines = [np.fft.fft(np.roll(signal, int(shift)))[k] for k, shift in enumerate(shifts)]
    expected = np.fft.ifft(lines)
    real, imaginary = (matrix.numpy() @ signal for matrix in motion_matrices(size, shifts))
    np.testing.assert_allclose(real, expected.real, atol=1e-5)
    np.testing.assert_allclose(imaginary, expected.imag, atol=1e-5)


@pytest.mark.parametrize("period", [4, 8])
def test_periodic_motion_makes_ghosts_a_period_of_the_field_of_view_apart(period):
    size = 128
    shifts = 0.05 * torch.sin(2 * math.pi * torch.arange(size) / period)
    place = torch.arange(size)
    signal = torch.exp(-0.5 * ((place - 40) / 1.5) ** 2)
    real, imaginary = (matrix @ signal for matrix in motion_matrices(size, shifts))
    energy = (real - signal) ** 2 + imaginary**2
    apart = (place - 40).abs()
    ghosts = ((torch.minimum(apart, size - apart) - size // period).abs()) <= 6
    assert energy[ghosts].sum() > 0.95 * energy.sum() > 0


def test_motion_leaves_the_centre_of_k_space_at_rest_or_is_periodic():
    for seed in range(20):
        shifts = random_shifts(80, seeded(seed))
        assert shifts.abs().max() < 8
        assert (shifts[:3] == 0).all() or shifts.std() < 1.2


def test_no_artefacts_leave_an_even_image_as_it_is():
    image, drawn = acquire(torch.full((20, 24, 28), 0.7), seeded(), seeded(), strength=0)
    torch.testing.assert_close(image, torch.full((20, 24, 28), 0.7), atol=1e-5, rtol=0)
    assert drawn == {"bias": 0, "noise": 0}


def test_the_edge_of_what_is_cut_out_is_blurred_by_thick_slices_alone_and_has_no_noise_around():
    """A half space of one; deep inside it is what an acquisition of the half space itself gives, noise and all."""
    cut = torch.zeros(40, 12, 12, dtype=torch.bool)
    cut[:20] = True
    seen = {"sharp": 0, "blurred": 0}
    for seed in range(60):
        made, drawn = acquire(torch.ones(cut.shape), seeded(seed), seeded(seed), brain_mask=cut)
        if "motion_axis" in drawn:
            continue
        thick = drawn.get("slice_thickness", 0) > THICK
        if not thick:
            seen["sharp"] += 1
            assert torch.equal(made > 0, cut)
        elif drawn["slice_axis"] == 0:
            seen["blurred"] += 1
            assert made[20:22].mean() > 0.05
            assert made[36:].max() == 0
            direct, _ = acquire(cut.float(), seeded(seed), seeded(seed))
            torch.testing.assert_close(made[:6], direct[:6], atol=1e-3, rtol=0)
    assert min(seen.values()) > 3


def test_artefacts_are_drawn_as_often_and_as_strong_as_documented():
    image = torch.rand(60, 10, 10, generator=seeded())
    drawn = [acquire(image, seeded(seed), seeded(seed))[1] for seed in range(400)]
    share = {key: np.mean([key in one for one in drawn]) for key in ("motion_axis", "slice_thickness", "gamma")}
    assert share["motion_axis"] == pytest.approx(1 / 8, abs=0.06)
    assert share["slice_thickness"] == pytest.approx(1 / 2, abs=0.1)
    assert share["gamma"] == pytest.approx(0.3, abs=0.1)
    thicknesses = [one["slice_thickness"] for one in drawn if one.get("slice_axis") == 0]
    assert 1 <= min(thicknesses) < 2
    assert 6 < max(thicknesses) <= 7
    assert all(one["bias"] <= 0.3 and one["noise"] <= 0.045 for one in drawn)


def test_a_slight_blur_agrees_with_scipy():
    volume = torch.rand(12, 10, 14, generator=seeded())
    expected = ndimage.gaussian_filter(volume.numpy(), 0.36, truncate=2, radius=1, mode="nearest")
    np.testing.assert_allclose(slight_blur(volume, 0.36), expected, atol=1e-6)


def test_variances_of_summed_fields_add_up():
    terms = [(0.6, 3.0), (0.8, 5.0)]
    fields = torch.stack([smooth_sum(seeded(seed), (40, 40, 40), terms, "cpu") for seed in range(6)])
    assert fields.var().item() == pytest.approx(1, rel=0.1)


def test_rotations_turn_by_their_angle_about_their_axis():
    matrix = rotation_matrix([0, 0, 30])
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3))
    assert (matrix @ torch.tensor([0, 0, 1.0])).tolist() == pytest.approx([0, 0, 1])
    assert math.degrees(math.acos(matrix[0, 0])) == pytest.approx(30, rel=1e-4)


def moved_by_scipy(image, turn, shift):
    """A head turned about the centre of the volume and shifted: every voxel looks back to where its tissue was."""
    middle = (np.array(image.shape) - 1) / 2
    back = np.asarray(turn, float).T
    return ndimage.affine_transform(image, back, middle - back @ (middle + shift), order=1, mode="nearest")


def test_rigid_motion_agrees_with_scipy():
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((20, 26, 23)).astype(np.float32), 1.5)
    turn, shift = rotation_matrix([4.0, -7.0, 11.0]), torch.tensor([0.7, -1.2, 0.4])
    moved = rigid_motion(torch.from_numpy(image), turn, shift)
    np.testing.assert_allclose(moved, moved_by_scipy(image, turn, shift.numpy()), atol=1e-5)


def test_sources_are_moved_by_less_than_a_millimetre_and_a_degree_and_targets_never(head):
    def run(misregistration, seed):
        options = {"artefacts": 0.0, "random_contrast": 0.0, "skull_strip": 0.0, "pathology": 0.0}
        sources = ("T1", "T2", "FLAIR")
        return simulate(
            head,
            shape=(64, 68, 72),
            generator=seeded(seed),
            sources=sources,
            targets=("T1",),
            misregistration=misregistration,
            **options,
        )

    moved = 0
    for seed in range(4):
        still, case = run(0.0, seed), run(1.0, seed)
        assert torch.equal(still.targets["T1"], case.targets["T1"])
        assert torch.equal(still.labels, case.labels)
        for name, protocol in case.protocol["sources"].items():
            assert "shift" not in still.protocol["sources"][name]
            if "shift" not in protocol:
                assert torch.equal(still.sources[name], case.sources[name])
                continue
            moved += 1
            shift, degrees = np.array(protocol["shift"]), np.array(protocol["turn"])
            assert 0 < np.linalg.norm(shift) <= SHIFT < 1
            assert 0 < np.linalg.norm(degrees) <= TURN
            expected = moved_by_scipy(still.sources[name].numpy(), rotation_matrix(degrees.tolist()), shift)
            inner = (slice(4, -4),) * 3
            difference = case.sources[name].numpy()[inner] - expected[inner]
            unmoved = case.sources[name].numpy()[inner] - still.sources[name].numpy()[inner]
            assert np.abs(difference).mean() < 0.1 * np.abs(unmoved).mean()
    assert 2 <= moved <= 10


def test_crops_lie_anywhere_in_the_brain(head):
    shape = (32, 32, 32)
    low, high = (np.array(corner) for corner in head.brain_box)
    middles = []
    for seed in range(30):
        positions = sampling_positions(head, shape, seeded(seed), torch.device("cpu"), deform=0.0).reshape(-1, 3)
        assert (positions.min(0).values.numpy() >= low - 1).all()
        assert (positions.max(0).values.numpy() <= high + 1).all()
        middles.append(positions.mean(0).numpy())
    reach = np.ptp(middles, axis=0)
    assert (reach > 0.7 * (high - low - shape)).all()


def test_a_crop_larger_than_the_head_holds_all_of_it(head):
    size = max(head.labels.shape) + 20
    case = simulate(head, shape=(size,) * 3, generator=seeded(), sources=(), targets=("T1",), skull_strip=0, deform=0.0,
                    pathology=0.0)  # fmt: skip
    assert int((case.labels > 0).sum()) == pytest.approx(int((head.labels > 0).sum()), rel=0.02)
    assert case.targets["T1"][0].max() == 0  # air around


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_repeats_itself_and_has_the_anatomy_of_the_cpu(head):
    options = {"shape": (48, 48, 48), "sources": ("T1",), "targets": ("T2",), "pathology": 0.0}
    first, again = (simulate(head, generator=seeded(), device="cuda", **options) for _ in range(2))
    assert torch.equal(first.sources["T1"], again.sources["T1"])
    assert torch.equal(first.targets["T2"], again.targets["T2"])
    cpu = simulate(head, generator=seeded(), **options)
    assert (first.brain_mask.cpu() == cpu.brain_mask).float().mean() > 0.999
