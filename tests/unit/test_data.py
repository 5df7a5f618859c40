"""Which samples a training reads, in which order on which rank, and what is said about files it cannot read."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from parallel_launch import parallel_launch
from token_files import write_dataset

SEQUENCE, VOCABULARY = 8, 64


def flags(**changes):
    """What the trainer's command line says to the data modules."""
    paths = dict.fromkeys(("data_path", "train_data_path", "valid_data_path", "test_data_path", "data_cache_path"))
    run = {"train_iters": 4, "train_samples": None, "eval_iters": 1, "eval_interval": 2, "skip_train": False}
    batch = {"micro_batch_size": 2, "global_batch_size": 8, "seq_length": SEQUENCE, "seed": 1234}
    loader = {"num_workers": 0, "dataloader_type": "single", "consumed_train_samples": 0, "consumed_valid_samples": 0}
    masks = {"reset_position_ids": False, "reset_attention_mask": False, "eod_mask_loss": False}
    vocabulary = {"tokenizer_type": "NullTokenizer", "vocab_size": VOCABULARY - 1, "padded_vocab_size": VOCABULARY}
    fixed = {"mock_data": False, "split": "8,1,1"}
    return Namespace(**(paths | run | batch | loader | masks | vocabulary | fixed | changes))


def documents(number, length=50):
    """Documents that count up from different tokens, so that a sample shows where it was cut."""
    return [[(7 * i + k) % (VOCABULARY - 1) for k in range(length)] for i in range(number)]


@pytest.fixture
def prefix(tmp_path):
    return write_dataset(tmp_path / "data", documents(20))


# Everything below that builds datasets runs in processes of its own: they need process groups.


def start(**sizes):
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(**sizes)


def build(args):
    from megatron.training.data import build_data_iterators, build_train_valid_test_datasets
    from megatron.training.tokenizer import build_tokenizer

    datasets = build_train_valid_test_datasets(args, build_tokenizer(args))
    return datasets, build_data_iterators(args, datasets)


def micro_batches(args, split="train", **sizes):
    """All tokens that this rank reads of a split: [micro-batches, micro_batch_size, sequence]."""
    start(**sizes)
    _, iterators = build(args)
    return np.array([sample["tokens"].tolist() for sample in getattr(iterators, split)[0]])


def read_whole_datasets(args):
    """Every sample of train, valid and test as the list of its seq_length + 1 tokens."""
    start()
    datasets, _ = build(args)
    return [
        None
        if data is None
        else [[*data[i]["tokens"].tolist(), data[i]["labels"][-1].item()] for i in range(len(data))]
        for data in datasets
    ]


def global_batches(ranks, micro_batches_a_step):
    """The rows of each step, as sorted lists, from every rank's micro-batches."""
    steps = len(ranks[0]) // micro_batches_a_step
    return [
        sorted(
            row
            for rank in ranks
            for row in rank[step * micro_batches_a_step :][:micro_batches_a_step].reshape(-1, SEQUENCE).tolist()
        )
        for step in range(steps)
    ]


def test_an_epoch_cuts_the_documents_into_samples_that_overlap_by_one_token(tmp_path):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY - 1, 10 * SEQUENCE + 1).tolist()
    prefix = write_dataset(tmp_path / "one", [tokens])
    args = flags(data_path=[prefix], split="1,0,0", train_iters=1, global_batch_size=10, eval_iters=0)
    [(train, valid, test)] = parallel_launch(1, read_whole_datasets, args)
    assert sorted(train) == sorted(tokens[i * SEQUENCE : (i + 1) * SEQUENCE + 1] for i in range(10))
    assert train != sorted(train)  # shuffled
    assert valid is test is None


def test_train_valid_and_test_share_no_document(tmp_path):
    prefix = write_dataset(tmp_path / "data", [[number] * 40 for number in range(10)])
    splits = parallel_launch(1, read_whole_datasets, flags(data_path=[prefix], split="6,3,1"))[0]
    found = [{token for sample in split for token in sample} for split in splits]
    assert found == [set(range(6)), {6, 7, 8}, {9}]


