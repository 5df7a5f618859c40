"""What the data flags say: which prefixes with which weights, which share of documents, how many samples."""

from __future__ import annotations

import math
import re
from argparse import Namespace
from typing import NamedTuple

from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

SPLITS = ("train", "valid", "test")
_SHARE = re.compile(r"\d+\.?\d*|\.\d+")


class Blend(NamedTuple):
    """Dataset prefixes and their weights; without weights every dataset is drawn once, in whole."""

    prefixes: list[str]
    weights: list[float] | None


class Source(NamedTuple):
    """The documents of one split: the share [begin, end) of those of every prefix in the blend."""

    flag: str
    split: str
    blend: Blend
    begin: float
    end: float

    def documents(self, num_documents: int) -> slice:
        """The documents of a dataset of ``num_documents`` that megatron.core gives to this split."""
        return slice(round(self.begin * num_documents), round(self.end * num_documents))


def parse_blend(flag: str, words: list[str]) -> Blend:
    """Read ``PREFIX``, ``PREFIX PREFIX ...`` or ``WEIGHT PREFIX WEIGHT PREFIX ...``.

    Raises:
        ValueError: numbers and prefixes do not alternate, or a weight is not positive.
    """
    are_numbers = [_is_number(word) for word in words]
    if not any(are_numbers):
        return Blend(list(words), None)
    if are_numbers != [True, False] * (len(words) // 2):
        raise ValueError(
            f"{flag} {' '.join(words)} does not read WEIGHT PREFIX WEIGHT PREFIX ...: every weight a number"
        )
    weights = [float(word) for word in words[::2]]
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"{flag} {' '.join(words)}: every weight has to be above 0")
    return Blend(list(words[1::2]), weights)


def parse_split(split: str) -> list[tuple[float, float] | None]:
    """The shares [begin, end) of train, valid and test in ``969,30,1``; None for a share of 0.

    Raises:
        ValueError: not one to three numbers of at least 0, or all of them 0.
    """
    words = [word.strip() for word in split.split(",")]
    are_shares = all(_SHARE.fullmatch(word) for word in words)  # megatron.core skips over what is not a number
    if len(words) > len(SPLITS) or not are_shares or not any(map(float, words)):
        raise ValueError(f"--split {split} is not three shares of at least 0 such as 969,30,1")
    return convert_split_vector_to_split_matrix(parse_and_normalize_split(split))


def num_samples_per_split(args: Namespace) -> list[int]:
    """Samples that the run draws from train, valid and test; megatron.core's order of samples depends on them.

    Args:
        args: ``train_samples`` or ``train_iters``, ``skip_train``, ``global_batch_size``, ``eval_iters``,
            ``eval_interval``.
    """
    train = 0 if args.skip_train else args.train_samples or args.train_iters * args.global_batch_size
    num_evaluations = args.train_iters // args.eval_interval + 1  # the last one follows the last iteration
    evaluation = args.eval_iters * args.global_batch_size
    return [train, num_evaluations * evaluation, evaluation]


def sources(args: Namespace) -> list[Source | None]:
    """The source of train, valid and test; None where the flags give it no documents or the run draws no samples.

    Raises:
        ValueError: from :func:`parse_blend` and :func:`parse_split`.
    """
    if args.data_path:
        blend = parse_blend("--data-path", args.data_path)
        shares = parse_split(args.split)
        found = [
            share and Source("--data-path", name, blend, *share) for name, share in zip(SPLITS, shares, strict=True)
        ]
    else:
        found = [_own_source(args, name) for name in SPLITS]
    # megatron.core counts epochs of an empty split for ever, even where no sample of it is wanted.
    return [source if wanted else None for source, wanted in zip(found, num_samples_per_split(args), strict=True)]


def _own_source(args: Namespace, split: str) -> Source | None:
    words = getattr(args, f"{split}_data_path")
    flag = f"--{split}-data-path"
    return Source(flag, split, parse_blend(flag, words), 0.0, 1.0) if words else None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
