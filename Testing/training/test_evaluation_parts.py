"""What an evaluation is made of: protocols, anchors, corruptions, tables."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from MissingModalitySynthLib.canonical import resample_to
from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.intensity import head_mask
from MissingModalitySynthLib.metrics import compare
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.translators import build_translator
from MissingModalitySynthLib.volume import Geometry, Volume
from training.data.readers import find_subjects
from training.evaluation import anchors, robustness, tables
from training.evaluation.cases import Case, read_case, simulated_cases, tissues_of_t1
from training.evaluation.protocols import calibrate, load_judge, paper_comparable, score
from training.segmenter import CLASSES

WHITE, LESION = CLASSES.index("white matter"), CLASSES.index("lesion")


@pytest.fixture
def pair(scan):
    """A T1, a T2 of the same head, and its mask."""
    t1, t2 = scan("T1"), scan("T2")
    return t1, t2, head_mask(t1.array) & head_mask(t2.array)


def test_the_crop_of_the_head_is_scored_as_the_judge_of_the_real_data_does(real_data, pair):
    judge = load_judge(real_data / "score.py")
    t1, t2, mask = pair
    noisy = t2.array + np.random.default_rng(0).normal(0, 50, mask.shape).astype(np.float32)
    for prediction in (t1.array, noisy):
        ours, theirs = compare(prediction, t2.array, mask), judge(prediction, t2.array, mask)
        assert set(ours) == set(theirs)
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=1e-4), key


def test_the_paper_s_protocol_is_scikit_image_s_on_a_box_of_192_by_192_by_144_mm(pair):
    t1, t2, mask = pair
    shape = (77, 77, 58)  # 192, 192, 144 mm in voxels of 2.5 mm
    first = [
        (where[0] + where[-1] + 1 - size) // 2
        for size, where in zip(shape, (np.flatnonzero(mask.any(axis=a)) for a in ((1, 2), (0, 2), (0, 1))), strict=True)
    ]
    boxes = []
    for array in (t1.array, t2.array, mask):
        box = np.zeros(shape, np.float64)
        box[tuple(slice(-f, n - f) for f, n in zip(first, array.shape, strict=True))] = array
        boxes.append(box)
    source, target, inside = boxes[0], boxes[1], boxes[2] > 0
    low, high = np.percentile(target, [0.5, 99.5])
    truth = np.clip((target - low) / (high - low), 0, 1) * inside
    made = np.clip(np.polyval(np.polyfit(source[inside], truth[inside], 1), source), 0, 1) * inside
    found = paper_comparable(t1.array, t2, mask)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = {
        "paper_psnr": peak_signal_noise_ratio(truth, made, data_range=1),
        "paper_nmse": np.sum((truth - made) ** 2) / np.sum(truth**2),
        "paper_ssim": structural_similarity(truth, made, data_range=1, full=True, **gaussian)[1].mean(),
        "paper_ssim_uniform": structural_similarity(truth, made, data_range=1, full=True, win_size=7)[1].mean(),
    }
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_contrast_of_a_lesion_is_its_mean_minus_that_of_white_matter():
    shape = (24, 24, 24)
    mask = np.zeros(shape, bool)
    mask[4:20, 4:20, 4:20] = True
    lesion = np.zeros(shape, bool)
    lesion[8:14, 8:14, 8:14] = True  # more than the brightest half per cent, which is clipped
    tissues = np.where(lesion, LESION, np.where(mask, WHITE, 0))
    acquired = Volume(np.where(lesion, 1000, np.where(mask, 400, 0)).astype(np.float32), Geometry(shape))
    case = Case("a", {}, {"FLAIR": acquired}, mask, tissues, lesion)
    blind = np.where(mask, 1.0, 0.0).astype(np.float32)
    found = score(blind, acquired, case)
    assert found["lesion_contrast_acquired"] == pytest.approx(0.6)
    assert found["lesion_contrast"] == pytest.approx(0, abs=1e-6)
    level = 0.4 + 0.6 * lesion.sum() / mask.sum()
    assert found["mae_lesion"] == pytest.approx(1 - level, rel=1e-4)
    assert found["mae_white_matter"] == pytest.approx(level - 0.4, rel=1e-4)


def test_a_deviation_is_compared_with_the_error_on_the_scale_of_the_target(pair):
    _, t2, mask = pair
    error = np.random.default_rng(1).normal(0, 20, mask.shape)
    made = (3 * (t2.array + error)).astype(np.float32)  # in units of its own
    found = calibrate(made, np.full(mask.shape, 60, np.float32), t2.array, mask)
    assert found["ence"] < 0.15


def test_the_oracle_recovers_any_function_of_the_source_and_beats_its_affine_copy(pair):
    t1, t2, mask = pair
    steps = np.floor(t1.array / 100).astype(np.float32)
    assert np.allclose(anchors.voxelwise_oracle(steps, np.sin(steps), mask)[mask], np.sin(steps)[mask], atol=1e-3)
    oracle = anchors.voxelwise_oracle(t1.array, t2.array, mask)
    assert compare(oracle, t2.array, mask)["psnr"] > compare(t1.array, t2.array, mask)["psnr"]
    assert not oracle[~mask].any()


def test_the_tissue_mean_is_constant_within_a_tissue():
    target = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    tissues = (target >= 32).astype(int)
    assert np.unique(anchors.tissue_mean(target, tissues, np.ones(target.shape, bool))).tolist() == [15.5, 47.5]


def test_a_first_stage_that_loses_nothing_returns_the_acquired_target(tiny_package, scan):
    package = load_package(tiny_package)
    translator = build_translator("regression", package.configuration("regression"), package.weights("regression"))
    scanned = scan("T2", Geometry((48, 48, 48), (1.5, 1.5, 1.5), (-36.0, -36.0, -36.0)))
    decoded = anchors.first_stage_ceiling(translator, scanned, (1.5, 1.5, 1.5))
    bright = np.percentile(scanned.array, 99)
    inside = (scanned.array > 0.1 * bright) & (scanned.array < 0.9 * bright)
    assert np.abs(decoded - scanned.array)[inside].max() < 0.01 * bright


def test_tissues_of_a_t1_are_ordered_from_fluid_to_white_matter():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (20, 20, 20))
    t1 = np.array([0, 200, 600, 900])[truth] + rng.normal(0, 20, truth.shape)
    assert np.mean(tissues_of_t1(t1, truth > 0) == truth) > 0.99


def test_axes_can_be_permuted_and_brought_back_without_loss(scan):
    volume = scan("T1", Geometry((20, 24, 28), (2.5, 2.0, 2.2), (-25, -24, -30), np.diag((1, -1, 1))))
    permuted = robustness.permute(volume)
    assert permuted.geometry.size == (28, 20, 24)
    assert np.array_equal(resample_to(permuted, volume.geometry).array, volume.array)


def test_a_rotated_header_keeps_the_centre_and_the_voxels_apart(scan):
    grid = scan("T1").geometry
    turned = robustness.rotated(grid)
    centre = (np.asarray(grid.size) - 1) / 2
    assert np.allclose(turned.index_to_world(centre), grid.index_to_world(centre))
    cosine = np.trace(np.asarray(turned.direction) @ np.asarray(grid.direction).T)
    assert np.rad2deg(np.arccos((cosine - 1) / 2)) == pytest.approx(28.2, abs=0.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_blurred_along_their_axis_alone(axis):
    array = np.zeros((40, 40, 40), np.float32)
    array[20, 20, 20] = 1000
    thick = robustness.thick_slices(Volume(array, Geometry(array.shape)), axis)
    assert thick.geometry.size == array.shape
    widths = [np.count_nonzero(np.moveaxis(thick.array, a, 0)[:, 20, 20] > 5) for a in range(3)]
    assert widths[axis] >= 5
    assert [width for a, width in enumerate(widths) if a != axis] == [1, 1]


def test_noise_is_rician_and_leaves_a_stripped_background_alone():
    array = np.zeros((32, 32, 32), np.float32)
    array[4:28, 4:28, 4:28] = 1000
    noisy = robustness.noisy(Volume(array, Geometry(array.shape))).array
    inside = array > 0
    assert not noisy[~inside].any()
    assert noisy[inside].std() == pytest.approx(80, rel=0.05)
    assert np.mean(noisy[inside] ** 2) == pytest.approx(1000**2 + 2 * 80**2, rel=0.01)


def test_a_bias_field_is_smooth_and_keeps_the_background(scan):
    volume = scan("T1")
    ratio = robustness.biased(volume).array[8:16, 8:20, 8:16] / volume.array[8:16, 8:20, 8:16]
    assert ratio.max() / ratio.min() > 1.1
    assert np.abs(np.diff(np.log(ratio), axis=0)).max() < 0.1


def test_a_subject_is_compared_where_all_its_contrasts_show_the_head(data_set, scan):
    folder = data_set({"a/a_t1.nii.gz": "T1", "a/a_t2.nii.gz": "T2", "a/a_seg.nii.gz": "segmentation"})
    case = read_case(find_subjects(folder, report=lambda _: None)[0])
    expected = head_mask(case.targets["T1"].array) & head_mask(case.targets["T2"].array)
    assert np.array_equal(case.mask, expected)
    assert case.lesion.sum() == 4 * 7 * 2
    assert np.all(case.tissues[case.lesion] == LESION)


def test_simulated_cases_are_the_same_every_time_and_no_training_s(data_set):
    configuration = {"modalities": ["T1", "T2"], "seed": 3}
    configuration["data"] = {"anatomies": "procedural", "shapes": [[32, 32, 32], [32, 40, 32]]}
    configuration["data"] |= {
        "random_contrast": 1.0,
        "skull_strip": 0.0,
        "pathology": 0.0,
        "artefacts": 0.0,
        "misregistration": 0.0,
    }
    first, second = (list(simulated_cases(configuration, 2)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.targets["T2"].array.shape == (32, 40, 32)
        assert np.array_equal(one.sources["T1"].array, other.sources["T1"].array)
    assert not np.array_equal(first[0].targets["T1"].array, first[1].targets["T1"].array)


def test_means_and_deviations_are_over_the_subjects_that_have_a_number():
    row = {"sources": "T1", "target": "T2", "method": "m", "steps": 2, "samples": 1}
    records = [row | {"subject": name, "psnr": value} for name, value in zip("abc", (20.0, 22.0, 24.0), strict=True)]
    records[0]["mae_lesion"] = 0.5
    records[1]["psnr"] = float("nan")
    (summary,) = tables.summarise(records)
    assert summary["n"] == 3
    assert summary["psnr"] == {"mean": 22.0, "sd": pytest.approx(np.std([20, 24], ddof=1)), "n": 2}
    assert summary["mae_lesion"] == {"mean": 0.5, "sd": None, "n": 1}


def test_the_paper_s_table_is_read_from_source_to_target():
    assert "| T2 | 25.4 / 0.085 / 0.908 | 29.2" in tables.paper_matrix(["T1", "T2"])
    assert "| T1ce | – |" in tables.paper_matrix(["PD", "T1ce"])


@pytest.mark.parametrize(
    ("content", "message"),
    [("x = 1\n", "no function scores"), ("def (:\n", "cannot be run"), (None, "cannot be run")],
)
def test_a_file_that_is_no_judge_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "judge.py").write_text(content)
    with pytest.raises(InputError, match=message):
        load_judge(tmp_path / "judge.py")


def test_the_segmenter_s_tissues_lie_on_the_subject_s_own_grid(scan):
    class Bright(torch.nn.Module):
        """White matter wherever the image is bright."""

        def forward(self, image):
            logits = torch.zeros(1, len(CLASSES), *image.shape[2:])
            logits[:, WHITE] = image[:, 0]
            return logits

    from training.evaluation.cases import segment_native

    volume = scan("T1")
    mask = head_mask(volume.array)
    labels = segment_native(Bright(), volume, mask)
    assert labels.shape == mask.shape
    assert set(np.unique(labels)) == {0, WHITE}
    assert np.all(labels[(volume.array > 500) & mask] == WHITE)
