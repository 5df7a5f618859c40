"""Output files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_files(*paths: Path) -> Iterator[list[Path]]:
    """Lend one temporary path for each of ``paths`` and rename them, in this order, when the block ends well.

    The last path is the one by which readers know that the set is complete: an older one of that name goes before the
    others are replaced, so that no mixture of old and new files ever looks complete. After an error or Ctrl-C the
    temporary files are removed and what stood before still stands.

    Raises:
        OSError: with a file name, also where the system named none (a full disk).
    """
    temporary = [path.with_name(f"{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for path in temporary:
            _flush_to_disk(path)
        if len(paths) > 1:
            paths[-1].unlink(missing_ok=True)
        for source, target in zip(temporary, paths, strict=True):
            os.replace(source, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(paths[0])) from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
