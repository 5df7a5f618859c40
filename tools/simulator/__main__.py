"""`python -m tools.simulator COMMAND`: predict what runs take."""

from __future__ import annotations

import argparse
import importlib
import sys

from tools.command_line import ToolArgumentParser, run_tool

# Command -> its module, which has `add_arguments(parser)` and `run(args)`, and what --help says of it.
COMMANDS = {
    "heterogeneous": ("tools.simulator.heterogeneous", "times of published systems on uneven networks"),
}


class _SubParser(ToolArgumentParser):
    """The parser of one command; its module is imported when it is asked for."""

    def __init__(self, **given: str) -> None:
        super().__init__(given.get("description", ""))
        self.prog = given["prog"]


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = ToolArgumentParser(__doc__)
    parser.prog = "python -m tools.simulator"
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_SubParser)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            importlib.import_module(module).add_arguments(command)
    return parser


def main() -> None:
    """Run the command that the command line names; only its module is imported."""
    chosen = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    args = _parser(chosen).parse_args()
    importlib.import_module(COMMANDS[args.command][0]).run(args)


if __name__ == "__main__":
    run_tool(main)
