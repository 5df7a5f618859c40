"""`python -m tools.scheduler COMMAND`: which device trains what on a network of uneven links."""

from __future__ import annotations

import argparse
import importlib
import sys

from tools.command_line import ToolArgumentParser, run_tool

# Command -> its module, which has `add_arguments(parser)` and `run(args)`, and what --help says of it.
COMMANDS = {
    "schedule": ("tools.scheduler.schedule", "find the layout of a job on a network, its cost, time and map"),
    "probe": ("tools.scheduler.probe", "measure the links of a running cluster and write them as a scenario"),
}


class _SubParser(ToolArgumentParser):
    """The parser of one command; its module is imported when it is asked for."""

    def __init__(self, **given: str) -> None:
        super().__init__(given.get("description", ""))
        self.prog = given["prog"]


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = ToolArgumentParser(__doc__)
    parser.prog = "python -m tools.scheduler"
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
    sys.argv[0] = "tools.scheduler"
    run_tool(main)
