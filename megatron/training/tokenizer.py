"""Tokenizers by Megatron's ``--tokenizer-type`` names, with the properties that megatron.core's datasets read.

megatron.core.tokenizers is used as it is for NullTokenizer. Its text tokenizers need ``transformers`` (also to read
GPT-2's vocab/merges files), which fetches from the network by name and is large beside what is used of it. Therefore
the text tokenizers here stand on the ``tokenizers`` package, the library under the "fast" tokenizers of transformers,
behind megatron.core's own base class; a file that either reads gives the same ids.
"""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import NoReturn

from megatron.core.tokenizers import MegatronTokenizer, MegatronTokenizerBase
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END_OF_DOCUMENT = "<|endoftext|>"
TOKENIZER_TYPES = ("GPT2BPETokenizer", "HuggingFaceTokenizer", "NullTokenizer")


class TextTokenizer(MegatronTokenizerBase):
    """A ``tokenizers.Tokenizer`` behind the interface of megatron.core.

    There is no ``pad``: GPTDataset then uses -1, which no document can hold.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, end_of_document: str) -> None:
        super().__init__(str(path), config={})
        self._tokenizer = tokenizer
        self._eod = tokenizer.token_to_id(end_of_document)
        if self._eod is None:
            raise ValueError(f"the end-of-document token {end_of_document} is not in the vocabulary of {path}")
        # An id can be missing in between, and the embedding table is indexed by id: the largest counts.
        self._vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def tokenize(self, text: str) -> list[int]:
        """Token ids of ``text``; nothing is put before or after it (``--append-eod`` is the caller's)."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def detokenize(self, ids: list[int]) -> str:
        """The text of ``ids``, special tokens spelled out."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    @property
    def vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._vocab_size

    @property
    def eod(self) -> int:
        """The id of the end-of-document token."""
        return self._eod

    @property
    def unique_identifiers(self) -> OrderedDict:
        """What megatron.core keys its index cache by: the content, so that a moved folder stays the same tokenizer."""
        content = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()
        return OrderedDict({"class": type(self).__qualname__, "sha256": content, "eod": self._eod})

    def apply_chat_template(self) -> NoReturn:
        """Pretraining has no conversations; megatron.core's base class asks for the method."""
        raise NotImplementedError("tokenizers for pretraining have no chat template")


def build_tokenizer(args: Namespace) -> MegatronTokenizerBase:
    """Make the tokenizer that the flags name.

    Args:
        args: ``tokenizer_type``; GPT2BPETokenizer reads ``vocab_file`` and ``merge_file``, HuggingFaceTokenizer
            ``tokenizer_model`` (a local folder with tokenizer.json), NullTokenizer ``vocab_size``.

    Raises:
        ValueError: a flag is missing, or a file is missing or is not what it should be.
    """
    if args.tokenizer_type == "GPT2BPETokenizer":
        return _gpt2_bpe_tokenizer(_file(args, "vocab_file"), _file(args, "merge_file"))
    if args.tokenizer_type == "HuggingFaceTokenizer":
        return _hugging_face_tokenizer(_file(args, "tokenizer_model"))
    if args.tokenizer_type == "NullTokenizer":
        return _null_tokenizer(args)
    raise ValueError(f"--tokenizer-type {args.tokenizer_type} is none of {', '.join(TOKENIZER_TYPES)}")


def padded_vocab_size(vocab_size: int, args: Namespace) -> int:
    """Rows of the embedding table: ``vocab_size`` rounded up so that tensor parallelism divides it evenly.

    Args:
        vocab_size: the tokenizer's, number of ids.
        args: ``make_vocab_size_divisible_by``, ``tensor_model_parallel_size``; ``vocab_size`` where the model's
            vocabulary shall be larger than a text tokenizer's.

    Raises:
        ValueError: ``--vocab-size`` is smaller than the tokenizer's vocabulary.
    """
    # NullTokenizer counts the end-of-document id on top of --vocab-size, so its own size is never the smaller one.
    wanted = getattr(args, "vocab_size", None) or vocab_size
    if args.tokenizer_type != "NullTokenizer" and wanted < vocab_size:
        raise ValueError(f"--vocab-size {wanted} is smaller than the tokenizer's {vocab_size}: leave the flag out")
    multiple = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    return -(-max(wanted, vocab_size) // multiple) * multiple


def _gpt2_bpe_tokenizer(vocab_file: Path, merge_file: Path) -> TextTokenizer:
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab_file), str(merge_file)))
    except Exception as error:  # the package raises plain Exception
        raise ValueError(f"{vocab_file} and {merge_file} are not a BPE vocabulary and its merges: {error}") from error
    # GPT-2's own way of cutting text; the end-of-document token is not matched inside text, there either.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TextTokenizer(vocab_file, tokenizer, END_OF_DOCUMENT)


def _hugging_face_tokenizer(folder: Path) -> TextTokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"--tokenizer-model {folder} has no tokenizer.json; nothing is downloaded, give a folder here")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    return TextTokenizer(folder, tokenizer, _end_of_document(folder / "tokenizer_config.json"))


def _end_of_document(config_file: Path) -> str:
    if not config_file.is_file():
        return END_OF_DOCUMENT
    try:
        token = json.loads(config_file.read_text(encoding="utf-8")).get("eos_token")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config_file} is not a JSON object: {error}") from error
    content = token.get("content") if isinstance(token, dict) else token
    return content or END_OF_DOCUMENT


def _null_tokenizer(args: Namespace) -> MegatronTokenizerBase:
    if not args.vocab_size or args.vocab_size < 1:
        raise ValueError(
            "--tokenizer-type NullTokenizer needs --vocab-size N, the number of ids before end-of-document"
        )
    return MegatronTokenizer.from_pretrained(metadata_path={"library": "null"}, vocab_size=args.vocab_size)


def _file(args: Namespace, name: str) -> Path:
    flag = f"--{name.replace('_', '-')}"
    value = getattr(args, name, None)
    if not value:
        raise ValueError(f"--tokenizer-type {args.tokenizer_type} needs {flag}")
    if not Path(value).exists():
        raise ValueError(f"{flag} {value} does not exist")
    return Path(value)
