"""What the tools' command lines share: an error is one sentence on stderr and exit code 2."""

from __future__ import annotations

import argparse
import importlib
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


class _CommandParser(ToolArgumentParser):
    """The parser of one command of `run_command`."""

    def __init__(self, **given: str) -> None:
        super().__init__(given.get("description", ""))
        self.prog = given["prog"]


def run_command(program: str, description: str, commands: dict[str, tuple[str, str]]) -> NoReturn:
    """Run the command that the command line names, of `commands`: name -> its module, and what --help says of it.

    The module has `add_arguments(parser)` and `run(args)`; no other is imported.
    """
    sys.argv[0] = program  # what errors begin with
    run_tool(lambda: _run_command(program, description, commands))


def _run_command(program: str, description: str, commands: dict[str, tuple[str, str]]) -> None:
    chosen = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    parser = ToolArgumentParser(description)
    parser.prog = program
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_CommandParser)
    for name, (module, text) in commands.items():
        choice = choices.add_parser(name, help=text, description=text)
        if name == chosen:
            importlib.import_module(module).add_arguments(choice)
    args = parser.parse_args()
    importlib.import_module(commands[args.command][0]).run(args)


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
