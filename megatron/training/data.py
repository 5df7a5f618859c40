"""Datasets and iterators over their micro-batches, from megatron.core's GPTDataset and the data flags."""

from __future__ import annotations

import atexit
import signal
from argparse import Namespace
from collections.abc import Generator
from typing import NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.tokenizers import MegatronTokenizerBase
from torch.utils.data import DataLoader, Dataset

from megatron.training.data_files import index_cache_path
from megatron.training.data_sampler import CyclicSampler, SequentialSampler
from megatron.training.data_sources import SPLITS, num_samples_per_split, sources
from megatron.training.errors import UserError

DataIterator = Generator[dict[str, torch.Tensor]] | None


class Datasets(NamedTuple):
    """One dataset a split; None on ranks that read no data, and where the run has no such split."""

    train: Dataset | None
    valid: Dataset | None
    test: Dataset | None


class DataIterators(NamedTuple):
    """Iterators over micro-batches, one for each model chunk of this rank, None for a chunk that reads no data.

    ``num_train_samples`` is known on every rank (0: no such data): with ``--dataloader-type single`` the training data
    has ended when ``consumed_train_samples`` and one more global batch exceed it. None: it never ends.
    """

    train: list[DataIterator]
    valid: list[DataIterator]
    test: list[DataIterator]
    num_train_samples: int | None
    num_valid_samples: int | None
    num_test_samples: int | None


def reads_data(args: Namespace, vp_stage: int | None = None) -> bool:
    """Whether this rank's model chunk (any chunk, if ``vp_stage`` is None) is given micro-batches.

    The first stage needs tokens, the last needs labels; a mask that depends on the data is needed by every layer.
    """
    if args.reset_attention_mask:
        return True
    ignore_virtual = vp_stage is None
    first = parallel_state.is_pipeline_first_stage(ignore_virtual=ignore_virtual, vp_stage=vp_stage)
    return first or parallel_state.is_pipeline_last_stage(ignore_virtual=ignore_virtual, vp_stage=vp_stage)


def _loads_data(args: Namespace) -> bool:
    """Whether this rank opens the files; the other tensor-parallel ranks are sent the micro-batches."""
    return parallel_state.get_tensor_model_parallel_rank() == 0 and reads_data(args)


def build_train_valid_test_datasets(args: Namespace, tokenizer: MegatronTokenizerBase) -> Datasets:
    """Build the datasets. Collective: every rank calls it, after :func:`check_data_files`.

    The order of samples depends on the data, ``--seed``, ``--seq-length`` and the number of samples drawn (so on
    ``--train-iters``), and not on how the job is spread over ranks.

    Args:
        args: the data flags, ``seq_length``, ``seed`` and what :func:`num_samples_per_split` reads.
        tokenizer: of :func:`build_tokenizer`.
    """
    sizes = num_samples_per_split(args)
    if not any(sizes):
        return Datasets(None, None, None)
    kind = MockGPTDataset if args.mock_data else GPTDataset
    config = _dataset_config(args, tokenizer)
    # An empty split would never be ready (megatron.core counts its epochs until they hold a sample).
    config.split_matrix = config.split_matrix and [
        share if size else None for share, size in zip(config.split_matrix, sizes, strict=True)
    ]
    return Datasets(*BlendedMegatronDatasetBuilder(kind, sizes, lambda: _loads_data(args), config).build())


def _dataset_config(args: Namespace, tokenizer: MegatronTokenizerBase) -> GPTDatasetConfig:
    return GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        tokenizer=tokenizer,
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        # A causal mask is built by attention itself; only one that depends on the data has to travel with it.
        create_attention_mask=args.reset_attention_mask,
        **_source_options(args),
    )


def _source_options(args: Namespace) -> dict:
    if args.mock_data:
        return {"path_to_cache": args.data_cache_path}
    blends = [source and source.blend for source in sources(args)]
    options: dict = {"path_to_cache": str(index_cache_path(args))}
    if args.data_path:
        return options | {"blend": next(filter(None, blends)), "split": args.split}
    return options | {"blend_per_split": blends}