def test_weights_share_out_the_samples(tmp_path):
    prefixes = [write_dataset(tmp_path / str(i), [[i] * 50] * 20) for i in (1, 2)]
    args = flags(data_path=["3", prefixes[0], "1.0", prefixes[1]], train_iters=5)
    train = parallel_launch(1, read_whole_datasets, args)[0][0]
    assert [sum(sample[0] == i for sample in train) for i in (1, 2)] == [30, 10]


def test_each_split_can_have_files_of_its_own(tmp_path):
    prefixes = [write_dataset(tmp_path / str(i), [[i] * 50] * 5) for i in (1, 2)]
    args = flags(train_data_path=prefixes[:1], valid_data_path=prefixes[1:], split=None)
    train, valid, test = parallel_launch(1, read_whole_datasets, args)[0]
    assert ({s[0] for s in train}, {s[0] for s in valid}, test) == ({1}, {2}, None)


def test_an_empty_split_of_which_no_sample_is_wanted_is_not_built(tmp_path):
    prefix = write_dataset(tmp_path / "data", documents(3))
    args = flags(data_path=[prefix], split="969,30,1", eval_iters=0)
    train, valid, test = parallel_launch(1, read_whole_datasets, args)[0]
    assert len(train) >= 32 and valid is test is None


def refuse_to_start(*_args, **_kwargs):
    raise AssertionError("a process was started")


def build_without_starting_processes(args):
    subprocess.Popen.__init__ = refuse_to_start
    from megatron.core.datasets import helpers_cpp

    read_whole_datasets(args)
    return Path(helpers_cpp.__file__).suffix


def test_nothing_is_compiled_at_run_time(prefix):
    assert parallel_launch(1, build_without_starting_processes, flags(data_path=[prefix])) == [".so"]


