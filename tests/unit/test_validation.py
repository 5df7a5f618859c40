"""Every refusal of a set of arguments is a sentence with the value and the remedy; what is derived is right."""

from __future__ import annotations

import pytest

from megatron.training.arguments import parse_args
from megatron.training.errors import UserError
from megatron.training.validation import validate_args

COMPLETE = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--micro-batch-size 2 --lr 1e-3 --train-iters 10 --mock-data --vocab-size 127"
)
INTERLEAVED = "--pipeline-model-parallel-size 2 --global-batch-size 4"
VIRTUAL = "virtual_pipeline_model_parallel_size"
TP, PP, CP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size"


def validated(flags: str = "", world_size: int = 1, complete: str = COMPLETE):
    return validate_args(parse_args(f"{complete} {flags}".split()), world_size)


def refused(flags: str, world_size: int = 1, complete: str = COMPLETE) -> str:
    with pytest.raises(UserError) as raised:
        validated(flags, world_size, complete)
    sentence = str(raised.value)
    assert "\n" not in sentence and "{" not in sentence
    return sentence


def test_a_complete_command_line_is_accepted_and_nothing_in_it_is_without_effect():
    assert validated().no_effect == {}


# flags, world size, what the sentence has to hold: the value and the flag that mends it
REFUSALS = [
    # parallelism
    (f"{TP} 2", 3, ["3", "2 x 1 x 1 = 2", "processes"]),
    (f"{TP} 2 {PP} 2 {CP} 2", 4, ["4", "2 x 2 x 2 = 8"]),
    (f"{TP} 3", 3, ["--num-attention-heads 4", "--tensor-model-parallel-size 3"]),
    (f"{TP} 4 --ffn-hidden-size 30", 4, ["--ffn-hidden-size 30", "4"]),
    (f"{TP} 2 --kv-channels 16 --hidden-size 63", 2, ["--hidden-size 63", "2"]),
    (f"{PP} 3", 3, ["--num-layers 4", "--pipeline-model-parallel-size 3"]),
    (f"{CP} 3", 3, ["--context-parallel-size 3", "--seq-length 32", "6"]),
    (f"{CP} 2 --reset-attention-mask", 2, ["--reset-attention-mask", "--context-parallel-size"]),
    (f"{TP} 4 {CP} 2 --sequence-parallel --seq-length 12", 8, ["6", "--tensor-model-parallel-size 4", "--seq-length"]),
    (f"{PP} 2 --num-layers-per-virtual-pipeline-stage 3", 2, ["2 layers", "3", "--num-layers"]),
    (f"{PP} 2 --num-layers-per-virtual-pipeline-stage 1 --num-virtual-stages-per-pipeline-rank 2", 2, ["give one"]),
    ("--num-virtual-stages-per-pipeline-rank 2", 1, ["--pipeline-model-parallel-size", "at least 2"]),
    (f"{PP} 2 --num-virtual-stages-per-pipeline-rank 2 --global-batch-size 6", 2, ["3", "--global-batch-size"]),
    ("--num-distributed-optimizer-instances 2", 1, ["--num-distributed-optimizer-instances 2", "set 1"]),
    ("--overlap-param-gather", 1, ["--use-distributed-optimizer", "--overlap-grad-reduce", "add them"]),
    # model
    ("--hidden-size 63", 1, ["--hidden-size 63", "--num-attention-heads 4", "--kv-channels"]),
    ("--group-query-attention --num-query-groups 3", 1, ["--num-attention-heads 4", "--num-query-groups 3"]),
    (
        f"--num-attention-heads 6 --kv-channels 16 --group-query-attention --num-query-groups 3 {TP} 2",
        2,
        ["--num-query-groups 3", "--tensor-model-parallel-size 2"],
    ),
    ("--swiglu --squared-relu", 1, ["--swiglu", "--squared-relu", "drop one"]),
    ("--seq-length 64", 1, ["--seq-length 64", "--max-position-embeddings 32", "shorten"]),
    ("--recompute-activations --recompute-granularity full", 1, ["--recompute-activations", "drop one"]),
    ("--recompute-method block", 1, ["--recompute-granularity full", "add it"]),
    # experts
    ("--expert-model-parallel-size 2", 2, ["--expert-model-parallel-size 2", "--num-experts"]),
    ("--num-experts 3 --expert-model-parallel-size 2", 2, ["--num-experts 3", "--expert-model-parallel-size 2"]),
    ("--num-experts 4 --expert-model-parallel-size 4", 2, ["2", "= 4", "--expert-model-parallel-size"]),
    ("--num-experts 2 --moe-router-topk 3", 1, ["--moe-router-topk 3", "--num-experts 2", "lower it"]),
    (f"--num-experts 2 {TP} 2", 2, ["--sequence-parallel", "add it"]),
    # batch
    ("--global-batch-size 5", 1, ["--global-batch-size 5", "2 x 1 = 2"]),
    ("--global-batch-size 6", 2, ["--global-batch-size 6", "2 x 2 = 4"]),
    ("--global-batch-size 8 --rampup-batch-size 3 2 10", 1, ["--rampup-batch-size 3 2 10", "multiples of 2"]),
    ("--global-batch-size 8 --rampup-batch-size 0 2 10", 1, ["--rampup-batch-size 0 2 10", "positive"]),
    ("--global-batch-size 8 --rampup-batch-size 2 4 10", 1, ["--rampup-batch-size 2 4 10", "8"]),
    ("--global-batch-size 8 --rampup-batch-size 8 2 10", 1, ["--rampup-batch-size 8 2 10", "8"]),
    # schedule
    ("--min-lr 1", 1, ["--min-lr 1.0", "--lr 0.001", "lower it"]),
    ("--lr-warmup-init 1", 1, ["--lr-warmup-init 1.0", "--lr 0.001", "lower it"]),
    ("--train-samples 10", 1, ["--train-iters", "--train-samples", "exactly one"]),
    ("--lr-warmup-iters 10", 1, ["10", "--lr-warmup-iters", "--lr-decay-iters"]),
    ("--lr-warmup-fraction 1.0", 1, ["--lr-warmup-fraction 1.0", "below 1"]),
    ("--lr-warmup-fraction 0.1 --lr-warmup-iters 1", 1, ["--lr-warmup-fraction 0.1", "--lr-warmup-iters"]),
    ("--lr-warmup-samples 4 --lr-warmup-iters 2", 1, ["--lr-warmup-samples 4", "--lr-warmup-iters 2", "give one"]),
    ("--lr-decay-samples 4 --lr-decay-iters 2", 1, ["--lr-decay-samples 4", "--lr-decay-iters 2", "give one"]),
    ("--lr-decay-style WSD", 1, ["WSD", "--lr-wsd-decay-iters"]),
    ("--start-weight-decay 0.1 --end-weight-decay 0.2", 1, ["0.1", "0.2", "--weight-decay-incr-style"]),
    ("--weight-decay-incr-style linear --start-weight-decay 0.1", 1, ["0.1", "--end-weight-decay"]),
    (
        "--weight-decay-incr-style cosine --start-weight-decay 0.2 --end-weight-decay 0.1",
        1,
        ["0.2", "0.1", "--end-weight-decay"],
    ),
    # precision
    ("--bf16 --fp16", 1, ["--bf16", "--fp16", "drop one"]),
    ("--grad-reduce-in-bf16", 1, ["--grad-reduce-in-bf16", "--bf16"]),
    ("--bf16 --grad-reduce-in-bf16 --accumulate-allreduce-grads-in-fp32", 1, ["excludes"]),
    # data
    ("--data-path a", 1, ["one source", "--data-path", "--mock-data"]),
    ("--no-mock-data", 1, ["one source", "--data-path", "--mock-data"]),
    ("--no-mock-data --train-data-path a --split 1,1,1", 1, ["--split", "--train-data-path", "drop it"]),
    ("--no-mock-data --data-path a", 1, ["--tokenizer-type"]),
    ("--tokenizer-type GPT2BPETokenizer --vocab-file v", 1, ["GPT2BPETokenizer", "--merge-file"]),
    ("--tokenizer-type HuggingFaceTokenizer", 1, ["HuggingFaceTokenizer", "--tokenizer-model"]),
    # watching and checkpoints
    ("--save-interval 5", 1, ["--save-interval", "--save"]),
    ("--ckpt-step 5", 1, ["--ckpt-step", "--load"]),
    (
        "--override-opt_param-scheduler --use-checkpoint-opt_param-scheduler",
        1,
        ["--override-opt_param-scheduler", "--use-checkpoint-opt_param-scheduler", "drop one"],
    ),
]


