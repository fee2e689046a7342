"""Which segmentations are compared, and what is said of their overlap."""

from types import SimpleNamespace

import numpy as np
import pytest

from MissingModalitySynthLib.scene.compare_choices import comparison_of, follow_volumes, metrics_text
from MissingModalitySynthLib.scene.provenance import refer_to_segmented
from Testing.scene.segmenting import add_segmentation

SIZE = (20, 24, 18)


def voxels(count, start=0):
    mask = np.zeros(SIZE, np.uint8)
    mask.reshape(-1)[start : start + count] = 1
    return mask


@pytest.fixture
def segment(application):
    """Function: name, number of voxels by segment, the volume whose tissues they are -> segmentation."""

    def segment(name, volume=None, **counts):
        node = add_segmentation(application, name, {key: voxels(count) for key, count in counts.items()})
        if volume is not None:
            refer_to_segmented(node, volume)
        return node

    return segment


@pytest.fixture
def case(add_scan, segment):
    """A T1, a T2 and a FLAIR made of it, tissues of T1 and T2, and lesions that the user drew."""
    t1, t2, flair = (add_scan(name) for name in ("T1", "T2", "FLAIR"))
    tissues = {node.GetName(): segment(f"{node.GetName()} (tissues)", node, CSF=400) for node in (t1, t2)}
    return SimpleNamespace(t1=t1, t2=t2, flair=flair, tissues=tissues, lesions=segment("Lesions", CSF=30))


def choices(source, synthetic, acquired=None, segmentation=None, other=None):
    return SimpleNamespace(
        compareSource=source,
        compareSynthetic=synthetic,
        compareAcquired=acquired,
        segmentation=segmentation,
        otherSegmentation=other,
        compareRows="Axial",
    )


def followed(parameters):
    follow_volumes(parameters)
    return parameters.segmentation, parameters.otherSegmentation


def test_the_tissues_of_an_image_that_is_not_compared_any_more_are_let_go(case):
    parameters = choices(case.t1, case.flair, segmentation=case.tissues["T2"], other=case.tissues["T1"])
    assert followed(parameters) == (case.tissues["T1"], None)
    assert followed(choices(case.flair, case.flair, segmentation=case.tissues["T2"])) == (None, None)


def test_the_tissues_of_the_new_pair_are_chosen_where_both_were_segmented(case, segment):
    flair = segment("FLAIR (tissues)", case.flair, CSF=400)
    newer = segment("FLAIR (tissues)_1", case.flair, CSF=400)
    parameters = choices(case.t1, case.flair, segmentation=case.tissues["T2"], other=case.tissues["T1"])
    assert followed(parameters) == (newer, case.tissues["T1"])
    with_acquired = choices(case.t1, case.flair, case.t2, newer, case.tissues["T1"])
    assert followed(with_acquired) == (newer, case.tissues["T2"])
    assert flair is not newer


def test_the_tissues_of_an_acquired_volume_go_with_it(case):
    parameters = choices(case.t1, case.flair, None, case.tissues["T2"], None)
    assert followed(parameters) == (None, None)


def test_what_the_user_drew_stays_whatever_is_compared(case, segment):
    parameters = choices(case.t1, case.flair, segmentation=case.tissues["T2"], other=case.lesions)
    assert followed(parameters) == (case.lesions, None)
    segment("FLAIR (tissues)", case.flair, CSF=400)
    assert followed(parameters) == (case.lesions, None)


def test_with_nothing_to_compare_nothing_is_chosen(case):
    assert followed(choices(None, None)) == (None, None)


def test_a_segmentation_is_not_compared_with_itself_or_with_none(case):
    tissues = case.tissues["T1"]
    for first, second in ((tissues, tissues), (None, tissues)):
        chosen = comparison_of(choices(case.t1, case.t2, None, first, second))
        assert chosen.other is None and not chosen.has_metrics
        assert metrics_text(chosen) == ""
    assert comparison_of(choices(case.t1, case.t2, None, None, tissues)).segmentations == ()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((40, 40), "1.000"),
        ((10, 20), "0.667"),
        ((2, 0), "only in the synthetic (2 voxels)"),
        ((0, 300), "only in the source (300 voxels)"),
        ((300, 9), "only in the synthetic (300 voxels)"),
        ((0, 0), "in neither"),
        ((5, 5), "too small to compare"),
    ],
)
def test_a_share_is_told_where_there_is_enough_of_both(case, segment, counts, expected):
    # Without a first segment there would be no voxels to make an empty one of.
    first = segment("first", case.t2, whole=400, lesion=max(counts[0], 1))
    second = segment("second", case.t1, whole=400, lesion=max(counts[1], 1))
    for node, count in ((first, counts[0]), (second, counts[1])):
        if count == 0:
            segments = node.GetSegmentation()
            empty = segments.GetSegment(segments.GetSegmentIdBySegmentName("lesion"))
            empty.GetRepresentation("Binary labelmap").GetPointData().GetScalars().Fill(0)
    text = metrics_text(comparison_of(choices(case.t1, case.t2, None, first, second)))
    assert f"Dice lesion&nbsp;&nbsp;</td><td>{expected}</td>" in text
    assert "Dice whole&nbsp;&nbsp;</td><td>1.000</td>" in text


def test_a_segmentation_of_the_users_is_called_by_its_name(case, segment):
    small = segment("a <b>", CSF=3)
    text = metrics_text(comparison_of(choices(case.t1, case.t2, None, case.lesions, small)))
    assert "only in &#x27;Lesions&#x27; (30 voxels)" in text
    text = metrics_text(comparison_of(choices(case.t1, case.t2, None, small, case.lesions)))
    assert "only in &#x27;Lesions&#x27; (30 voxels)" in text
