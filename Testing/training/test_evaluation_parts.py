"""What an evaluation is made of: protocols, anchors, corruptions, tables."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from MissingModalitySynthLib.canonical import resample_to
from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.intensity import head_mask
from MissingModalitySynthLib.metrics import compare
from MissingModalitySynthLib.model_package import load_package
from MissingModalitySynthLib.segmentation import CLASSES
from MissingModalitySynthLib.translators import build_translator
from MissingModalitySynthLib.volume import Geometry, Volume
from training.data.readers import find_subjects
from training.evaluation import anchors, robustness, tables
from training.evaluation.cases import Case, read_case, simulated_cases
from training.evaluation.lesions import find_lesions, lesion_scores
from training.evaluation.protocols import calibrate, load_judge, paper_comparable, score
from training.evaluation.run import Options
from training.examples import load_anatomies
from training.tissue_classes import tissues_of_t1

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


def test_each_lesion_is_compared_with_the_white_matter_around_it():
    i, j, k = np.indices((60, 30, 30))
    lesion = (abs(i - 14) < 3) & (abs(j - 14) < 3) & (abs(k - 14) < 3)
    other = (abs(i - 45) < 2) & (abs(j - 14) < 2) & (abs(k - 14) < 2)
    white = 0.3 + 0.2 * (i >= 30)  # what a receive field does
    acquired = white + 0.2 * lesion - 0.1 * other
    lesions = find_lesions(lesion | other, np.ones(lesion.shape, bool), (1.0, 1.0, 1.0))
    contrasts, sizes = lesions.contrasts(acquired)
    assert contrasts == pytest.approx([0.2, -0.1])
    assert sizes.tolist() == [125, 27]
    found = lesion_scores(lesions, white + 0.1 * lesion + 0.1 * other, acquired)
    assert found["lesion_contrast"] == pytest.approx(0.1)
    assert found["lesion_contrast_acquired"] == pytest.approx((125 * 0.2 - 27 * 0.1) / 152)
    assert (found["lesions_right"], found["lesions_clear"]) == (1, 2)


def test_partial_volume_at_the_rim_of_lesion_and_white_matter_is_no_reference():
    i, j, k = np.indices((30, 30, 30))
    radius = np.sqrt((i - 15) ** 2 + (j - 15) ** 2 + (k - 15) ** 2)
    lesion, white = radius < 3, radius < 9
    image = np.where(white, 0.5, 0.2)
    image[(radius < 4.2) | ((radius > 8.45) & white)] = 0.9  # rim and border
    contrasts, _ = find_lesions(lesion, white, (1.0, 1.0, 1.0)).contrasts(image)
    assert contrasts == pytest.approx([0.4])


def test_without_white_matter_near_there_is_no_contrast():
    lesion = np.zeros((12, 12, 12), bool)
    lesion[5:7, 5:7, 5:7] = True
    assert find_lesions(lesion, lesion, (1.0, 1.0, 1.0)) is None
    assert find_lesions(~lesion & lesion, ~lesion, (1.0, 1.0, 1.0)) is None


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
    scanned = Volume(t1.astype(np.float32), Geometry(t1.shape))
    assert np.mean(tissues_of_t1(scanned, truth > 0) == truth) > 0.99


def test_tissues_of_a_t1_are_told_under_a_receive_field_that_hides_their_order(scan):
    grid = Geometry((48, 56, 48), (2.0, 2.0, 2.0), (-47.0, -55.0, -47.0))
    i, j, k = np.indices(grid.size)
    mask = ((i - 23.5) / 21) ** 2 + ((j - 27.5) / 25) ** 2 + ((k - 23.5) / 21) ** 2 < 1
    truth = np.where((i // 4 + j // 4 + k // 4) % 3 == 0, 2, 3) * mask
    truth[20:28, 22:34, 20:28] = 1
    field = np.exp(0.5 * (j - 27.5) / 25)  # by the factor 2.7 from end to end; white is 1.3 times grey
    t1 = Volume((np.array([0, 300, 1000, 1300])[truth] * field).astype(np.float32), grid)
    assert np.mean(tissues_of_t1(t1, mask)[mask] == truth[mask]) > 0.97


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


def test_an_oblique_acquisition_holds_all_of_the_head_and_can_be_brought_back(scan):
    volume = scan("T1")
    oblique = robustness.around(volume.geometry)
    index = oblique.world_to_index(volume.geometry.corners)
    assert np.all(index > -1)
    assert np.all(index < oblique.size)
    back = resample_to(resample_to(volume, oblique), volume.geometry, 0.0)
    inside = volume.array > 300
    assert np.abs(back.array - volume.array)[inside].mean() < 0.02 * volume.array.max()


def test_a_tighter_mask_takes_two_millimetres_away_where_no_brain_is_known(scan):
    volume = scan("T1")  # voxels of 2.5 mm
    mask = head_mask(volume.array)
    found = {name: each for name, *each in robustness.corruptions(Case("a", {}, {}, mask), volume)}
    cut, _, scored = found["mask 2 mm tighter"]
    assert "skull-stripped" not in found
    assert cut.array[~scored].max() < 1e-4 * volume.array.max()
    assert np.array_equal(cut.array[scored], volume.array[scored])
    assert np.array_equal(scored, ndimage.binary_erosion(mask))


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


def test_simulated_cases_are_whole_heads_the_same_every_time_and_no_training_s():
    configuration = {"modalities": ["T1", "T2"], "seed": 3}
    configuration["data"] = {"anatomies": "procedural", "shapes": [[32, 32, 32]]}  # training's crops
    configuration["data"] |= {
        "random_contrast": 1.0,
        "skull_strip": 0.0,
        "pathology": 0.0,
        "artefacts": 0.0,
        "misregistration": 0.0,
    }
    whole = tuple(-(-size // 16) * 16 for size in load_anatomies("procedural")[0].labels.shape)
    first, second = (list(simulated_cases(configuration, 2)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.targets["T2"].array.shape == whole
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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "T1>T2 T1>FLAIR T2>T1 T2>FLAIR FLAIR>T1 FLAIR>T2 T1+T2>FLAIR"),
        ({"pairs": [(("T1",), "T1ce"), (("T2", "FLAIR"), "T1"), (("T1",), "T2")]}, "T2+FLAIR>T1 T1>T2"),
        ({"pairs": [(("T1",), "T2")], "many_to_one": True}, "T1>T2 T2+FLAIR>T1 T1+FLAIR>T2 T1+T2>FLAIR"),
    ],
)
def test_pairs_are_evaluated_as_asked_and_as_far_as_the_subject_has_them(options, expected):
    contrasts = ["T1", "T2", "FLAIR"]
    found = Options(**options).chosen(contrasts, contrasts)
    assert " ".join(f"{'+'.join(sources)}>{target}" for sources, target in found) == expected


def record(subject, sources, target, psnr, **more):
    return {"subject": subject, "sources": sources, "target": target, "method": "m", "psnr": psnr, "ssim": 0.5} | more


def test_every_pair_is_in_the_tables_and_the_main_ones_come_first():
    records = [record("a", *pair, 20.0) for pair in (("FLAIR", "T2"), ("T2", "T1"), ("T1 + FLAIR", "T2"), ("T1", "T2"))]
    for text in (tables.main_table(records), tables.subject_table(records, "m")):
        pairs = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()[2:]]
        assert pairs == ["T1 → T2", "T2 → T1", "FLAIR → T2", "T1 + FLAIR → T2"]


def test_uptake_is_judged_in_gliomas_where_there_are_some():
    records = [record("open-ms-07", "T1", "T1ce", 30.0), record("BraTS-GLI-00001-000", "T1", "T1ce", 20.0)]
    records.append(record("tcga-du-7294", "T1", "T1ce", 22.0))
    assert "| T1 → T1ce (gliomas) | 2 | – | – | 21.00 / 0.500 |" in tables.main_table(records)
    assert "| T1 → T1ce | 1 | – | – | 30.00 / 0.500 |" in tables.main_table(records[:1])


def test_several_sources_are_held_against_the_better_one_alone():
    values = {"a": (20.0, 22.0, 23.0), "b": (21.0, 19.0, 20.5)}
    records = [
        record(subject, sources, "FLAIR", value)
        for subject, found in values.items()
        for sources, value in zip(("T1", "T2", "T1 + T2"), found, strict=True)
    ]
    line = tables.several_sources(records, ["m"]).splitlines()[-1]
    assert line == "| T1 + T2 → FLAIR | m | 21.75 | 20.50 / 20.50 | +1.25 | -0.50 (b) |"
    assert tables.several_sources(records[:2], ["m"]) == ""


def test_every_lesion_that_misses_the_aim_is_named():
    lesion = {"mae_mask": 0.04, "lesion_contrast_acquired": 0.3}
    good = record("a", "T1", "FLAIR", 20.0, mae_lesion=0.05, lesion_contrast=0.1, **lesion)
    wrong = record("b", "T1", "FLAIR", 20.0, mae_lesion=0.05, lesion_contrast=-0.1, **lesion)
    large = record("c", "T1", "T1ce", 20.0, mae_lesion=0.08, lesion_contrast=-0.1, **lesion)  # any sign is fine
    assert tables.lesion_failures([good, wrong, large], ["m"]).splitlines() == [
        "- b, T1 → FLAIR, m: contrast -0.100, acquired +0.300",
        "- c, T1 → T1ce, m: error 2.0 times the head's",
    ]


def test_losses_by_corruption_are_means_over_subjects_of_each_pair():
    drops = [
        {"corruption": "noise", "subject": subject, "sources": "T1", "target": target, "drop": drop}
        for subject, target, drop in (("a", "T2", 1.0), ("b", "T2", 2.0), ("a", "FLAIR", 0.0))
    ]
    line = tables.robustness_table(drops).splitlines()[-1]
    assert line == "| noise | 2 | 1.50 | 0.00 | 1.00 | 2.00 |"


def test_numbers_that_json_cannot_hold_are_left_out_of_means():
    records = [record("a", "T1", "T2", None), record("b", "T1", "T2", 20.0, mae_lesion=0.0)]
    (summary,) = tables.summarise(records)
    assert summary["psnr"]["n"] == 1
    assert summary["mae_lesion"]["mean"] == 0


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
