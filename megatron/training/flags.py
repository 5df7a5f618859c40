"""Every flag of ``pretrain_gpt.py``, once: name, kind, default, help. Names and meanings are Megatron-LM's.

A TOML key is a flag's name without the dashes in front. On/off flags exist in both senses (``--bf16`` and
``--no-bf16``), so that the command line can overrule a file. The flags of the method come from its own table.
Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdp4bit_patches import config


@dataclass(frozen=True)
class Flag:
    """One command-line flag: ``--name``, read as ``kind`` (``bool`` means on/off), into ``args.<name>``."""

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] | None = None
    nargs: str | int | None = None

    @property
    def dest(self) -> str:
        """The attribute of the parsed arguments."""
        return self.name.replace("-", "_")


def _on_off(name: str, text: str, default: bool = False) -> Flag:
    return Flag(name, bool, default, text)


def _choice(name: str, default: str | None, choices: str, text: str) -> Flag:
    return Flag(name, str, default, text, choices=tuple(choices.split()))


_MODEL = (
    Flag("num-layers", int, None, "number of transformer layers"),
    Flag("hidden-size", int, None, "width of the residual stream"),
    Flag("ffn-hidden-size", int, None, "width of the MLP; 4 x hidden size by default, 8/3 of it with --swiglu"),
    Flag("num-attention-heads", int, None, "number of query heads"),
    Flag("kv-channels", int, None, "elements of a head; hidden size / heads by default"),
    _on_off("group-query-attention", "share each key/value head among several query heads"),
    Flag("num-query-groups", int, 1, "key/value heads with --group-query-attention"),
    Flag("max-position-embeddings", int, None, "longest sequence the model is built for"),
    _choice("position-embedding-type", "learned_absolute", "learned_absolute rope none", "how positions enter"),
    _on_off("use-rotary-position-embeddings", "older spelling of --position-embedding-type rope"),
    Flag("rotary-base", int, 10000, "base period of the rotary embedding"),
    Flag("rotary-percent", float, 1.0, "share of a head that is rotated"),
    _on_off("rotary-interleaved", "rotate neighbouring elements instead of the two halves of a head"),
    _on_off("use-rope-scaling", "Llama-3.1's frequency scaling for long contexts"),
    Flag("rope-scaling-factor", float, 8.0, "factor of --use-rope-scaling"),
    _choice("normalization", "LayerNorm", "LayerNorm RMSNorm", "which normalization"),
    Flag("norm-epsilon", float, 1e-5, "epsilon in the normalization"),
    _on_off("apply-layernorm-1p", "store the norm's weight minus one"),
    _on_off("qk-layernorm", "normalize queries and keys"),
    _on_off("swiglu", "gated SiLU in the MLP"),
    _on_off("squared-relu", "squared ReLU in the MLP"),
    _on_off("disable-bias-linear", "no bias in the linear layers"),
    _on_off("add-qkv-bias", "a bias in the query/key/value projection even with --disable-bias-linear"),
    _on_off("untie-embeddings-and-output-weights", "give the output layer a weight of its own"),
    Flag("make-vocab-size-divisible-by", int, 128, "pad the vocabulary to a multiple of this times TP"),
    Flag("attention-dropout", float, 0.1, "dropout probability of the attention"),
    Flag("hidden-dropout", float, 0.1, "dropout probability of the hidden state"),
    Flag("init-method-std", float, 0.02, "standard deviation of the weights at the start"),
    _on_off("use-cpu-initialization", "initialize the weights on the CPU, the same for every TP size"),
    _choice("transformer-impl", None, "local transformer_engine", "layers; Transformer Engine where it is installed"),
)

_MIXTURE_OF_EXPERTS = (
    Flag("num-experts", int, None, "experts in each mixture-of-experts layer"),
    Flag("moe-router-topk", int, 2, "experts a token goes to"),
    Flag("moe-ffn-hidden-size", int, None, "width of an expert; --ffn-hidden-size by default"),
    _choice(
        "moe-router-load-balancing-type", "aux_loss", "aux_loss seq_aux_loss sinkhorn none", "how load is balanced"
    ),
    Flag("moe-aux-loss-coeff", float, 0.0, "weight of the load balancing loss"),
    Flag("moe-z-loss-coeff", float, None, "weight of the router's z-loss"),
    _choice("moe-token-dispatcher-type", "allgather", "allgather alltoall", "how tokens reach their experts"),
    _on_off("moe-grouped-gemm", "one grouped GEMM for all local experts (needs Transformer Engine)"),
)

_TRAINING = (
    Flag("micro-batch-size", int, None, "samples of one forward pass on one data-parallel rank"),
    Flag("global-batch-size", int, None, "samples of one step; micro batch x data-parallel size by default"),
    Flag(
        "rampup-batch-size", int, None, "START INCREMENT SAMPLES: grow the global batch over so many samples", nargs=3
    ),
    Flag("train-iters", int, None, "steps to train"),
    Flag("train-samples", int, None, "samples to train, instead of --train-iters"),
    Flag("exit-interval", int, None, "save and stop when the iteration is a multiple of this"),
    Flag("exit-duration-in-mins", int, None, "save and stop after this many minutes"),
    _on_off("recompute-activations", "recompute the attention in the backward pass (selective recompute)"),
    _choice("recompute-granularity", None, "full selective", "what is recomputed in the backward pass"),
    _choice("recompute-method", None, "uniform block", "which layers a full recompute covers"),
    Flag("recompute-num-layers", int, None, "layers per recomputed unit, or recomputed layers per stage"),
    _on_off("calculate-per-token-loss", "weigh every token of the global batch alike"),
    Flag("seed", int, 1234, "seed of weights, dropout and data order"),
    _on_off("skip-train", "evaluate only"),
    _on_off(
        "deterministic-mode", "let torch use deterministic algorithms only; it stops at an operation that has none"
    ),
)

_OPTIMIZER = (
    _choice("optimizer", "adam", "adam sgd", "optimizer"),
    Flag("lr", float, None, "peak learning rate"),
    Flag("min-lr", float, 0.0, "learning rate at the end of the decay"),
    _choice("lr-decay-style", "linear", "constant linear cosine inverse-square-root WSD", "shape of the decay"),
    Flag("lr-decay-iters", int, None, "iterations of the decay; --train-iters by default"),
    Flag("lr-decay-samples", int, None, "samples of the decay, with --train-samples"),
    Flag("lr-warmup-fraction", float, None, "share of the decay spent on the linear warm-up"),
    Flag("lr-warmup-iters", int, 0, "iterations of the linear warm-up"),
    Flag("lr-warmup-samples", int, 0, "samples of the linear warm-up"),
    Flag("lr-warmup-init", float, 0.0, "learning rate at the first iteration of the warm-up"),
    _choice("lr-wsd-decay-style", "exponential", "exponential linear cosine minus_sqrt", "last phase of WSD"),
    Flag("lr-wsd-decay-iters", int, None, "iterations of WSD's last phase"),
    Flag("weight-decay", float, 0.01, "decoupled weight decay"),
    Flag("start-weight-decay", float, None, "weight decay at the start, with --weight-decay-incr-style"),
    Flag("end-weight-decay", float, None, "weight decay at the end"),
    _choice("weight-decay-incr-style", "constant", "constant linear cosine", "course of the weight decay"),
    Flag("clip-grad", float, 1.0, "clip the global gradient norm to this; 0 for no clipping"),
    Flag("adam-beta1", float, 0.9, "decay of the first moment"),
    Flag("adam-beta2", float, 0.999, "decay of the second moment"),
    Flag("adam-eps", float, 1e-8, "Adam's epsilon"),
    Flag("sgd-momentum", float, 0.9, "momentum of SGD"),
    _on_off("override-opt_param-scheduler", "take the schedule from the flags, not from the checkpoint"),
    _on_off("use-checkpoint-opt_param-scheduler", "take the schedule from the checkpoint, not from the flags"),
    _on_off("check-for-nan-in-loss-and-grad", "stop at a NaN or Inf in a loss or local gradient", True),
)

_PRECISION = (
    _on_off("bf16", "train in bfloat16 with fp32 main parameters"),
    _on_off("fp16", "train in float16 with loss scaling"),
    Flag("loss-scale", float, None, "constant loss scale for --fp16; dynamic by default"),
    Flag("initial-loss-scale", float, 2.0**32, "first dynamic loss scale"),
    Flag("min-loss-scale", float, 1.0, "smallest dynamic loss scale"),
    Flag("loss-scale-window", float, 1000, "steps without overflow before the loss scale doubles"),
    Flag("hysteresis", int, 2, "overflows before the loss scale halves"),
    _on_off("accumulate-allreduce-grads-in-fp32", "accumulate and reduce gradients in fp32; always so with --bf16"),
    _on_off("grad-reduce-in-bf16", "accumulate and reduce gradients in bfloat16"),
    _on_off("fp32-residual-connection", "keep the residual stream in fp32"),
)

_PARALLELISM = (
    Flag("tensor-model-parallel-size", int, 1, "ranks that share a layer's matrices"),
    Flag("pipeline-model-parallel-size", int, 1, "pipeline stages"),
    Flag("context-parallel-size", int, 1, "ranks that share a sequence"),
    Flag("expert-model-parallel-size", int, 1, "ranks that share the experts"),
    Flag("expert-tensor-parallel-size", int, None, "ranks that share an expert's matrices; TP by default"),
    Flag("num-layers-per-virtual-pipeline-stage", int, None, "interleaved pipeline: layers of a model chunk"),
    Flag("num-virtual-stages-per-pipeline-rank", int, None, "interleaved pipeline: model chunks on a rank"),
    _on_off("sequence-parallel", "split norms and dropout along the sequence over the TP ranks"),
    _on_off("overlap-p2p-communication", "overlap pipeline transfers with compute (interleaved pipeline)", True),
    _on_off("use-distributed-optimizer", "shard the optimizer over the data-parallel ranks"),
    _on_off("overlap-grad-reduce", "reduce gradients during the backward pass"),
    _on_off("overlap-param-gather", "gather parameters during the forward pass"),
    _on_off("align-param-gather", "start parameter gathers at once on all pipeline stages", True),
    Flag("ddp-bucket-size", int, None, "parameters in a gradient bucket; megatron-core's rule by default"),
    _on_off("ddp-average-in-collective", "average in the collective instead of dividing first"),
    Flag("num-distributed-optimizer-instances", int, 1, "replicas of the distributed optimizer; only 1"),
    Flag("check-weight-hash-across-dp-replicas-interval", int, None, "compare replicas' weights every so often"),
    _choice("distributed-backend", None, "nccl gloo", "process group backend; nccl with CUDA, else gloo"),
    Flag("layout", str, None, "TOML file of tools.scheduler: which process runs which rank, and the layout's flags"),
    Flag("distributed-timeout-minutes", float, 10.0, "minutes after which a stuck collective is an error"),
)

_DATA = (
    Flag("data-path", str, None, "dataset prefix, or WEIGHT PREFIX WEIGHT PREFIX ...", nargs="*"),
    Flag("train-data-path", str, None, "the same, for training only", nargs="*"),
    Flag("valid-data-path", str, None, "the same, for validation only", nargs="*"),
    Flag("test-data-path", str, None, "the same, for test only", nargs="*"),
    Flag("split", str, None, "shares of train, validation and test; 969,30,1 by default"),
    _on_off("mock-data", "train on generated tokens"),
    Flag("data-cache-path", str, None, "folder for the dataset's index files"),
    Flag("num-workers", int, 2, "data loading processes of a rank"),
    _choice("dataloader-type", "single", "single cyclic", "one pass in order, or shuffled passes"),
    _on_off("reset-position-ids", "restart positions after an end-of-document token"),
    _on_off("reset-attention-mask", "don't attend across an end-of-document token"),
    _on_off("eod-mask-loss", "no loss on end-of-document tokens"),
    Flag("seq-length", int, None, "tokens of a sample"),
    _choice("tokenizer-type", None, "GPT2BPETokenizer HuggingFaceTokenizer NullTokenizer", "which tokenizer"),
    Flag("tokenizer-model", str, None, "folder of the Hugging Face tokenizer"),
    Flag("vocab-file", str, None, "vocab.json of the GPT-2 BPE tokenizer"),
    Flag("merge-file", str, None, "merges.txt of the GPT-2 BPE tokenizer"),
    Flag("vocab-size", int, None, "vocabulary of the NullTokenizer, or of the model before padding"),
)

_CHECKPOINTS = (
    Flag("save", str, None, "folder to save checkpoints in"),
    Flag("load", str, None, "folder to load the newest checkpoint from"),
    Flag("save-interval", int, None, "iterations between checkpoints"),
    Flag("ckpt-step", int, None, "iteration of the checkpoint to load, instead of the newest"),
    _choice("ckpt-format", "torch_dist", "torch_dist", "format of the checkpoints"),
    _on_off("dist-ckpt-optim-fully-reshardable", "refused: megatron-core 0.16.1 does not give back the state it saved"),
    _on_off("finetune", "load the weights only and start at iteration 0"),
    _on_off("save-optim", "save the optimizer's state", True),
    _on_off("save-rng", "save the random states", True),
    _on_off("load-optim", "load the optimizer's state", True),
    _on_off("load-rng", "load the random states", True),
    _on_off("exit-on-missing-checkpoint", "stop when --load has no checkpoint"),
)

_WATCHING = (
    Flag("log-interval", int, 100, "iterations between log lines"),
    Flag("eval-interval", int, 1000, "iterations between validations"),
    Flag("eval-iters", int, 100, "batches of a validation; 0 for none"),
    Flag("metrics-file", str, None, "file that gets one JSON line per iteration"),
    Flag("tensorboard-dir", str, None, "folder for TensorBoard"),
    Flag("tensorboard-log-interval", int, 1, "iterations between TensorBoard points"),
    _on_off("log-throughput", "TFLOP/s per GPU in the log line", True),
    _on_off("log-num-zeros-in-grad", "count the gradient's zeros"),
    _choice("timing-log-level", "0", "0 1 2", "1 and up: a line with the time of each part of a step"),
    Flag("config", str, None, "TOML file of flags; the command line wins over it"),
)

_COMPRESSION = (
    _choice("compression", None, " ".join(config.PRESETS), "a preset of the flags below, which overrule it"),
    *(
        Flag(
            knob.name.replace("_", "-"),
            knob.metadata["kind"],
            knob.default,
            knob.metadata["help"],
            knob.metadata["choices"],
        )
        for knob in config.KNOBS
    ),
)

GROUPS: dict[str, tuple[Flag, ...]] = {
    "model": _MODEL,
    "mixture of experts": _MIXTURE_OF_EXPERTS,
    "training": _TRAINING,
    "optimizer": _OPTIMIZER,
    "precision": _PRECISION,
    "parallelism": _PARALLELISM,
    "compression": _COMPRESSION,
    "data": _DATA,
    "checkpoints": _CHECKPOINTS,
    "watching": _WATCHING,
}

# Flags of existing scripts that change nothing here, with the reason, which the start-up report repeats.
_ALWAYS_SO = "always so here"
NO_EFFECT: dict[str, str] = {
    "use-mcore-models": _ALWAYS_SO,
    "use-flash-attn": "the fastest attention kernel that torch or Transformer Engine has is always used",
    "attention-backend": "the fastest attention kernel that torch or Transformer Engine has is always used",
    "async-tensor-model-parallel-allreduce": "megatron-core decides this by itself since 0.8",
    "masked-softmax-fusion": "torch's attention kernels are fused",
    "bias-gelu-fusion": "left to torch",
    "bias-swiglu-fusion": "left to torch",
    "bias-dropout-fusion": "left to torch",
    "rope-fusion": "left to Transformer Engine",
    "gradient-accumulation-fusion": "left to Transformer Engine",
    "persist-layer-norm": "left to Transformer Engine",
    "cross-entropy-loss-fusion": "left to torch",
    "cross-entropy-fusion-impl": "left to torch",
    "apply-query-key-layer-scaling": "attention scores are summed in fp32",
    "attention-softmax-in-fp32": "the attention kernels of torch and of Transformer Engine always do, and nothing else",
    "apply-residual-connection-post-layernorm": "megatron-core's layers take the residual before the norm",
    "create-attention-mask-in-dataloader": "a mask is made only where --reset-attention-mask needs one",
    "exit-signal-handler": "SIGTERM always saves and exits",
    "use-dist-ckpt": _ALWAYS_SO,
    "auto-detect-ckpt-format": "torch_dist is the only format",
    "ckpt-fully-parallel-save": "each rank saves its part of the optimizer, the first data-parallel rank the weights",
    "ckpt-fully-parallel-load": "every rank reads its own part",
    "dist-ckpt-strictness": "what a checkpoint has beyond the model is left unread",
    "log-batch-size-to-tensorboard": "consumed samples are drawn",
    "log-learning-rate-to-tensorboard": _ALWAYS_SO,
    "log-loss-scale-to-tensorboard": _ALWAYS_SO,
    "log-world-size-to-tensorboard": "the world size is in the start-up report",
    "tensorboard-queue-size": "TensorBoard's own default is used",
    "barrier-with-level-1-timing": "timers of level 1 wait for all ranks",
    "manual-gc": "Python collects garbage by itself",
    "manual-gc-interval": "Python collects garbage by itself",
    "empty-unused-memory-level": "torch's allocator keeps its memory",
    "local-rank": "torchrun's environment says it",
    "log-timers-to-tensorboard": "say --timing-log-level 1",
    "log-validation-ppl-to-tensorboard": _ALWAYS_SO,
    "log-memory-to-tensorboard": "memory is reported at start",
    "log-params-norm": "the gradient's norm is logged, the parameters' is not",
    "timing-log-option": "the slowest rank's time is logged",
    "data-impl": "mmap is the only one",
    "wandb-project": "curves go to --tensorboard-dir and --metrics-file",
    "wandb-exp-name": "curves go to --tensorboard-dir and --metrics-file",
    "wandb-save-dir": "curves go to --tensorboard-dir and --metrics-file",
}