@pytest.mark.parametrize("kind", ["single", "cyclic"])
def test_a_global_batch_has_the_same_samples_for_any_data_parallel_size(prefix, kind):
    args = flags(data_path=[prefix], dataloader_type=kind)
    launch = steps_of_both_kinds if kind == "cyclic" else micro_batches
    found = [global_batches(parallel_launch(size, launch, args), 4 // size) for size in (1, 2, 4)]
    assert len(found[0]) >= 4
    assert all(batches[:4] == found[0][:4] for batches in found)
    assert found[0][0] != found[0][1]


def steps_of_both_kinds(args):
    """The first 4 steps: a cyclic iterator does not end."""
    from megatron.core import parallel_state

    start()
    iterator = build(args)[1].train[0]
    num_micro_batches = 4 * 4 // parallel_state.get_data_parallel_world_size()
    return np.array([next(iterator)["tokens"].tolist() for _ in range(num_micro_batches)])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_resuming_in_the_middle_reads_exactly_the_samples_that_were_left(prefix, split, num_workers):
    args = flags(data_path=[prefix], num_workers=num_workers)
    [whole] = parallel_launch(1, micro_batches, args, split)
    setattr(args, f"consumed_{split}_samples", 8)
    ranks = parallel_launch(2, micro_batches, args, split)
    rest = np.stack(ranks, axis=1).reshape(-1, 2, SEQUENCE)
    assert np.array_equal(rest, whole[4 : 4 + len(rest)]) and len(rest) >= 8
    assert not np.array_equal(rest[:4], whole[:4])


def test_the_sampler_gives_every_position_once_and_the_ranks_differ():
    from megatron.training.data_sampler import SequentialSampler

    ranks = [list(SequentialSampler(27, 4, 2, rank, 4)) for rank in range(4)]
    assert ranks[0] == [[4, 5], [12, 13]] and ranks[3] == [[10, 11], [18, 19]]
    assert sorted(i for rank in ranks for batch in rank for i in batch) == list(range(4, 20))
    assert [len(SequentialSampler(27, consumed, 2, 0, 4)) for consumed in (0, 27, 100)] == [3, 0, 0]


def cyclic(num, consumed, rank, size, count):
    from megatron.training.data_sampler import CyclicSampler

    sampler = iter(CyclicSampler(num, consumed, 2, rank, size, seed=5))
    return [i for _ in range(count) for i in next(sampler)]


def test_the_cyclic_sampler_shuffles_every_pass_anew_and_goes_on_where_it_stopped():
    whole = cyclic(10, 0, 0, 1, 15)
    assert [sorted(whole[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert whole[:10] != whole[10:20] != whole[20:30]
    assert cyclic(10, 14, 0, 1, 8) == whole[14:]
    halves = [cyclic(10, 14, rank, 2, 4) for rank in (0, 1)]
    assert [i for step in range(4) for half in halves for i in half[2 * step : 2 * step + 2]] == whole[14:]


def random_numbers_after_reading(args):
    import torch
    from torch.utils.data import DataLoader

    start()
    states = [torch.get_rng_state()]
    for split in build(args)[1][:3]:
        next(split[0])
    states.append(torch.get_rng_state())
    next(iter(DataLoader([1, 2])))
    states.append(torch.get_rng_state())
    return [torch.equal(states[0], state) for state in states]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_random_numbers_of_the_training_alone(prefix, num_workers):
    args = flags(data_path=[prefix], num_workers=num_workers)
    # The last is what an ordinary DataLoader does.
    assert parallel_launch(1, random_numbers_after_reading, args) == [[True, True, False]]


def batches(args, sizes, count):
    from megatron.training.batch import get_batch

    start(**sizes)
    _, iterators = build(args)
    got = [get_batch(iterators.train[0], args)._asdict() for _ in range(count)]
    arrays = [{key: None if value is None else value.numpy() for key, value in batch.items()} for batch in got]
    return arrays, iterators.num_train_samples


@pytest.mark.parametrize("masks", [False, True])
def test_every_tensor_parallel_rank_gets_the_same_micro_batch(prefix, masks):
    args = flags(data_path=[prefix], reset_attention_mask=masks, eod_mask_loss=True, reset_position_ids=masks)
    ranks = parallel_launch(4, batches, args, {"tensor_model_parallel_size": 2}, 3)
    assert len({count for _, count in ranks}) == 1 and ranks[0][1] >= 32
    for one, other in [(0, 1), (2, 3)]:
        for left, right in zip(ranks[one][0], ranks[other][0], strict=True):
            assert all(np.array_equal(left[key], right[key]) for key in left)
    assert not np.array_equal(ranks[0][0][0]["tokens"], ranks[2][0][0]["tokens"])
    batch = ranks[1][0][0]
    assert np.array_equal(batch["labels"][:, :-1], batch["tokens"][:, 1:])
    assert (batch["loss_mask"].dtype, batch["tokens"].dtype) == (np.float32, np.int64)
    assert (batch["attention_mask"] is not None) == masks


def test_context_parallel_ranks_hold_the_chunks_of_one_sample_in_balanced_pairs(prefix):
    args = flags(data_path=[prefix])
    [([whole], _)] = parallel_launch(1, batches, args, {}, 1)
    args.global_batch_size = 4
    sizes = {"context_parallel_size": 2, "tensor_model_parallel_size": 2}
    ranks = [rank[0][0] for rank in parallel_launch(4, batches, flags(data_path=[prefix]), sizes, 1)]
    for key in ("tokens", "labels", "loss_mask", "position_ids"):
        chunks = np.split(whole[key], 4, axis=1)
        for rank, pair in [(0, (0, 3)), (1, (0, 3)), (2, (1, 2)), (3, (1, 2))]:
            assert np.array_equal(ranks[rank][key], np.concatenate([chunks[i] for i in pair], axis=1))


@pytest.mark.parametrize("masks", [False, True])
def test_a_middle_pipeline_stage_reads_nothing_unless_the_mask_depends_on_the_data(prefix, masks):
    args = flags(data_path=[prefix], reset_attention_mask=masks)
    ranks = [rank[0][0] for rank in parallel_launch(3, batches, args, {"pipeline_model_parallel_size": 3}, 1)]
    assert np.array_equal(ranks[0]["tokens"], ranks[2]["tokens"])
    assert (ranks[1]["tokens"] is None) != masks


def test_a_document_boundary_resets_mask_and_positions_where_asked(tmp_path):
    eod = VOCABULARY - 1
    prefix = write_dataset(tmp_path / "data", [[1, 2, eod, 3, 4, 5, eod, 6, 7]])
    changes = {"split": "1,0,0", "train_iters": 1, "global_batch_size": 1, "micro_batch_size": 1, "eval_iters": 0}
    resets = {"reset_attention_mask": True, "reset_position_ids": True, "eod_mask_loss": True}
    [([batch], _)] = parallel_launch(1, batches, flags(data_path=[prefix], **changes, **resets), {}, 1)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 0]]
    assert batch["loss_mask"].tolist() == [[1, 1, 0, 1, 1, 1, 0, 1]]
    part = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    expected = (part[:, None] != part[None, :]) | (np.arange(8)[:, None] < np.arange(8)[None, :])
    assert np.array_equal(batch["attention_mask"][0, 0], expected)


def test_mock_data_needs_no_files():
    arrays, count = parallel_launch(1, batches, flags(mock_data=True, split=None), {}, 2)[0]
    assert arrays[0]["tokens"].shape == (2, SEQUENCE) and arrays[0]["tokens"].max() < VOCABULARY
    assert count >= 32


def test_the_end_of_data_drawn_once_is_known_on_every_rank(tmp_path):
    prefixes = [write_dataset(tmp_path / str(i), documents(10)) for i in (1, 2)]
    args = flags(data_path=prefixes, train_iters=1000, eval_iters=0)
    ranks = parallel_launch(2, batches, args, {"tensor_model_parallel_size": 2}, 1)
    expected = 2 * ((8 * 50 - 1) // SEQUENCE)  # 8 of 10 documents of 50 tokens, of each
    assert [count for _, count in ranks] == [expected, expected]


def test_validation_data_drawn_once_that_is_too_little_is_refused_at_start(tmp_path):
    prefixes = [write_dataset(tmp_path / str(i), documents(10)) for i in (1, 2)]
    args = flags(data_path=prefixes, eval_iters=2)
    with pytest.raises(ValueError, match="12 valid samples but the run draws 48: .* weights"):
        parallel_launch(1, batches, args, {}, 1)
    weighted = flags(data_path=["1", prefixes[0], "1", prefixes[1]], eval_iters=2)
    parallel_launch(1, batches, weighted, {}, 1)


# Workers are told to end, as a scheduler tells all processes of a job; the trainer reads on and exits beside them.
LIVE_WORKERS = """
import os, sys, tempfile
from sdp4bit_patches import cpu_device
cpu_device.install()
import torch, test_data
store = torch.distributed.FileStore(tempfile.mktemp(), 1)
torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
test_data.start()
_, iterators = test_data.build(test_data.flags(mock_data=True, split=None, num_workers=2, train_iters=1000))
next(iterators.train[0])
children = [child.pid for child in torch.multiprocessing.active_children()]
for child in children if sys.argv[1] == "signalled" else []:
    os.kill(child, 15)
for _ in range(20):
    next(iterators.train[0])
print(len(children), len(torch.multiprocessing.active_children()))
"""


@pytest.mark.parametrize("workers", ["signalled", "untouched"])
def test_workers_outlive_a_first_sigterm_and_do_not_keep_the_trainer_from_exiting(workers):
    path = os.pathsep.join(str(Path(__file__).parents[up]) for up in (0, 1, 2))
    command = [sys.executable, "-W", "ignore", "-c", LIVE_WORKERS, workers]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "2 2\n"), done.stderr
    assert "Traceback" not in done.stderr


def check(args):
    from megatron.training.data_files import check_data_files

    check_data_files(args)


def cut(path, num_bytes):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:num_bytes])


def test_good_files_pass(prefix):
    check(flags(data_path=[prefix]))
    check(flags(data_path=["0.5", prefix, "2", prefix], split="1,1"))
    check(flags(train_data_path=[prefix], valid_data_path=[prefix], split=None))
    check(flags(mock_data=True))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda p: Path(f"{p}.idx").unlink(), r"--data-path .*data: .*data\.idx does not exist"),
        (lambda p: Path(f"{p}.bin").unlink(), r"data\.bin does not exist"),
        (lambda p: cut(f"{p}.bin", -1), r"data\.bin is truncated: 1999 of 2000 bytes"),
        (lambda p: cut(f"{p}.bin", 0), r"data\.bin is truncated: 0 of 2000 bytes"),
        (lambda p: cut(f"{p}.idx", -1), r"data\.idx is truncated: 441 of 442 bytes"),
        (lambda p: cut(f"{p}.idx", 20), r"data\.idx is truncated: 20 bytes"),
        (lambda p: Path(f"{p}.idx").write_bytes(b"x" * 400), r"data\.idx is not the index of a token dataset"),
        (lambda p: Path(f"{p}.bin").write_bytes(bytes(2002)), r"has 2002 bytes but its \.idx describes 2000"),
        (lambda p: write_dataset(p, [[1] * 500, [VOCABULARY]] * 20), "token id 64 but the vocabulary has 64 ids"),
        (lambda p: write_dataset(p, [[1] * 500, [-1]] * 20, np.int32), "token id -1 but the vocabulary has 64 ids"),
    ],
)
def test_a_damaged_dataset_is_named(prefix, damage, sentence):
    damage(prefix)
    with pytest.raises(ValueError, match=sentence):
        check(flags(data_path=[prefix]))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data_path": ["half", "data", "0.5", "data"]}, "--data-path half data 0.5 data does not read WEIGHT PREFIX"),
        ({"data_path": ["0.5", "data", "0.5"]}, "does not read WEIGHT PREFIX"),
        ({"data_path": ["-1", "data"]}, "every weight has to be above 0"),
        ({"data_path": ["nan", "data"]}, "every weight has to be above 0"),
        ({"split": "969,thirty,1"}, "--split 969,thirty,1 is not three shares"),
        ({"split": "0,0,0"}, "--split 0,0,0 is not three shares"),
        ({"split": "9,-1,1"}, "is not three shares"),
        ({"split": "1,1,1,1"}, "is not three shares"),
        ({"split": ""}, "is not three shares"),
        ({"split": "0,1,1"}, "give no documents for training"),
        ({"valid_data_path": ["data"], "data_path": None}, "give no documents for training"),
        ({"seq_length": 50}, "its valid share has 1 documents with 50 tokens, fewer than the 51 of one sequence"),
        ({"split": "969,30,1"}, "its valid share has 0 documents with 0 tokens, fewer than the 9 .* or --eval-iters 0"),
        ({"train_data_path": ["nowhere"], "data_path": None}, "--train-data-path nowhere: nowhere.idx does not exist"),
    ],
)
def test_flags_that_do_not_fit_the_data_are_named(tmp_path, monkeypatch, changes, sentence):
    write_dataset(tmp_path / "data", documents(10))
    monkeypatch.chdir(tmp_path)
    settings = {"data_path": ["data"], "split": "8,1,1"} | changes
    with pytest.raises(ValueError, match=sentence):
        check(flags(**settings))


