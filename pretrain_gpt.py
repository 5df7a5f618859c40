"""Pretrain a GPT on megatron-core: ``torchrun --nproc-per-node N pretrain_gpt.py --flags`` with Megatron-LM's flags."""

from __future__ import annotations

import os
import sys

from megatron.training.arguments import parse_args
from megatron.training.errors import UserError, exit_with_sentence
from megatron.training.quiet import quiet_libraries
from megatron.training.validation import validate_args


def main(argv: list[str]) -> None:
    """Parse and check ``argv``, then train; bad input exits with code 2 before torch is even imported."""
    try:
        args = validate_args(parse_args(argv), world_size=int(os.environ.get("WORLD_SIZE", "1")))
        # First of all, since megatron.core binds what it finds in torch.cuda when it is imported.
        from sdp4bit_patches import cpu_device

        cpu_device.install()
        quiet_libraries()
        import torch

        from megatron.training.training import pretrain

        pretrain(args)
        torch.distributed.destroy_process_group()
    except UserError as error:
        exit_with_sentence(error)


if __name__ == "__main__":
    main(sys.argv[1:])
