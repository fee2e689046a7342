import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.metrics import structural_similarity

from MissingModalitySynthLib.errors import GeometryError, InputError
from MissingModalitySynthLib.intensity import head_mask
from MissingModalitySynthLib.scene.comparison import dice_of, metrics_of
from MissingModalitySynthLib.scene.difference import absolute_difference, on_one_grid, top_of_scale
from Testing.scene.conftest import OBLIQUE, head, ijk_to_ras
from Testing.scene.segmenting import add_segmentation

SIZE = (40, 48, 36)
BOX = (slice(12, 28), slice(16, 32), slice(10, 26))


@pytest.fixture
def segment(application):
    """Function: name, masks by segment name, where they lie -> segmentation."""
    return partial(add_segmentation, application)


def box(shift=0):
    mask = np.zeros(SIZE, bool)
    mask[BOX[0].start + shift : BOX[0].stop + shift, BOX[1], BOX[2]] = True
    return mask


def test_a_copy_in_other_units_is_perfect(add_scan):
    scores = metrics_of(add_scan("synthetic", 3 * head(SIZE) + 50), add_scan("T2", head(SIZE)))
    assert scores.psnr > 60
    assert scores.nmse == pytest.approx(0, abs=1e-5)
    assert scores.ssim == pytest.approx(1, abs=1e-4)
    assert scores.dice == {}
    assert scores.mean_dice is None