def test_a_token_outside_the_vocabulary_is_found_at_both_ends_of_a_large_file(tmp_path, monkeypatch):
    from megatron.training import data_files

    monkeypatch.setattr(data_files, "_MIB", 1 << 10)
    monkeypatch.setattr(data_files, "_SCANNED_MIB", 2)
    for place in (0, 9_999):
        document = [1] * 10_000
        document[place] = VOCABULARY + 5
        with pytest.raises(ValueError, match="token id 69"):
            check(flags(data_path=[write_dataset(tmp_path / "data", [document] + [[1] * 20] * 2)], split="1,1,1"))


def test_a_damaged_index_cache_is_named_and_a_good_one_passes(prefix):
    parallel_launch(1, read_whole_datasets, flags(data_path=[prefix]))
    check(flags(data_path=[prefix]))
    shuffle = next((Path(prefix) / "cache").rglob("*train-shuffle_index.npy"))
    cut(shuffle, -4)
    with pytest.raises(ValueError, match=r"train-shuffle_index\.npy is damaged .* delete"):
        check(flags(data_path=[prefix]))


def test_data_preprocessed_again_under_the_same_name_is_not_read_through_the_old_index(tmp_path):
    args = flags(data_path=[str(tmp_path / "data")], data_cache_path=str(tmp_path / "cache"))
    for length in (50, 30, 70):  # a stale index would point past the shorter documents, or miss the longer ones
        write_dataset(tmp_path / "data", documents(20, length))
        cached, fresh = (
            parallel_launch(1, read_whole_datasets, args)[0],
            parallel_launch(
                1, read_whole_datasets, flags(data_path=args.data_path, data_cache_path=str(tmp_path / f"{length}"))
            )[0],
        )
        assert cached == fresh
    assert len(list((tmp_path / "cache").iterdir())) == 3
