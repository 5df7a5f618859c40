"""Bad input ends every rank with one sentence and exit code 2, once, and without a hang."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 2

# torchrun ends the other ranks as soon as one exits. Rank 0 speaks for all, so the others give it this long.
_SECONDS_FOR_RANK_0 = 5.0


class UserError(ValueError):
    """Something a user wrote cannot be used: one sentence with the value and the remedy."""

    raised_on_every_rank = False


def require(condition: bool, sentence: str) -> None:
    """Raise a UserError with ``sentence`` unless ``condition`` holds."""
    if not condition:
        raise UserError(sentence)


@contextmanager
def user_input() -> Iterator[None]:
    """Turn a ValueError about what a user wrote, or a file that cannot be used, into a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise UserError(f"cannot use{where}: {error.strerror or error}; check the path and its permissions") from error


@contextmanager
def checked_on_every_rank() -> Iterator[None]:
    """Run a check that holds no collective; a UserError on any rank becomes one on every rank.

    Needs an initialized process group. The sentence of the lowest failing rank is the one that is raised.
    """
    import torch.distributed as dist

    sentence = None
    try:
        with user_input():
            yield
    except UserError as error:
        sentence = str(error)
    sentences: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(sentences, sentence)
    for rank, found in enumerate(sentences):
        if found is not None:
            error = UserError(found if rank == 0 else f"{found} (seen on rank {rank})")
            error.raised_on_every_rank = True
            raise error


def exit_with_sentence(error: UserError) -> None:
    """Print ``error`` once for all ranks on standard error and exit with code 2.

    Every rank sees the same arguments and normally fails alike, so rank 0 prints. A rank that fails alone (a file
    missing on its node only, before the process group stands) is not ended in the meantime and prints for itself.
    """
    # From here on the launcher's SIGTERM ends the process, also where training had made it ask for a checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rank = int(os.environ.get("RANK", "0"))
    if rank != 0:
        time.sleep(_SECONDS_FOR_RANK_0)
    if rank == 0 or not error.raised_on_every_rank:
        where = "" if rank == 0 else f" (on rank {rank})"
        print(f"pretrain_gpt.py: error: {error}{where}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # _exit: no destructor of a process group may wait for ranks that are leaving too.
    os._exit(EXIT_CODE)
