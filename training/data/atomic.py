"""Files that are complete or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from MissingModalitySynthLib.errors import OutputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, of the same suffix, to write to; it takes the place of ``path`` at the end.

    Raises:
        OutputError: the folder can't be made, or the writing inside failed; nothing is left.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # SimpleITK raises RuntimeError
        raise OutputError(f"'{path}' can't be written: check the folder and the free space ({error}).") from error
    finally:
        if temporary.exists():
            temporary.unlink()