@pytest.mark.parametrize(("flags", "world_size", "parts"), REFUSALS, ids=[flags for flags, _, _ in REFUSALS])
def test_a_combination_that_cannot_be_is_refused_with_the_value_and_the_remedy(flags, world_size, parts):
    sentence = refused(flags, world_size)
    assert all(part in sentence for part in parts), sentence


def test_mock_data_without_a_vocabulary_is_refused():
    assert "--vocab-size" in refused("", complete=COMPLETE.removesuffix("--vocab-size 127"))


def test_what_has_to_be_given_is_asked_for_in_one_sentence():
    sentence = refused("", complete="--num-layers 4 --lr 1")
    assert "--hidden-size --num-attention-heads --seq-length --max-position-embeddings --micro-batch-size" in sentence
    assert "--config" in sentence and "--num-layers" not in sentence


OUT_OF_RANGE = """
--num-layers 0|positive
--hidden-size -64|positive
--num-attention-heads 0|positive
--num-query-groups 0|positive
--kv-channels 0|positive
--max-position-embeddings 0|positive
--make-vocab-size-divisible-by 0|positive
--vocab-size 0|positive
--rotary-percent 1.5|at most 1
--seq-length 0|positive
--micro-batch-size 0|positive
--global-batch-size 0|positive
--train-iters -1|0 or more
--exit-interval 0|positive
--num-experts 0|positive
--expert-model-parallel-size 0|positive
--tensor-model-parallel-size 0|positive
--pipeline-model-parallel-size -1|positive
--context-parallel-size 0|positive
--ddp-bucket-size 0|positive
--distributed-timeout-minutes 0.0|positive
--lr 0.0|positive
--lr nan|finite
--lr inf|finite
--min-lr -1.0|0 or more
--clip-grad -1.0|0 or more
--adam-beta1 1.0|below 1
--hidden-dropout 1.0|below 1
--attention-dropout -0.5|at least 0
--lr-warmup-fraction -0.1|at least 0
--seed -1|0 or more
--seed 2147483648|below
--num-workers -1|0 or more
--log-interval 0|positive
--eval-interval 0|positive
--eval-iters -1|0 or more
--save-interval 0|positive
--check-weight-hash-across-dp-replicas-interval 0|positive
""".split("\n")[1:-1]


