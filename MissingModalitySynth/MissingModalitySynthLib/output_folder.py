"""All files of a run, or none: they are made in a hidden folder and renamed into place when all are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


@contextmanager
def all_or_nothing(folder: Path, names: Sequence[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Check that files can be written before they are computed, then put them all in place, or none.

    The block writes into the hidden folder that it is given, inside ``folder`` and so on the same disk. When the block
    ends, what lies there is renamed into ``folder``. When it fails or is interrupted, ``folder`` is as it was before;
    folders that were made for it are gone again.

    Args:
        folder: where the files belong; made, with its parents, if absent.
        names: the names that the block may write, as far as they are known.
        overwrite: whether existing files may be replaced.

    Raises:
        OutputError: the folder cannot be made or written, a file is there already, or the disk is full.
    """
    if not overwrite:
        for name in names:
            if os.path.lexists(folder / name):
                raise OutputError(f"'{folder / name}' is there already: choose another folder or allow --overwrite.")
    made: list[Path] = []
    try:
        with _naming(folder):
            for each in reversed([folder, *folder.parents]):
                if not each.is_dir():
                    each.mkdir()
                    made.append(each)
            stage = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
        try:
            with _naming(folder):
                for name in names:
                    (stage / name).touch()  # too long a name shows here
                    (stage / name).unlink()
            try:
                yield stage
            except OutputError as error:
                raise OutputError(str(error).replace(str(stage), str(folder))) from error
            with _naming(folder):
                _put_in_place(stage, folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except BaseException:
        for each in reversed(made):
            with suppress(OSError):  # somebody else put something there meanwhile
                each.rmdir()
        raise


def _put_in_place(stage: Path, folder: Path) -> None:
    """Rename every file of ``stage`` into ``folder``; what was there goes back if one of them fails."""
    new = sorted(stage.iterdir())
    kept = stage / ".previous"
    kept.mkdir()
    done: list[str] = []
    try:
        for path in new:
            target = folder / path.name
            done.append(path.name)
            if os.path.lexists(target):
                os.replace(target, kept / path.name)
            os.replace(path, target)
    except BaseException:
        for name in done:
            if not os.path.lexists(stage / name):  # it was renamed
                (folder / name).unlink()
            if os.path.lexists(kept / name):
                os.replace(kept / name, folder / name)
        raise


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"The folder '{folder}' can't be written ({error.strerror}): choose another one or free some space."
        ) from error
