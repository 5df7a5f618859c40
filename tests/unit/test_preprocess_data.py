"""From text to the files that megatron.core reads: the corpus and the tokenized data set."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from token_files import read_dataset

from megatron.training.tokenizer import build_tokenizer
from tools import make_corpus, preprocess_data, train_tokenizer
from tools.command_line import run_tool

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"document {i}: " + "the quick brown fox jumps over the lazy dog. " * (i % 7) for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer.save(train_tokenizer.train(TEXTS, 300), folder)
    return str(folder)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def run(monkeypatch, module, *words):
    """Run a tool as its command line does, in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    main = {preprocess_data: "preprocess", make_corpus: "make_corpus"}[module]
    with pytest.raises(SystemExit) as exit_:
        run_tool(lambda: getattr(module, main)(module.parse_arguments()))
    return exit_.value.code


@pytest.fixture
def preprocess(monkeypatch, tokenizer_folder, tmp_path):
    """Preprocess files into tmp_path/out; returns the exit code."""

    def call(*inputs, flags=()):
        tokenizer = ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer_folder)
        words = ("--input", *inputs, "--output-prefix", tmp_path / "out", *tokenizer, *flags)
        return run(monkeypatch, preprocess_data, *words)

    return call


def ids(tokenizer_folder, texts, end=()):
    args = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": tokenizer_folder}
    tokenizer = build_tokenizer(type("Args", (), args))
    return [tokenizer.tokenize(text) + [tokenizer.eod for _ in end] for text in texts]


def outputs(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("out")}


@pytest.mark.parametrize("end", [[], ["--append-eod"]])
def test_the_files_hold_the_tokens_of_every_document_in_order(preprocess, tmp_path, tokenizer_folder, end):
    assert preprocess(write_jsonl(tmp_path / "a.jsonl", TEXTS), flags=end) == 0
    assert read_dataset(tmp_path / "out_text_document") == ids(tokenizer_folder, TEXTS, end)


def test_stock_megatron_reads_the_files(preprocess, tmp_path, tokenizer_folder):
    assert preprocess(write_jsonl(tmp_path / "a.jsonl", TEXTS)) == 0
    dataset = IndexedDataset(str(tmp_path / "out_text_document"))
    assert [document.tolist() for document in dataset[:]] == ids(tokenizer_folder, TEXTS)
    assert dataset.document_indices.tolist() == list(range(len(TEXTS) + 1))


def test_the_number_of_workers_does_not_change_a_byte(preprocess, tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess_data, "CHUNK_BYTES", 500)  # many chunks, so that workers can overtake each other
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    results = []
    for workers in (1, 2, 3):
        assert preprocess(source, flags=("--workers", workers)) == 0
        results.append(outputs(tmp_path))
    assert results[0] == results[1] == results[2]
    assert sorted(results[0]) == ["out_text_document.bin", "out_text_document.idx"]


def test_several_files_and_keys_become_one_data_set_a_key(preprocess, tmp_path, tokenizer_folder):
    lines = [{"title": f"title {i}", "body": f"body of {i}"} for i in range(4)]
    for name, part in [("b", lines[:2]), ("a", lines[2:])]:
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in part))
    assert preprocess(tmp_path / "b", tmp_path / "a", flags=("--json-keys", "title", "body")) == 0
    for key in ("title", "body"):
        expected = ids(tokenizer_folder, [line[key] for line in lines])
        assert read_dataset(tmp_path / f"out_{key}_document") == expected


def test_documents_without_text_are_left_out_and_counted(preprocess, tmp_path, tokenizer_folder, capsys):
    assert preprocess(write_jsonl(tmp_path / "a.jsonl", ["one", "", "two"]), flags=["--append-eod"]) == 0
    assert read_dataset(tmp_path / "out_text_document") == ids(tokenizer_folder, ["one", "two"], ["end"])
    assert "1 documents without text were left out" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"text": "cut o', "a.jsonl, line 3: not JSON"),
        (b"", "a.jsonl, line 3: not JSON"),
        (b'{"body": "x"}', "a.jsonl, line 3: there is no key \"text\", only ['body']: name a key with --json-keys"),
        (b'{"text": 7}', 'a.jsonl, line 3: the value of "text" is of type int, not text'),
        (b'["text"]', "a.jsonl, line 3: a JSON list"),
        (b'{"text": "\xff"}', "a.jsonl, line 3: not UTF-8"),
        (b'{"text": "\\ud800"}', "a.jsonl, line 3: "),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(preprocess, tmp_path, capfd, line, sentence, workers):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' * 2 + line + b"\n" + b'{"text": "fine"}\n')
    assert preprocess(tmp_path / "a.jsonl", flags=("--workers", workers)) == 2
    message = capfd.readouterr().err
    assert sentence in message and "Traceback" not in message
    assert outputs(tmp_path) == {}


