"""Make the default corpus: the source of the Python standard library on this machine, as jsonl.

Real text on every machine, without a download. One JSON object a line: {"text": source, "path": path in the library}.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
import sys
import sysconfig
import tokenize
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Run as a file, Python looks for modules beside it; `tools` stands in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from tools.atomic_files import atomic_files
from tools.command_line import ToolArgumentParser, positive_int, run_tool

# Not the library's own source, or not text one learns from: other packages; tests (which many distributions ship
# apart, so that corpora would differ between machines); character tables.
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings"}
)
EXCLUDED_FILES = ("_sysconfigdata*.py",)  # written when this machine's Python was built
MIB = 1 << 20


class Document(NamedTuple):
    """One file of the library; ``path`` is relative to it, with forward slashes."""

    path: str
    text: str


def source_files(library: Path) -> list[Path]:
    """The files that go into the corpus, in the order of their names (a folder's own order differs by machine)."""
    return sorted(path for path in library.rglob("*.py") if _is_included(path.relative_to(library)))


def _is_included(path: Path) -> bool:
    return EXCLUDED_FOLDERS.isdisjoint(path.parts) and not any(path.match(pattern) for pattern in EXCLUDED_FILES)


def read_documents(library: Path, files: list[Path]) -> tuple[list[Document], int]:
    """The distinct, non-empty texts of ``files``, and how many files were left out because they are empty or a copy.

    Raises:
        ValueError: a file is not text in the encoding it declares.
    """
    seen: set[bytes] = set()
    documents = []
    for path in tqdm(files, desc="read", unit="file"):
        text = _read_source(path)
        digest = hashlib.sha256(text.strip().encode()).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            documents.append(Document(path.relative_to(library).as_posix(), text))
    return documents, len(files) - len(documents)


def _read_source(path: Path) -> str:
    try:
        with tokenize.open(path) as file:  # obeys the coding line
            return file.read()
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not text: {error}") from error


def take_up_to(documents: list[Document], max_bytes: int | None) -> Iterator[str]:
    """The lines of jsonl, as many as fit: a smaller corpus is the beginning of a larger one."""
    num_bytes = 0
    for document in documents:
        line = json.dumps({"text": document.text, "path": document.path}, ensure_ascii=False) + "\n"
        num_bytes += len(line.encode())
        if max_bytes is not None and num_bytes > max_bytes:
            return
        yield line


def make_corpus(args: Namespace) -> None:
    """Write the corpus.

    Raises:
        ValueError: the library's source is not on this machine, or not one document fits into ``--max-mib``.
        OSError: the file cannot be written.
    """
    library = Path(args.source)
    documents, num_left_out = read_documents(library, source_files(library))
    if not documents:
        raise ValueError(f"{library} holds no Python source: name another folder with --source")
    random.Random(args.seed).shuffle(documents)
    lines = list(take_up_to(documents, args.max_mib and args.max_mib * MIB))
    if not lines:
        raise ValueError(f"--max-mib {args.max_mib} is smaller than the first document")
    with atomic_files(Path(args.output)) as [temporary]:
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
    size = Path(args.output).stat().st_size / MIB
    print(
        f"{args.output}: {len(lines)} of {len(documents)} documents, {size:.1f} MiB, Python {platform.python_version()}"
    )
    print(f"{num_left_out} files were left out as empty or as copies of others")


def parse_arguments() -> Namespace:
    """The command line."""
    parser = ToolArgumentParser(__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="the jsonl file to write")
    parser.add_argument("--source", default=sysconfig.get_paths()["stdlib"], help="folder of Python source to read")
    parser.add_argument("--max-mib", type=positive_int, help="at most so many MiB of jsonl; all of it if not given")
    parser.add_argument("--seed", type=int, default=1234, help="seed of the order of the documents")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(lambda: make_corpus(parse_arguments()))
