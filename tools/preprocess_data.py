"""Tokenize jsonl into the PREFIX_KEY_document.bin/.idx files that megatron.core's IndexedDataset reads."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

# Run as a file, Python looks for modules beside it; the trainer's tokenizer stands in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.command_line import ToolArgumentParser, positive_int, run_tool  # isort: split

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.tokenizers import MegatronTokenizerBase
from tqdm import tqdm

from megatron.training.tokenizer import TOKENIZER_TYPES, build_tokenizer
from tools.atomic_files import atomic_files

CHUNK_BYTES = 1 << 18  # of jsonl a task: large against the cost of handing it over, small against memory
CHUNKS_IN_FLIGHT_PER_WORKER = 4


class Chunk(NamedTuple):
    """Whole lines of one input file."""

    path: str
    first_line: int
    lines: list[bytes]


class EncodedChunk(NamedTuple):
    """What became of a Chunk: for each key its documents' token ids, in order, empty documents left out."""

    num_bytes: int
    num_documents: int
    documents: dict[str, list[np.ndarray]]


class Encoder:
    """Turns lines of jsonl into token ids; made once in every worker."""

    def __init__(self, args: Namespace) -> None:
        self.tokenizer = build_tokenizer(args)
        self.keys = args.json_keys
        self.append_eod = args.append_eod
        self.dtype = token_dtype(self.tokenizer)

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Token ids of every line.

        Raises:
            ValueError: names the file and the line.
        """
        documents: dict[str, list[np.ndarray]] = {key: [] for key in self.keys}
        for number, line in enumerate(chunk.lines, start=chunk.first_line):
            try:
                for key, text in self._texts(line):
                    documents[key].append(self._token_ids(text))
            except Exception as error:  # whatever a tokenizer raises about a text, the user needs to know which text
                raise ValueError(f"{chunk.path}, line {number}: {error}") from error
        documents = {key: [ids for ids in found if ids.size] for key, found in documents.items()}
        return EncodedChunk(sum(map(len, chunk.lines)), len(chunk.lines), documents)

    def _texts(self, line: bytes) -> Iterator[tuple[str, str]]:
        record = _parse(line)
        for key in self.keys:
            if key not in record:
                raise ValueError(f'there is no key "{key}", only {sorted(record)}: name a key with --json-keys')
            if not isinstance(record[key], str):
                raise ValueError(f'the value of "{key}" is of type {type(record[key]).__name__}, not text')
            yield key, record[key]

    def _token_ids(self, text: str) -> np.ndarray:
        ids = self.tokenizer.tokenize(text) if text else []
        if ids and self.append_eod:
            ids.append(self.tokenizer.eod)
        if ids and not 0 <= min(ids) <= max(ids) < self.tokenizer.vocab_size:
            raise ValueError(f"token id {max(ids)} is outside the vocabulary of {self.tokenizer.vocab_size}")
        return np.array(ids, dtype=self.dtype)


def _parse(line: bytes) -> dict:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, not an object with keys")
    return record


def token_dtype(tokenizer: MegatronTokenizerBase) -> type[np.number]:
    """The dtype of the .bin file: megatron.core's own choice, two bytes a token where the vocabulary allows it."""
    return DType.optimal_dtype(tokenizer.vocab_size)


def read_chunks(paths: Iterable[str]) -> Iterator[Chunk]:
    """The lines of all files in order, about CHUNK_BYTES at a time."""
    for path in paths:
        with open(path, "rb") as file:
            first_line = 1
            while lines := file.readlines(CHUNK_BYTES):
                yield Chunk(path, first_line, lines)
                first_line += len(lines)


_worker_encoder: Encoder | None = None


def _start_worker(args: Namespace) -> None:
    global _worker_encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    _worker_encoder = Encoder(args)


def _encode_in_worker(chunk: Chunk) -> EncodedChunk:
    assert _worker_encoder is not None
    return _worker_encoder.encode(chunk)


def encode_all(args: Namespace, encoder: Encoder) -> Iterator[EncodedChunk]:
    """Every chunk encoded, in input order whatever the number of workers."""
    chunks = read_chunks(args.input)
    if args.workers == 1:
        yield from map(encoder.encode, chunks)
        return
    # Not multiprocessing.Pool: it waits for ever for a worker that was killed, this executor raises.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(args.workers, context, _start_worker, (args,)) as pool:
        yield from _in_order(pool, _encode_in_worker, chunks, args.workers * CHUNKS_IN_FLIGHT_PER_WORKER)


