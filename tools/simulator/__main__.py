"""Predicts what runs take: `python -m tools.simulator heterogeneous --published FILE --out FILE`."""

from __future__ import annotations

from tools.command_line import ToolArgumentParser, run_tool
from tools.simulator import heterogeneous

COMMANDS = {"heterogeneous": heterogeneous}


def main() -> None:
    """Read the command line and run the subcommand."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, module in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=module.__doc__.splitlines()[0])
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    run_tool(main)