def test_scores_inside_the_head_agree_with_their_definitions(add_scan):
    target = head(SIZE, seed=1)
    mask = head_mask(target)
    prediction = (target + np.random.default_rng(0).normal(0, 60, SIZE) * mask).astype(np.float32)
    scores = metrics_of(add_scan("synthetic", prediction), add_scan("T2", target))
    low, high = target.min(), np.percentile(target, 99.5)
    y = np.clip((target - low) / (high - low), 0, 1) * mask
    gain, offset = np.polyfit(prediction[mask], y[mask], 1)
    x = np.clip(gain * prediction + offset, 0, 1) * mask
    error = np.mean((x - y)[mask] ** 2)
    assert scores.psnr == pytest.approx(-10 * np.log10(error), abs=0.3)
    assert scores.nmse == pytest.approx(np.sum((x - y) ** 2) / np.sum(y**2), rel=0.08)
    _, similarity = structural_similarity(
        x, y, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert scores.ssim == pytest.approx(similarity[mask].mean(), abs=0.02)


def test_an_acquired_volume_on_another_grid_and_under_another_rigid_transform_is_brought_into_place(
    add_scan, add_transform
):
    target = head((60, 64, 56), seed=1)
    place = {"spacing": (1.0, 1.1, 1.2), "origin": (-30.0, -35.0, -33.0), "directions": np.eye(3)}
    synthetic = add_scan("synthetic", target, **place)
    moved = np.eye(4)
    moved[:3, :3] = OBLIQUE
    moved[:3, 3] = 12, -7, 3
    transform = add_transform("moved", moved)
    grid = sitk.GetImageFromArray(np.ascontiguousarray(target.T))
    grid.SetSpacing(place["spacing"])
    finer = sitk.Resample(grid, (72, 70, 64), sitk.Transform(), sitk.sitkLinear, (0, 0, 0), (0.85, 1.0, 1.05))
    acquired = add_scan("T2", sitk.GetArrayFromImage(finer).T.copy(), **{**place, "spacing": (0.85, 1.0, 1.05)})
    synthetic.SetAndObserveTransformNodeID(transform.GetID())
    acquired.SetAndObserveTransformNodeID(transform.GetID())
    assert metrics_of(synthetic, acquired).psnr > 25
    acquired.SetAndObserveTransformNodeID(None)  # the two are apart now
    assert metrics_of(synthetic, acquired).psnr < 15
    to_world = moved @ ijk_to_ras(acquired)
    spacing = np.linalg.norm(to_world[:3, :3], axis=0)
    acquired.SetOrigin(to_world[:3, 3])  # moved by its grid instead of by a transform
    acquired.SetIJKToRASDirections(*(to_world[:3, :3] / spacing).ravel())
    assert metrics_of(synthetic, acquired).psnr > 25


def test_volumes_apart_or_sheared_are_refused_by_name(add_scan, add_transform):
    synthetic, acquired = add_scan("synthetic", head(SIZE)), add_scan("T2", head(SIZE), origin=(300.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match="'T2' and the reference 'synthetic' share only 0 %"):
        metrics_of(synthetic, acquired)
    acquired.SetAndObserveTransformNodeID(add_transform("sheared", np.eye(4) + 0.3 * np.eye(4, k=1)).GetID())
    with pytest.raises(GeometryError, match="'T2' and 'synthetic' differ by more than a rigid"):
        metrics_of(synthetic, acquired)


def test_dice_of_shifted_boxes_is_their_overlap_for_segments_of_one_name(add_scan, segment):
    volume = add_scan("T2", head(SIZE))
    first = segment("first", {"lesion": box(), "edema": box(), "only here": box()})
    second = segment("second", {"edema": box(), "lesion": box(4), "only there": box()})
    scores = metrics_of(volume, volume, (first, second))
    assert scores.dice == {"lesion": pytest.approx(12 / 16), "edema": 1.0}
    assert scores.mean_dice == pytest.approx((12 / 16 + 1) / 2)


@pytest.mark.parametrize("linear", [True, False])
def test_dice_is_taken_where_transforms_put_segmentations_and_volume(add_scan, segment, add_transform, linear):
    volume = add_scan("T2", head(SIZE))
    first, second = segment("first", {"lesion": box()}), segment("second", {"lesion": box()})
    shift = np.eye(4)
    shift[:3, 3] = 4 * np.array(OBLIQUE)[:, 0]  # along the first image axis
    transform = add_transform("moved", shift if linear else None)
    for node in (volume, first, second):
        node.SetAndObserveTransformNodeID(transform.GetID())
    assert dice_of(first, second, volume)["lesion"] == 1
    if linear:
        second.SetAndObserveTransformNodeID(None)
        assert dice_of(first, second, volume)["lesion"] == pytest.approx(12 / 16)
        first.SetAndObserveTransformNodeID(None)
        assert dice_of(first, second, volume)["lesion"] == pytest.approx(1)


def test_segmentations_on_other_grids_are_compared_on_that_of_the_volume(add_scan, segment):
    volume = add_scan("T2", head(SIZE))
    fine = segment(
        "fine",
        {"lesion": box().repeat(2, axis=0)},
        spacing=(0.5, 1.25, 1.5),
        origin=tuple(np.array((-9.0, 11.0, -12.0)) - 0.25 * np.array(OBLIQUE)[:, 0]),
    )
    assert dice_of(fine, segment("same", {"lesion": box()}), volume)["lesion"] == pytest.approx(1, abs=0.04)


def test_an_empty_segment_counts_in_no_mean(add_scan, segment):
    volume = add_scan("T2", head(SIZE))
    outside = np.zeros(SIZE, bool)
    outside[0, 0, 0] = True
    first = segment("first", {"lesion": box(), "gone": outside})
    second = segment("second", {"lesion": box(), "gone": outside})
    for node in (first, second):
        segments = node.GetSegmentation()
        gone = segments.GetSegment(segments.GetSegmentIdBySegmentName("gone"))
        gone.GetRepresentation("Binary labelmap").GetPointData().GetScalars().Fill(0)
    scores = metrics_of(volume, volume, (first, second))
    assert np.isnan(scores.dice["gone"])
    assert scores.mean_dice == 1


def test_segmentations_without_a_common_name_are_refused(add_scan, segment):
    first, second = segment("first", {"lesion": box()}), segment("second", {"tumour": box()})
    with pytest.raises(InputError, match="'first' and 'second' have no segment of the same name"):
        dice_of(first, second, add_scan("T2", head(SIZE)))


def test_the_difference_is_percent_of_the_range_inside_the_head():
    target = head(SIZE, seed=1)
    prediction = 2.5 * target
    wrong = (slice(18, 22), slice(22, 26), slice(16, 20))
    prediction[wrong] -= 2.5 * 200
    difference = absolute_difference(prediction, target)
    span = np.percentile(target, 99.5) - np.percentile(target, 0.5)
    assert difference[wrong].mean() == pytest.approx(100 * 200 / span, rel=0.15)
    assert np.median(difference[target > 0]) < 2
    assert difference[~head_mask(target)].max() == 0
    assert 0 <= difference.min() <= difference.max() <= 100


@pytest.mark.parametrize(("largest", "top"), [(0, 1), (0.4, 1), (3, 5), (14, 20), (20, 20), (77, 100)])
def test_the_scale_ends_at_a_round_figure(largest, top):
    assert top_of_scale(np.full((8, 8, 8), largest, np.float32)) == top


def test_volumes_on_one_grid_are_not_copied(add_scan):
    first, second = add_scan("synthetic", head(SIZE)), add_scan("T2", head(SIZE, seed=1))
    arrays = on_one_grid(first, second)
    assert (arrays[1] == head(SIZE, seed=1)).all()
    assert not any(array.flags.owndata for array in arrays)


def test_comparing_loads_no_torch():
    program = """
import json, sys
import numpy as np
from MissingModalitySynthLib.metrics import compare
from MissingModalitySynthLib.scene import compare as view, comparison, difference, marks, overlays, windows
array = np.random.default_rng(0).random((20, 20, 20)).astype("f4")
compare(array, array + 0.1 * np.roll(array, 1), np.ones(array.shape, bool))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "monai"} & set(json.loads(result.stdout))
