"""All files of a run or none, and no trace of a run that failed."""

import itertools
import os
from pathlib import Path

import pytest

from MissingModalitySynthLib.errors import OutputError
from MissingModalitySynthLib.output_folder import all_or_nothing


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_when_a_rename_fails_all_files_of_the_run_go_and_the_old_ones_come_back(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old a")
    (tmp_path / "c").write_text("old c")
    real, calls = os.replace, itertools.count()

    def full_at_the_fourth(source, target):
        if next(calls) == 3:
            raise OSError(28, "No space left on device")
        real(source, target)

    with pytest.raises(OutputError, match="No space left on device"):
        with all_or_nothing(tmp_path, ["a", "b", "c"], overwrite=True) as stage:
            for name in "abc":
                (stage / name).write_text(f"new {name}")
            monkeypatch.setattr(os, "replace", full_at_the_fourth)
    assert everything_in(tmp_path) == ["a", "c"]
    assert [(tmp_path / name).read_text() for name in "ac"] == ["old a", "old c"]


def test_folders_made_for_a_failed_run_go_again_but_not_what_others_put_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), all_or_nothing(tmp_path / "a" / "b", ["x"]):
        (tmp_path / "a" / "theirs").write_text("kept")
        raise KeyboardInterrupt
    assert everything_in(tmp_path) == ["a", "a/theirs"]


def test_a_name_that_the_disk_cannot_hold_is_found_at_once(tmp_path):
    with pytest.raises(OutputError, match="can't be written"), all_or_nothing(tmp_path / "new", ["x" * 300]):
        pytest.fail("the block must not be entered")
    assert everything_in(tmp_path) == []
