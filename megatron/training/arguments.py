"""Read ``pretrain_gpt.py``'s command line and its TOML files into one namespace. Standard library only.

A TOML file is turned into the flags it stands for and put in front of the command line, so that there is one parser,
one set of types and choices, and the command line wins.
"""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from megatron.training.errors import UserError
from megatron.training.flags import GROUPS, NO_EFFECT, Flag
from megatron.training.layout import read_layout
from sdp4bit_patches import config

# Tables of a run file that name another file: `model = "gpt_125m"` includes configs/models/gpt_125m.toml.
INCLUDES = {"model": "models", "scheme": "schemes", "cluster": "clusters", "base": "runs"}

FLAGS: dict[str, Flag] = {flag.name: flag for flags in GROUPS.values() for flag in flags}


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are :class:`UserError`, prefixed with the file that holds the mistake."""

    source = ""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.source}{message}")


def build_parser() -> _Parser:
    """The parser of every flag in :mod:`megatron.training.flags`."""
    parser = _Parser(prog="pretrain_gpt.py", description="Pretrain a GPT on megatron-core.", allow_abbrev=False)
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add_flag(group, flag)
    group = parser.add_argument_group("accepted from existing scripts, without effect here")
    for name, reason in NO_EFFECT.items():
        group.add_argument(f"--{name}", f"--no-{name}", nargs="?", const=True, help=reason)
    return parser


def _add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    text = flag.help.replace("%", "%%")
    if flag.kind is bool:
        group.add_argument(
            f"--{flag.name}", action=argparse.BooleanOptionalAction, default=flag.default, help=text, dest=flag.dest
        )
    else:
        group.add_argument(
            f"--{flag.name}",
            type=flag.kind,
            default=flag.default,
            choices=flag.choices,
            nargs=flag.nargs,
            help=text,
            dest=flag.dest,
        )


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse ``argv`` (without the program's name) and the TOML file of ``--config``.

    Returns:
        A namespace under Megatron-LM's attribute names. ``args.no_effect`` has the given flags that change nothing,
        each with the reason.

    Raises:
        UserError: an unknown flag or TOML key, a value of the wrong kind, an unreadable file.
    """
    parser = build_parser()
    in_front: list[str] = []
    for file in _named_files(argv, "--config"):
        in_front += _file_arguments(file, parser)
    for file in _named_files([*in_front, *argv], "--layout"):
        in_front += _layout_arguments(file)
    words = [*in_front, *argv]
    args = _parse_known(parser, [*_preset(words), *words])
    args.no_effect = {
        name: reason for name, reason in NO_EFFECT.items() if vars(args).pop(name.replace("-", "_"), None) is not None
    }
    return args


def _preset(words: Sequence[str]) -> list[str]:
    """The flags that ``--compression`` stands for: in front, so that they are overruled by every flag that is given."""
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--compression", choices=tuple(config.PRESETS))
    name = finder.parse_known_args(list(words))[0].compression
    return config.preset_words(name) if name else []


def _named_files(argv: Sequence[str], flag: str) -> list[Path]:
    """The value of ``flag`` (``--config``, say) in the words ``argv``, as a list of none or one."""
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument(flag, dest="file", type=Path)
    found = finder.parse_known_args(list(argv))[0].file
    return [found] if found else []


def _layout_arguments(path: Path) -> list[str]:
    """The flags that a layout file stands for, its node of every rank among them."""
    layout = read_layout(path)
    words = [word for key, value in layout.flags.items() for word in key_words(path, key, value)]
    return [*words, "--node-of-rank", ",".join(map(str, layout.node_of_rank))]


def _parse_known(parser: _Parser, argv: list[str]) -> argparse.Namespace:
    args, unknown = parser.parse_known_args(argv)
    flag = next((word for word in unknown if word.startswith("-")), None)
    if flag:
        parser.error(f"unknown flag {flag}{_nearest(flag.split('=')[0].lstrip('-'))}")
    if unknown:
        parser.error(f"'{unknown[0]}' belongs to no flag; every value follows its --flag")
    return args


def _nearest(name: str) -> str:
    """`` (did you mean --x?)`` where some flag is spelled like ``name``."""
    known = [*FLAGS, *(f"no-{flag.name}" for flag in FLAGS.values() if flag.kind is bool), *NO_EFFECT]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean --{near[0]}?" if near else "; see --help for all flags"


def _file_arguments(path: Path, parser: _Parser, including: tuple[Path, ...] = ()) -> list[str]:
    """The flags that a TOML file and the files it includes stand for, included ones first."""
    if path.resolve() in including:
        raise UserError(f"{including[-1]} includes {path}, which includes it again; take one of the two out")
    words: list[str] = []
    keys = _read_toml(path)
    if path.parent.name == INCLUDES["cluster"]:
        keys = keys.get("flags", {})  # its other tables are for who launches or simulates runs
    for key, value in keys.items():
        if key in INCLUDES:
            included = _included(path, key, value)
            words = [*words, *_file_arguments(included, parser, (*including, path.resolve()))]
    for key, value in keys.items():
        if key not in INCLUDES:
            words += key_words(path, key, value)
    parser.source = f"{path}: "
    _parse_known(parser, words)
    parser.source = ""
    return words


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give --config an existing TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error


def _included(path: Path, key: str, value: Any) -> Path:
    """configs/models/NAME.toml for ``model = "NAME"`` in configs/runs/X.toml."""
    folder = path.resolve().parent.parent / INCLUDES[key]
    file = folder / f"{value}.toml"
    if not isinstance(value, str) or not file.is_file():
        known = ", ".join(sorted(other.stem for other in folder.glob("*.toml"))) or "none"
        raise UserError(f'{path}: {key} = "{value}" is not in {folder}; there are: {known}')
    return file


def key_words(path: Path, key: str, value: Any) -> list[str]:
    """The command-line words of one TOML key.

    Args:
        path: the file that has it, for the sentence about a mistake.
        key: a flag's name without the dashes, or ``no-`` and an on/off flag's.
        value: the flag's value as TOML has it.

    Raises:
        UserError: there is no such flag, or the value is of another kind.
    """
    if key in NO_EFFECT:
        return [f"--{key}"]
    flag = FLAGS.get(key)
    negated = FLAGS.get(key.removeprefix("no-")) if flag is None else None
    if negated is not None and negated.kind is bool and isinstance(value, bool):
        return [f"--{negated.name}" if not value else f"--{key}"]
    if flag is None or key == "config":
        raise UserError(f"{path}: unknown key '{key}'{_nearest(key)}")
    if flag.kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{path}: {key} = {value!r} has to be true or false")
        return [f"--{key}" if value else f"--no-{key}"]
    if isinstance(value, dict):
        raise UserError(f"{path}: [{key}] is a table; every key is a flag with one value")
    if isinstance(value, list) and flag.nargs is None:
        raise UserError(f"{path}: {key} = {value} is a list; the flag takes one value")
    values = value if isinstance(value, list) else [value]
    return [f"--{key}", *(str(item) for item in values)]