def _in_order(pool: ProcessPoolExecutor, function: Callable, tasks: Iterable, window: int) -> Iterator:
    """``map`` that keeps at most ``window`` tasks in memory (``pool.map`` would read the whole corpus ahead)."""
    pending: deque = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise ValueError("a worker process was killed, perhaps for its memory: try fewer --workers") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def preprocess(args: Namespace) -> None:
    """Write PREFIX_KEY_document.bin and .idx for every key.

    Raises:
        ValueError: bad input, told in a sentence.
        OSError: a file cannot be read or written.
    """
    total_bytes = sum(os.path.getsize(path) for path in args.input)
    encoder = Encoder(args)
    outputs = {key: f"{args.output_prefix}_{key}_document" for key in args.json_keys}
    with ExitStack() as stack:
        files = {key: stack.enter_context(_dataset_files(prefix)) for key, prefix in outputs.items()}
        builders = {key: IndexedDatasetBuilder(str(files[key][0]), dtype=encoder.dtype) for key in files}
        num_documents = _write_documents(args, encoder, builders, total_bytes)
        for key, builder in builders.items():
            if not builder.sequence_lengths:
                raise ValueError(f'{", ".join(args.input)}: no text under "{key}", so there is nothing to write')
            builder.finalize(str(files[key][1]))
    for key, builder in builders.items():
        _report(outputs[key], builder, num_documents)


def _dataset_files(prefix: str) -> atomic_files:
    return atomic_files(Path(f"{prefix}.bin"), Path(f"{prefix}.idx"))


def _write_documents(args: Namespace, encoder: Encoder, builders: dict, total_bytes: int) -> int:
    num_documents = num_shown = 0
    tqdm.monitor_interval = 0  # no thread of tqdm's while the workers are forked
    with tqdm(total=total_bytes, unit="B", unit_scale=True, unit_divisor=1024, desc="tokenize") as bar:
        for chunk in encode_all(args, encoder):
            for key, documents in chunk.documents.items():
                for token_ids in documents:
                    builders[key].add_document(token_ids, [len(token_ids)])
            num_documents += chunk.num_documents
            bar.update(chunk.num_bytes)
            if num_documents - num_shown >= args.log_interval:
                num_shown = num_documents
                bar.set_postfix_str(f"{num_documents:,} documents")
    return num_documents


def _report(prefix: str, builder: IndexedDatasetBuilder, num_documents: int) -> None:
    written, tokens = len(builder.sequence_lengths), sum(builder.sequence_lengths)
    print(f"{prefix}.bin/.idx: {written:,} documents, {tokens:,} tokens, {builder.dtype.__name__}")
    if written < num_documents:
        print(f"{prefix}: {num_documents - written:,} documents without text were left out")


def parse_arguments() -> Namespace:
    """The command line, under Megatron-LM's flag names."""
    parser = ToolArgumentParser(__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="jsonl files, read in this order")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="keys to tokenize, a data set for each")
    parser.add_argument("--output-prefix", required=True, help="path before _KEY_document.bin and .idx")
    parser.add_argument("--tokenizer-type", required=True, choices=TOKENIZER_TYPES)
    parser.add_argument("--tokenizer-model", help="local folder with tokenizer.json, for HuggingFaceTokenizer")
    parser.add_argument("--vocab-file", help="vocab.json, for GPT2BPETokenizer")
    parser.add_argument("--merge-file", help="merges.txt, for GPT2BPETokenizer")
    parser.add_argument("--vocab-size", type=positive_int, help="number of ids, for NullTokenizer")
    parser.add_argument("--append-eod", action="store_true", help="end every document with the end-of-document token")
    parser.add_argument("--workers", type=positive_int, default=1, help="processes; the output is the same for any")
    parser.add_argument("--partitions", type=int, choices=[1], default=1, help="one: the output is never split")
    parser.add_argument("--log-interval", type=positive_int, default=1000, help="documents between counts in the bar")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: preprocess(parse_arguments()))
