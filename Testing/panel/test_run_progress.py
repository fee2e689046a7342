"""How far a run is, target by target."""

import pytest

from MissingModalitySynthLib.scene.run_progress import RunProgress, TargetProgress


def test_before_the_first_target_all_are_at_zero():
    progress = RunProgress(("T2", "FLAIR"))
    progress.update("prepare", 0.2, None, None)
    assert progress.by_target() == [TargetProgress("T2", 0, None), TargetProgress("FLAIR", 0, None)]


def test_two_targets_share_what_is_left_of_the_run():
    progress = RunProgress(("T2", "FLAIR"))
    progress.update("condition", 0.4, "T2", 6.0)
    progress.update("step 1 of 2", 0.55, "T2", 4.5)
    first, second = progress.by_target()
    assert (first.percent, second.percent) == (50, 0)
    assert first.seconds_left == pytest.approx(1.5)  # half of its share of 0.3, at 10 s for the whole run
    assert second.seconds_left == pytest.approx(4.5)


def test_a_target_is_done_when_the_next_one_begins():
    progress = RunProgress(("T2", "FLAIR", "PD"))
    progress.update("condition", 0.1, "T2", None)
    progress.update("condition", 0.5, "FLAIR", 5.0)
    assert [row.percent for row in progress.by_target()] == [100, 0, 0]
    assert progress.by_target()[-1].seconds_left == pytest.approx(5.0)


def test_everything_is_done_at_the_end():
    progress = RunProgress(("T2", "FLAIR"))
    progress.update("decode", 0.8, "FLAIR", 1.0)
    progress.update("native grid", 1.0, None, 0.0)
    assert [row.percent for row in progress.by_target()] == [100, 100]


def test_the_bar_never_goes_back():
    progress = RunProgress(("T2",))
    progress.update("condition", 0.6, "T2", None)
    progress.update("condition", 0.3, "T2", None)
    assert progress.fraction == 0.6


def test_the_time_left_is_not_told_before_the_first_target_has_begun():
    progress = RunProgress(("T2",))
    progress.update("prepare", 0.2, None, 0.8)
    assert progress.seconds_left is None
    progress.update("condition", 0.4, "T2", 6.0)
    progress.update("native grid", 0.9, None, 2.0)
    assert progress.seconds_left == 2.0