@pytest.mark.parametrize("line", OUT_OF_RANGE)
def test_a_number_out_of_range_is_named_with_its_value_and_range(line):
    flags, words = line.split("|")
    sentence = refused(flags)
    assert sentence.startswith(flags) and words in sentence, sentence


def test_every_number_among_the_flags_has_a_range():
    from megatron.training import ranges
    from megatron.training.flags import GROUPS
    from sdp4bit_patches.config import KNOBS

    numbers = {flag.dest for flags in GROUPS.values() for flag in flags if flag.kind in (int, float)}
    checked = {*ranges._POSITIVE, *ranges._NOT_NEGATIVE, *ranges._FRACTION, "rotary_percent"}
    knobs = {knob.name for knob in KNOBS}  # checked by CommConfig
    assert numbers - checked - knobs == {"rampup_batch_size"}  # three numbers, checked together
    assert checked <= numbers


# flags, world size, {attribute: value}
DERIVED = [
    ("", 1, {"ffn_hidden_size": 256, "kv_channels": 16, "num_query_groups": 4, "params_dtype": "float32"}),
    ("--swiglu --hidden-size 512", 1, {"ffn_hidden_size": 1344}),  # 8/3 x 512 = 1365, down to a multiple of 64
    ("--ffn-hidden-size 100 --kv-channels 8", 1, {"ffn_hidden_size": 100, "kv_channels": 8}),
    ("--group-query-attention --num-query-groups 2", 1, {"num_query_groups": 2}),
    ("--use-rotary-position-embeddings", 1, {"position_embedding_type": "rope"}),
    (f"{TP} 2 {PP} 2 {CP} 2", 16, {"data_parallel_size": 2, "world_size": 16, "global_batch_size": 4}),
    ("", 8, {"data_parallel_size": 8, "global_batch_size": 16}),
    ("--train-iters 100 --global-batch-size 8 --lr-warmup-iters 5", 1, {"lr_warmup_steps": 40, "lr_decay_steps": 800}),
    ("--train-iters 100 --global-batch-size 8 --lr-warmup-fraction 0.01", 1, {"lr_warmup_steps": 8}),
    ("--lr-decay-iters 50 --lr-warmup-samples 7", 1, {"lr_decay_steps": 100, "lr_warmup_steps": 7}),
    ("--lr-decay-style WSD --lr-wsd-decay-iters 3", 1, {"lr_wsd_decay_steps": 6}),
    ("--weight-decay 0.3", 1, {"start_weight_decay": 0.3, "end_weight_decay": 0.3}),
    (f"{PP} 2", 2, {VIRTUAL: None, "overlap_p2p_communication": False}),
    (f"{INTERLEAVED} --num-layers-per-virtual-pipeline-stage 1", 2, {VIRTUAL: 2}),
    (f"{INTERLEAVED} --num-virtual-stages-per-pipeline-rank 2", 2, {VIRTUAL: 2}),
    (f"{INTERLEAVED} --num-layers-per-virtual-pipeline-stage 2", 2, {VIRTUAL: None}),
    ("--bf16", 1, {"params_dtype": "bfloat16", "accumulate_allreduce_grads_in_fp32": True}),
    ("--bf16 --grad-reduce-in-bf16", 1, {"accumulate_allreduce_grads_in_fp32": False}),
    ("--fp16", 1, {"params_dtype": "float16"}),
    ("--recompute-activations", 1, {"recompute_granularity": "selective"}),
    ("--recompute-granularity full", 1, {"recompute_method": "uniform", "recompute_num_layers": 1}),
    ("--num-experts 2", 1, {"moe_ffn_hidden_size": 256}),
    ("--no-mock-data --data-path a --tokenizer-type NullTokenizer", 1, {"split": "969,30,1"}),
    ("", 1, {"tokenizer_type": "NullTokenizer"}),
]


