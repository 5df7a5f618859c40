"""Checks of the dataset files before anything is built on them. No collectives: any rank may run them alone.

Layout of PREFIX.idx (little-endian), as megatron.core.datasets.indexed_dataset writes it: 9 bytes ``MMIDIDX`` and two
zeros, u64 version 1, u8 dtype code, u64 sequences, u64 boundaries, then i32 length of each sequence, i64 byte offset
of each, i64 boundaries (the number of the first sequence of each document, and the total). PREFIX.bin: the tokens.
"""

from __future__ import annotations

import hashlib
import os
import struct
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron.training.data_sources import Source, num_samples_per_split, sources

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_TOKEN_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}

# Every token is looked at in files up to this size; of larger ones, so many MiB spread evenly.
_SCANNED_MIB = 256
_MIB = 1 << 20


class Index(NamedTuple):
    """What a .idx file says: the dtype of the tokens and how many each sequence has ([sequences], int32)."""

    dtype: np.dtype
    sequence_lengths: np.ndarray


def check_data_files(args: Namespace) -> None:
    """Check every file that the run will read, so that what is wrong is said before the processes meet.

    Args:
        args: the data flags, ``seq_length``, ``padded_vocab_size`` and what :func:`num_samples_per_split` reads.

    Raises:
        ValueError: one sentence: a file is missing, truncated, of another vocabulary or too short, a split or a
            weight is not what it should be, the index cache is damaged or cannot be written.
    """
    if args.mock_data:
        return
    found = sources(args)
    if found[0] is None and num_samples_per_split(args)[0]:
        raise ValueError("the data flags give no documents for training: give a share in --split, or --train-data-path")
    indices: dict[str, Index] = {}
    for source in filter(None, found):
        for prefix in source.blend.prefixes:
            if prefix not in indices:
                indices[prefix] = read_index(source.flag, prefix)
                _check_vocabulary(prefix, indices[prefix], args.padded_vocab_size)
            _check_length(source, prefix, indices[prefix], args.seq_length)
    if indices:
        _check_index_cache(index_cache_path(args))


def read_index(flag: str, prefix: str) -> Index:
    """Read PREFIX.idx and check that PREFIX.bin is what it describes.

    Raises:
        ValueError: with ``flag`` where a file is missing, else with the file's name.
    """
    idx_path, bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for path in (idx_path, bin_path):
        if not path.is_file():
            raise ValueError(f"{flag} {prefix}: {path} does not exist; give the prefix that preprocess_data.py printed")
    dtype, num_sequences, num_boundaries = _read_header(idx_path)
    size = _HEADER.size + 12 * num_sequences + 8 * num_boundaries
    if idx_path.stat().st_size < size:
        raise ValueError(f"{idx_path} is truncated: {idx_path.stat().st_size} of {size} bytes; preprocess it again")
    lengths = np.memmap(idx_path, np.dtype("<i4"), "r", _HEADER.size, (num_sequences,))
    _check_size(bin_path, int(lengths.sum(dtype=np.int64)) * dtype.itemsize)
    return Index(dtype, lengths)


def _read_header(path: Path) -> tuple[np.dtype, int, int]:
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise ValueError(f"{path} is truncated: {len(header)} bytes, less than its header; preprocess it again")
    magic, version, code, num_sequences, num_boundaries = _HEADER.unpack(header)
    if magic != _MAGIC or version != 1 or code not in _TOKEN_DTYPES:
        raise ValueError(f"{path} is not the index of a token dataset; make it with preprocess_data.py")
    if num_sequences == 0:
        raise ValueError(f"{path} holds no documents; preprocess some text")
    return np.dtype(_TOKEN_DTYPES[code]), num_sequences, num_boundaries


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size < expected:
        raise ValueError(f"{path} is truncated: {size} of {expected} bytes; preprocess it again")
    if size > expected:
        raise ValueError(f"{path} has {size} bytes but its .idx describes {expected}: they are not of one dataset")


def _check_vocabulary(prefix: str, index: Index, vocab_size: int) -> None:
    tokens = np.memmap(f"{prefix}.bin", index.dtype, "r")
    smallest, largest = _token_range(tokens)
    if smallest < 0 or largest >= vocab_size:
        wrong = smallest if smallest < 0 else largest
        raise ValueError(
            f"{prefix}.bin holds token id {wrong} but the vocabulary has {vocab_size} ids: "
            "give the tokenizer that it was preprocessed with"
        )


def _token_range(tokens: np.ndarray) -> tuple[int, int]:
    block = _MIB // tokens.itemsize
    num_blocks = -(-len(tokens) // block)
    chosen = np.linspace(0, num_blocks - 1, min(num_blocks, _SCANNED_MIB)).astype(np.int64)
    ranges = [(part.min(), part.max()) for part in (tokens[first : first + block] for first in chosen * block)]
    return int(min(low for low, _ in ranges)), int(max(high for _, high in ranges))


def _check_length(source: Source, prefix: str, index: Index, seq_length: int) -> None:
    documents = index.sequence_lengths[source.documents(len(index.sequence_lengths))]
    num_tokens, needed = int(documents.sum(dtype=np.int64)), seq_length + 1  # the labels are one token further
    if num_tokens < needed:
        raise ValueError(
            f"{source.flag} {prefix}: its {source.split} share has {len(documents)} documents with {num_tokens} "
            f"tokens, fewer than the {needed} of one sequence: give more text, a larger share in --split, or a "
            f"shorter --seq-length{'' if source.split == 'train' else ', or --eval-iters 0'}"
        )


def index_cache_path(args: Namespace) -> Path:
    """The folder where megatron.core keeps its sample index: below ``--data-cache-path``, else below the first prefix.

    megatron.core names an index by the dataset's path, so data that was preprocessed again under the same path would
    be read through the old index. Therefore the folder bears a fingerprint of the .idx files.
    """
    prefixes = [prefix for source in filter(None, sources(args)) for prefix in source.blend.prefixes]
    digest = hashlib.sha256()
    for prefix in dict.fromkeys(prefixes):
        digest.update(_fingerprint(Path(f"{prefix}.idx")))
    root = Path(args.data_cache_path) if args.data_cache_path else Path(prefixes[0]) / "cache"
    return root / digest.hexdigest()[:16]


def _fingerprint(path: Path) -> bytes:
    """Size and 64 blocks of a file; offsets are running sums, so another length shows in all that follows."""
    size, block, num_blocks = path.stat().st_size, 4096, 64
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(num_blocks):
            file.seek(max(size - block, 0) * i // (num_blocks - 1))
            digest.update(file.read(block))
    return digest.digest()


def _check_index_cache(folder: Path) -> None:
    for path in sorted(folder.glob("*.npy")):
        try:
            np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete {folder}, it is made again") from error
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{existing} is not writable for the data's index: give a folder with --data-cache-path")
