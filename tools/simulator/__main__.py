"""`python -m tools.simulator COMMAND`: predict, tables, evaluate, fit, plan, heterogeneous."""

from __future__ import annotations

import argparse
import importlib
import sys

from tools.command_line import ToolArgumentParser, run_tool

PROGRAM = "python -m tools.simulator"
# Command -> its module, which has `add_arguments(parser)` and `run(args)`, and what --help says of it.
COMMANDS = {
    "predict": ("tools.simulator.predict", "the time of a step by part, its timeline, and memory by part"),
    "tables": ("tools.simulator.tables", "add predictions to every row of a published table"),
    "evaluate": ("tools.simulator.evaluate", "errors against published figures, in-sample and leaving tables out"),
    "fit": ("tools.simulator.fit", "make the calibration again, or anchor a cluster on two measured runs"),
    "heterogeneous": ("tools.simulator.heterogeneous", "times of published systems on uneven networks"),
    "plan": ("tools.simulator.plan", "rank the layouts and schemes of a model on a cluster"),
}


class _SubParser(ToolArgumentParser):
    """The parser of one command; its module is imported when it is asked for."""

    def __init__(self, **given: str) -> None:
        super().__init__(given.get("description", ""))
        self.prog = given["prog"]


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = ToolArgumentParser(__doc__)
    parser.prog = PROGRAM
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_SubParser)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            importlib.import_module(module).add_arguments(command)
    return parser


def main() -> None:
    """Run the command that the command line names; only its module is imported."""
    sys.argv[0] = PROGRAM  # what errors begin with
    chosen = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    args = _parser(chosen).parse_args()
    importlib.import_module(COMMANDS[args.command][0]).run(args)


if __name__ == "__main__":
    run_tool(main)