@pytest.mark.parametrize(("flags", "world_size", "values"), DERIVED, ids=[f"{f} on {w}" for f, w, _ in DERIVED])
def test_what_follows_from_the_flags_is_filled_in(flags, world_size, values):
    args = validated(flags, world_size)
    assert {name: getattr(args, name) for name in values} == values


def test_train_samples_are_whole_iterations():
    complete = COMPLETE.replace("--train-iters 10", "--train-samples 35 --global-batch-size 8")
    assert validated(complete=complete).train_iters == 4


NO_EFFECT = [
    ("--sequence-parallel", "sequence-parallel", f"{TP} 2"),
    ("--num-query-groups 2", "num-query-groups", "--group-query-attention"),
    ("--rotary-base 500000", "rotary-base", "--position-embedding-type rope"),
    ("--rotary-interleaved", "rotary-interleaved", "--use-rotary-position-embeddings"),
    ("--rope-scaling-factor 2", "rope-scaling-factor", "--use-rope-scaling --position-embedding-type rope"),
    ("--moe-router-topk 1", "moe-router-topk", "--num-experts 2"),
    ("--loss-scale 0", "loss-scale", "--fp16"),
    ("--adam-beta2 0.95", "adam-beta2", "--optimizer adam"),
    ("--min-lr 1e-5", "min-lr", "--lr-decay-style cosine"),
    ("--ddp-bucket-size 100", "ddp-bucket-size", "--overlap-grad-reduce"),
    ("--no-save-optim", "no-save-optim", "--save x"),
    ("--finetune", "finetune", "--load x"),
    ("--tensorboard-log-interval 5", "tensorboard-log-interval", "--tensorboard-dir x"),
    ("--vocab-file x", "vocab-file", "--tokenizer-type GPT2BPETokenizer --merge-file x"),
]
WITHOUT = {"adam-beta2": "--optimizer sgd", "min-lr": "--lr-decay-style constant"}


@pytest.mark.parametrize(("flags", "name", "remedy"), NO_EFFECT)
def test_a_flag_that_changes_nothing_in_this_run_is_listed_and_otherwise_not(flags, name, remedy):
    args = validated(f"{flags} {WITHOUT.get(name, '')}", 2)
    assert list(args.no_effect) == [name] and args.no_effect[name]
    assert validated(f"{flags} {remedy}", 2).no_effect == {}
