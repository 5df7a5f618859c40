"""Tokenizers of the trainer, and the one that is trained on the spot."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest

from megatron.training.tokenizer import build_tokenizer, padded_vocab_size
from tools.train_tokenizer import read_texts, save, train

SIZE = 290  # what so little text can fill
TEXTS = ["def hello(name):\n    return f'hello {name}'\n", "the quick brown fox, the quick brown dog\n" * 5] * 4
UNICODE = "naïve Zürich 東京 🦊\t\r\n\x00 \u00a0end"


def flags(**changes):
    names = ("tokenizer_type", "tokenizer_model", "vocab_file", "merge_file", "vocab_size")
    sizes = {"make_vocab_size_divisible_by": 128, "tensor_model_parallel_size": 1}
    return Namespace(**(dict.fromkeys(names) | sizes | changes))


def hugging_face(folder):
    return build_tokenizer(flags(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder)))


def gpt2(folder):
    files = {"vocab_file": str(folder / "vocab.json"), "merge_file": str(folder / "merges.txt")}
    return build_tokenizer(flags(tokenizer_type="GPT2BPETokenizer", **files))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save(train(TEXTS, SIZE), folder)
    return folder


def test_gpt2_bpe_merges_pairs_in_the_order_of_the_merges_file(tmp_path):
    tokens = ["h", "e", "l", "o", "he", "ll", "\u0120", "hell", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl l\n")
    tokenizer = gpt2(tmp_path)
    assert tokenizer.tokenize("hello hel") == [4, 5, 3, 6, 4, 2]  # no merge makes "hell" of "he" and "ll"
    assert (tokenizer.eod, tokenizer.vocab_size) == (8, 9)
    assert tokenizer.detokenize([4, 5, 3, 6, 4, 2]) == "hello hel"


def test_both_ways_of_reading_a_trained_folder_give_the_same_ids(folder):
    for text in [*TEXTS, UNICODE]:
        assert hugging_face(folder).tokenize(text) == gpt2(folder).tokenize(text)
    assert hugging_face(folder).eod == gpt2(folder).eod
    assert hugging_face(folder).vocab == gpt2(folder).vocab


def test_any_text_comes_back_byte_for_byte(folder):
    for text in [*TEXTS, UNICODE]:
        assert hugging_face(folder).detokenize(hugging_face(folder).tokenize(text)) == text


def test_a_trained_tokenizer_has_the_asked_size_and_shortens_its_own_text(folder):
    tokenizer = hugging_face(folder)
    assert tokenizer.vocab_size == SIZE
    assert len(tokenizer.tokenize(TEXTS[0])) < len(TEXTS[0].encode())


def test_training_twice_gives_the_same_files_with_any_number_of_threads(tmp_path, monkeypatch):
    for name, parallel in [("one", "false"), ("two", "true"), ("three", "true")]:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        save(train(TEXTS, SIZE), tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
        assert file.read_bytes() == (tmp_path / "three" / file.name).read_bytes()


def test_other_texts_give_another_tokenizer(folder):
    other = train([text.upper() for text in TEXTS], 280)
    assert other.encode("the quick").ids != hugging_face(folder).tokenize("the quick")


@pytest.mark.parametrize("eos", ["<stop>", {"content": "<stop>", "lstrip": False}])
def test_the_end_of_document_is_the_eos_token_of_tokenizer_config(folder, tmp_path, eos):
    raw = json.loads((folder / "tokenizer.json").read_text())
    flags_of_token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    raw["added_tokens"].append({"id": 305, "content": "<stop>", "special": True, **flags_of_token})
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    tokenizer = hugging_face(tmp_path)
    assert tokenizer.eod == tokenizer.vocab["<stop>"] == tokenizer.vocab_size - 1


def test_the_null_tokenizer_adds_its_end_of_document_to_the_vocabulary():
    tokenizer = build_tokenizer(flags(tokenizer_type="NullTokenizer", vocab_size=2047))
    assert (tokenizer.vocab_size, tokenizer.eod) == (2048, 2047)
    assert tokenizer.tokenize("3 1 2") == [3, 1, 2]


def test_identifiers_follow_the_content_and_not_the_path(folder, tmp_path):
    save(train(TEXTS, SIZE), tmp_path / "moved")
    save(train(TEXTS, SIZE - 1), tmp_path / "other")
    assert hugging_face(tmp_path / "moved").unique_identifiers == hugging_face(folder).unique_identifiers
    assert hugging_face(tmp_path / "other").unique_identifiers != hugging_face(folder).unique_identifiers


@pytest.mark.parametrize(
    ("size", "wanted", "multiple", "tensor", "expected"),
    [
        (2048, None, 128, 1, 2048),
        (2049, None, 128, 1, 2176),
        (50257, None, 128, 1, 50304),
        (50257, None, 128, 2, 50432),
        (50257, None, 1, 1, 50257),
        (2048, 3000, 128, 1, 3072),
    ],
)
def test_the_vocabulary_is_padded_to_a_multiple_that_tensor_parallelism_divides(
    size, wanted, multiple, tensor, expected
):
    args = flags(tokenizer_type="HuggingFaceTokenizer", vocab_size=wanted)
    args.make_vocab_size_divisible_by, args.tensor_model_parallel_size = multiple, tensor
    assert padded_vocab_size(size, args) == expected


def test_a_vocab_size_below_the_tokenizers_is_refused():
    with pytest.raises(ValueError, match="--vocab-size 1000 is smaller than the tokenizer's 2048"):
        padded_vocab_size(2048, flags(tokenizer_type="HuggingFaceTokenizer", vocab_size=1000))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokenizer_type": "T5Tokenizer"}, "T5Tokenizer is none of GPT2BPETokenizer, HuggingFaceTokenizer"),
        ({"tokenizer_type": "GPT2BPETokenizer"}, "needs --vocab-file"),
        ({"tokenizer_type": "HuggingFaceTokenizer"}, "needs --tokenizer-model"),
        ({"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "nowhere"}, "nowhere does not exist"),
        ({"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "empty"}, "empty has no tokenizer.json"),
        ({"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "broken"}, "tokenizer.json is not a tokenizer"),
        (
            {"tokenizer_type": "GPT2BPETokenizer", "vocab_file": "broken/tokenizer.json", "merge_file": "broken"},
            "are not a BPE vocabulary",
        ),
        ({"tokenizer_type": "NullTokenizer"}, "needs --vocab-size"),
    ],
)
def test_a_flag_or_file_that_is_missing_or_wrong_is_named(tmp_path, monkeypatch, changes, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=sentence):
        build_tokenizer(flags(**changes))


def test_a_vocabulary_without_end_of_document_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="<|endoftext|> is not in the vocabulary"):
        gpt2(tmp_path)


def test_the_trainer_names_the_line_it_cannot_read(tmp_path):
    path = tmp_path / "in.jsonl"
    for line, reason in [("{", "not JSON"), ('{"body": "x"}', 'no key "text"'), ('{"text": 1}', "type int, not text")]:
        path.write_text('{"text": "fine"}\n' + line + "\n")
        with pytest.raises(ValueError, match=f"line 2: .*{reason}"):
            list(read_texts([str(path)], "text"))