def build_data_iterators(args: Namespace, datasets: Datasets, num_model_chunks: int = 1) -> DataIterators:
    """Iterators that go on after the consumed samples. Collective: every rank calls it.

    torch's random generators are left as they are, so that a resumed run draws the same dropout.

    Args:
        args: ``consumed_train_samples``, ``consumed_valid_samples``, ``micro_batch_size``, ``dataloader_type``,
            ``num_workers``, ``seed``, ``reset_attention_mask``.
        datasets: of :func:`build_train_valid_test_datasets`.
        num_model_chunks: model chunks of this rank (more than 1 in an interleaved pipeline).

    Raises:
        UserError: validation or test data that is drawn once (datasets without weights) does not last for the run.
    """
    consumed = (args.consumed_train_samples, args.consumed_valid_samples, 0)
    iterators = [
        [_chunk_iterator(args, dataset, samples, chunk, num_model_chunks) for chunk in range(num_model_chunks)]
        for dataset, samples in zip(datasets, consumed, strict=True)
    ]
    available = _num_samples_everywhere(args, datasets)
    _check_evaluation_data(args, available)
    return DataIterators(*iterators, *available)


def _check_evaluation_data(args: Namespace, available: list[int | None]) -> None:
    """Training may end with its data, but an evaluation that ran out in the middle would have no loss to report."""
    if available[0] is None:
        return
    num_iterations = (
        args.train_iters if args.skip_train else min(args.train_iters, available[0] // args.global_batch_size)
    )
    drawn = num_samples_per_split(Namespace(**vars(args) | {"train_iters": num_iterations}))
    for split, has, draws in list(zip(SPLITS, available, drawn, strict=True))[1:]:
        if has and has < draws:
            raise UserError(
                f"there are {has} {split} samples but the run draws {draws}: give the datasets weights, so that they "
                "are repeated, or lower --eval-iters"
            )


def _chunk_iterator(
    args: Namespace, dataset: Dataset | None, consumed_samples: int, chunk: int, num_model_chunks: int
) -> DataIterator:
    vp_stage = chunk if num_model_chunks > 1 else None
    if dataset is None or not reads_data(args, vp_stage):
        return None
    iterator = _started_at_first_use(_loader(args, dataset, consumed_samples))
    atexit.register(iterator.close)  # before multiprocessing's own exit, which waits for workers that nobody ended
    return iterator


def _started_at_first_use(loader: DataLoader) -> Generator[dict[str, torch.Tensor]]:
    yield from loader  # only now the loader starts its workers: a run that never tests has none for it


def _loader(args: Namespace, dataset: Dataset, consumed_samples: int) -> DataLoader:
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    shared = (len(dataset), consumed_samples, args.micro_batch_size, rank, size)
    cyclic = args.dataloader_type == "cyclic"
    return DataLoader(
        dataset,
        batch_sampler=CyclicSampler(*shared, seed=args.seed) if cyclic else SequentialSampler(*shared),
        num_workers=args.num_workers,
        multiprocessing_context="fork" if args.num_workers else None,  # else Python 3.14 imports torch in each worker
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_survive_first_signals,
        generator=torch.Generator(),  # else an iterator draws its workers' seed from the generator of the dropout
    )


def _survive_first_signals(_worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process of a job; a worker that ended would fail the checkpoint.

    A second SIGTERM ends it: multiprocessing sends one to a worker that hangs at exit, and then waits for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _num_samples_everywhere(args: Namespace, datasets: Datasets) -> list[int | None]:
    if args.dataloader_type == "cyclic":
        return [None] * len(datasets)
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    lengths = torch.tensor([len(dataset) if dataset is not None else 0 for dataset in datasets], device=device)
    torch.distributed.all_reduce(lengths, torch.distributed.ReduceOp.MAX)
    return lengths.tolist()
