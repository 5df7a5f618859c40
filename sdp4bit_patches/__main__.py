"""Run any Megatron script with compressed communication, or check a machine and a set of flags.

    torchrun ... -m sdp4bit_patches PATH/TO/pretrain_gpt.py <its own flags> <ours>
    python -m sdp4bit_patches doctor <the flags of a run>

The script is run as ``__main__`` with the flags it knows; ours are taken out. Nothing of Megatron is edited.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

import sdp4bit_patches
from sdp4bit_patches import config
from sdp4bit_patches.refusals import Refusal


def parse(words: list[str]) -> tuple[config.CommConfig, list[str]]:
    """The compression that the words ask for, and the words that are the script's.

    Raises:
        ValueError: a value that has no meaning.
    """
    parser = argparse.ArgumentParser(prog="sdp4bit_patches", add_help=False, allow_abbrev=False, exit_on_error=False)
    config.add_arguments(parser)
    try:
        preset = parser.parse_known_args(words)[0].compression
        in_front = config.preset_words(preset) if preset else []
        args, rest = parser.parse_known_args([*in_front, *words])
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    return config.from_arguments(args), rest


def _read(script: str, words: list[str]) -> tuple[config.CommConfig, list[str]]:
    try:
        comm_config, rest = parse(words)
    except ValueError as error:
        raise Refusal(str(error)) from error
    if not Path(script).is_file():
        raise Refusal(f"{script} is no file: give the path of a Megatron script, or 'doctor'")
    return comm_config, rest


def run_script(script: str, words: list[str]) -> None:
    """Install what `words` ask for and run `script` with the rest."""
    comm_config, rest = _read(script, words)
    # Python does the same for a script it is given; Megatron-LM's own packages lie beside its scripts.
    sys.path.insert(0, str(Path(script).resolve().parent))
    from sdp4bit_patches import cpu_device, host_script

    if cpu_device.install():
        host_script.step_over_cuda_checks()
    host_script.check_versions()
    sdp4bit_patches.install(comm_config)
    host_script.watch(sdp4bit_patches.installed_session())
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")
    sdp4bit_patches.uninstall()


def main(words: list[str]) -> None:
    """Dispatch; what a user wrote wrongly ends with one sentence and exit code 2."""
    if not words or words[0] in ("-h", "--help"):
        parser = argparse.ArgumentParser(prog="sdp4bit_patches", description=__doc__, add_help=False)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        config.add_arguments(parser)
        parser.print_help()
        sys.exit(0 if words else 2)
    try:
        if words[0] == "doctor":
            from sdp4bit_patches.doctor import examine

            sys.exit(examine(*_read(__file__, words[1:])))
        run_script(words[0], words[1:])
    except Refusal as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"sdp4bit_patches: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
