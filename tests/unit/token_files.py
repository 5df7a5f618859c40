"""Writes and reads PREFIX.bin/.idx by the documented layout, without megatron.core: the oracle of the data tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

HEADER = "<9sQBQQ"
CODES = {np.int32: 4, np.uint16: 8}


def write_dataset(prefix: Path, documents: list[list[int]], dtype: type = np.uint16) -> str:
    """Write one sequence a document; returns the prefix as the flags take it."""
    lengths = np.array([len(document) for document in documents], "<i4")
    offsets = np.cumsum([0, *lengths[:-1]], dtype="<i8") * np.dtype(dtype).itemsize
    header = struct.pack(HEADER, b"MMIDIDX\0\0", 1, CODES[dtype], len(documents), len(documents) + 1)
    boundaries = np.arange(len(documents) + 1, dtype="<i8")
    Path(f"{prefix}.idx").write_bytes(header + lengths.tobytes() + offsets.tobytes() + boundaries.tobytes())
    Path(f"{prefix}.bin").write_bytes(np.concatenate(documents).astype(dtype).tobytes())
    return str(prefix)


def read_dataset(prefix: Path | str) -> list[list[int]]:
    """The documents of PREFIX.bin/.idx."""
    raw = Path(f"{prefix}.idx").read_bytes()
    magic, version, code, num_sequences, num_boundaries = struct.unpack_from(HEADER, raw)
    assert (magic, version) == (b"MMIDIDX\0\0", 1)
    dtype = {code: dtype for dtype, code in CODES.items()}[code]
    start = struct.calcsize(HEADER)
    lengths = np.frombuffer(raw, "<i4", num_sequences, start)
    offsets = np.frombuffer(raw, "<i8", num_sequences, start + lengths.nbytes)
    boundaries = np.frombuffer(raw, "<i8", num_boundaries, start + lengths.nbytes + offsets.nbytes)
    assert len(raw) == start + lengths.nbytes + offsets.nbytes + boundaries.nbytes
    assert boundaries.tolist() == list(range(num_sequences + 1))
    data = Path(f"{prefix}.bin").read_bytes()
    return [np.frombuffer(data, dtype, n, at).tolist() for n, at in zip(lengths, offsets, strict=True)]