def test_an_error_leaves_the_older_data_set_as_it_was(preprocess, tmp_path):
    assert preprocess(write_jsonl(tmp_path / "a.jsonl", TEXTS)) == 0
    before = outputs(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\nnot json\n')
    assert preprocess(tmp_path / "a.jsonl") == 2
    assert outputs(tmp_path) == before


def test_a_full_disk_is_named_and_leaves_nothing(preprocess, tmp_path, monkeypatch, capfd):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(IndexedDatasetBuilder, "add_document", full)
    assert preprocess(write_jsonl(tmp_path / "a.jsonl", TEXTS)) == 2
    assert "out_text_document.bin: No space left on device" in capfd.readouterr().err
    assert outputs(tmp_path) == {}


def end_this_worker(_chunk):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_tool_with_a_sentence(preprocess, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(preprocess_data, "_encode_in_worker", end_this_worker)
    assert preprocess(write_jsonl(tmp_path / "a.jsonl", TEXTS), flags=("--workers", 2)) == 2
    assert "a worker process was killed" in capfd.readouterr().err
    assert outputs(tmp_path) == {}


def test_a_missing_input_an_empty_corpus_and_an_unknown_flag_are_named(preprocess, tmp_path, capfd):
    assert preprocess(tmp_path / "nowhere.jsonl") == 2
    assert "nowhere.jsonl: No such file or directory" in capfd.readouterr().err
    assert preprocess(write_jsonl(tmp_path / "a.jsonl", ["", ""])) == 2
    assert 'a.jsonl: no text under "text"' in capfd.readouterr().err
    assert preprocess(tmp_path / "a.jsonl", flags=["--wrokers", "2"]) == 2
    assert "unrecognized arguments: --wrokers 2" in capfd.readouterr().err
    assert outputs(tmp_path) == {}


def test_ids_outside_the_null_tokenizers_vocabulary_are_refused(monkeypatch, tmp_path, capfd):
    source = write_jsonl(tmp_path / "a.jsonl", ["1 2 3", "4 12 5"])
    words = ("--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-type", "NullTokenizer")
    assert run(monkeypatch, preprocess_data, *words, "--vocab-size", 12) == 0
    assert read_dataset(tmp_path / "out_text_document") == [[1, 2, 3], [4, 12, 5]]
    assert run(monkeypatch, preprocess_data, *words, "--vocab-size", 11) == 2
    assert "line 2: token id 12 is outside the vocabulary of 12" in capfd.readouterr().err


def test_the_tool_runs_as_a_file_from_any_folder(tmp_path, tokenizer_folder):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer_folder]
    words = ["--input", "a.jsonl", "--output-prefix", "out", *tokenizer, "--workers", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "300 documents" in done.stdout and "100%" in done.stderr and "Warning" not in done.stderr


@pytest.fixture
def library(tmp_path):
    files = {
        "a.py": "print('a')\n" * 40,
        "copy_of_a.py": "print('a')\n" * 40 + "\n",
        "empty.py": "\n",
        "latin.py": "# -*- coding: latin-1 -*-\n# caf\xe9\n",
        "package/b.py": "import a\n" * 50,
        "package/test/test_b.py": "assert 1\n",
        "site-packages/other.py": "other = 1\n",
        "_sysconfigdata_x.py": "build = 1\n",
    }
    for name, text in files.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_bytes(text.encode("latin-1"))
    return tmp_path / "lib"


def corpus(monkeypatch, library, *flags):
    output = library.parent / "corpus.jsonl"
    assert run(monkeypatch, make_corpus, "--source", library, "--output", output, *flags) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_the_corpus_is_the_distinct_source_files_of_the_library(monkeypatch, library):
    documents = corpus(monkeypatch, library)
    assert sorted(document["path"] for document in documents) == ["a.py", "latin.py", "package/b.py"]
    assert {"# -*- coding: latin-1 -*-\n# caf\xe9\n", "import a\n" * 50} < {document["text"] for document in documents}


def test_the_order_of_the_corpus_follows_the_seed_alone(monkeypatch, library):
    orders = {seed: [d["path"] for d in corpus(monkeypatch, library, "--seed", seed)] for seed in range(8)}
    assert orders == {seed: [d["path"] for d in corpus(monkeypatch, library, "--seed", seed)] for seed in range(8)}
    assert len({tuple(order) for order in orders.values()}) > 1


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one():
    documents = [make_corpus.Document(f"{i}.py", "x" * 100 * i) for i in range(1, 9)]
    whole = list(make_corpus.take_up_to(documents, None))
    limit = len("".join(whole[:5])) + 10
    assert list(make_corpus.take_up_to(documents, limit)) == whole[:5]
    assert len(whole) == 8


def test_a_library_without_source_is_refused(monkeypatch, tmp_path, capfd):
    assert run(monkeypatch, make_corpus, "--source", tmp_path, "--output", tmp_path / "c.jsonl") == 2
    assert "holds no Python source" in capfd.readouterr().err
    assert not (tmp_path / "c.jsonl").exists()
