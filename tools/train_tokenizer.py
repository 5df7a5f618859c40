"""Train a byte-level BPE tokenizer on jsonl and save it for HuggingFaceTokenizer and for GPT2BPETokenizer."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

# Run as a file, Python looks for modules beside it; the trainer's tokenizer stands in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.command_line import ToolArgumentParser, positive_int, run_tool  # isort: split

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron.training.tokenizer import END_OF_DOCUMENT
from tools.atomic_files import atomic_files

NUM_BYTES = 256
SMALLEST_VOCABULARY = NUM_BYTES + 1  # every byte, and the end-of-document token


def read_texts(paths: list[str], key: str) -> Iterator[str]:
    """The texts under ``key``, in order.

    Raises:
        ValueError: a line is not JSON or has no text under ``key``; names the file and the line.
    """
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield _text(line, key, f"{path}, line {number}")


def _text(line: str, key: str, where: str) -> str:
    try:
        text = json.loads(line)[key]
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f'{where}: there is no key "{key}": name a key with --json-key') from error
    if not isinstance(text, str):
        raise ValueError(f'{where}: the value of "{key}" is of type {type(text).__name__}, not text')
    return text


def train(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE as in GPT-2 (Radford et al. 2019): any text can be written, and comes back byte for byte.

    The same texts give the same tokenizer; pairs of equal frequency are merged in the order of their ids.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_DOCUMENT], initial_alphabet=alphabet, show_progress=True
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder: tokenizer.json (last), tokenizer_config.json, vocab.json and merges.txt.

    Raises:
        OSError: a file cannot be written.
    """
    model = json.loads(tokenizer.to_str())["model"]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_DOCUMENT}
    contents = {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "tokenizer.json": tokenizer.to_str(pretty=True),
    }
    with atomic_files(*(folder / name for name in contents)) as temporary:
        for path, content in zip(temporary, contents.values(), strict=True):
            path.write_text(content, encoding="utf-8", newline="\n")


def train_tokenizer(args: Namespace) -> None:
    """Train and save.

    Raises:
        ValueError: bad input, or too little text for the vocabulary.
        OSError: a file cannot be read or written.
    """
    if args.vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"--vocab-size {args.vocab_size} is less than {SMALLEST_VOCABULARY}, the bytes and {END_OF_DOCUMENT}"
        )
    texts = list(read_texts(args.input, args.json_key))
    tokenizer = train(texts, args.vocab_size)
    if tokenizer.get_vocab_size() < args.vocab_size:
        size = tokenizer.get_vocab_size()
        raise ValueError(
            f"{', '.join(args.input)}: too little text, it gives {size} tokens: use --vocab-size {size} or less"
        )
    save(tokenizer, Path(args.output_dir))
    print(f"{args.output_dir}: {args.vocab_size} tokens from {len(texts)} documents")


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="jsonl files")
    parser.add_argument("--json-key", default="text", help="the key of the text")
    parser.add_argument("--vocab-size", type=positive_int, default=2048, help="tokens, end of document included")
    parser.add_argument("--output-dir", required=True, help="folder to write")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: train_tokenizer(parse_arguments()))
