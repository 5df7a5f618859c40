"""What the tools' command lines share: an error is one sentence on stderr and exit code 2."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

# megatron.core says at import which GPU libraries are absent; the tools compute on no GPU.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed", category=UserWarning)


class ToolArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, without the usage text."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def positive_int(text: str) -> int:
    """The argparse type of counts: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def run_tool(main: Callable[[], None]) -> NoReturn:
    """Run ``main`` and end the process: 0, 2 after what a user can mend (ValueError, OSError), 130 after Ctrl-C."""
    try:
        main()
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{sys.argv[0]}: error: {_sentence(error)}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(f"{sys.argv[0]}: stopped; nothing was written\n")
        sys.exit(130)
    sys.exit(0)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
