"""The fraction of a run that is told at the beginning of every stage."""

import pytest

from MissingModalitySynthLib.progress import Run

# Seconds that stages of the bundled model took for a head of 160 x 192 x 160 voxels on two cores.
MEASURED = {
    "regression": {"load model": 0.3, "prepare": 2.3, "encode": 0.1, "condition": 0.3, "step": 6.8, "decode": 0.1},
    "midiffusion": {"load model": 0.4, "prepare": 1.8, "encode": 0.1, "condition": 22.2, "step": 29.7, "decode": 0.1},
}


@pytest.mark.parametrize("method", MEASURED)
def test_the_bar_does_not_run_far_ahead_of_time_or_behind_it(method):
    seconds, told = MEASURED[method], []
    run = Run(told.append, lambda: False, targets=1)
    passed, elapsed = [], 0.0
    for name, took in seconds.items():
        if name == "step":
            with run.stage("sample", "T1"):
                run.on_step("T1")(0, 1)
        else:
            with run.stage(name, "T1"):
                pass
        passed.append((told[-1].fraction, elapsed / sum(seconds.values())))
        elapsed += took
    assert all(abs(shown - true) < 0.25 for shown, true in passed), passed
    assert max(shown for shown, _true in passed) > 0.9
