"""The command line and the TOML files."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron.training.arguments import FLAGS, parse_args
from megatron.training.errors import UserError
from megatron.training.flags import GROUPS, NO_EFFECT

TRAINING = Path(__file__).parents[2] / "megatron" / "training"


@pytest.fixture
def configs(tmp_path):
    """A folder of TOML files; ``configs(name, text)`` writes one and returns its path."""

    def write(name: str, text: str) -> str:
        file = tmp_path / f"{name}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    return write


def refused(argv: list[str]) -> str:
    with pytest.raises(UserError) as raised:
        parse_args(argv)
    sentence = str(raised.value)
    assert "\n" not in sentence
    return sentence


def test_a_flag_has_its_kind_its_default_and_its_megatron_name():
    args = parse_args(["--num-layers", "4", "--lr", "1e-3", "--data-path", "0.3", "a", "0.7", "b"])
    assert (args.num_layers, args.lr, args.data_path) == (4, 1e-3, ["0.3", "a", "0.7", "b"])
    assert (args.adam_beta2, args.bf16, args.save_optim, args.hidden_size) == (0.999, False, True, None)


def test_every_on_off_flag_has_its_opposite_and_the_last_one_counts():
    names = [flag.name for flag in FLAGS.values() if flag.kind is bool]
    assert "bf16" in names and "save-optim" in names
    for name in names:
        dest = FLAGS[name].dest
        assert getattr(parse_args([f"--{name}"]), dest) is True
        assert getattr(parse_args([f"--no-{name}"]), dest) is False
        assert getattr(parse_args([f"--{name}", f"--no-{name}"]), dest) is False


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--num-layer", "4"], ["--num-layer", "did you mean --num-layers?"]),
        (["--no-save-optin"], ["--no-save-optin", "did you mean --no-save-optim?"]),
        (["--use-mcore-model"], ["--use-mcore-model", "did you mean --use-mcore-models?"]),
        (["--lrr=3"], ["--lrr=3", "did you mean --lr?"]),
        (["--xyzzy-quux"], ["--xyzzy-quux", "--help"]),
        (["train", "--lr", "1"], ["'train'", "--flag"]),
        (["--num-layers", "four"], ["--num-layers", "'four'", "int"]),
        (["--num-layers"], ["--num-layers", "expected one argument"]),
        (["--normalization", "BatchNorm"], ["'BatchNorm'", "LayerNorm", "RMSNorm"]),
        (["--rampup-batch-size", "1", "2"], ["--rampup-batch-size", "3"]),
        (["--config"], ["--config"]),
    ],
)
def test_a_wrong_word_is_named_with_the_remedy(argv, parts):
    sentence = refused(argv)
    assert all(part in sentence for part in parts), sentence


def test_a_flag_is_never_guessed_from_its_beginning():
    assert "--hidden-s" in refused(["--hidden-s", "64"])


def test_toml_keys_are_flags_and_the_command_line_wins(configs):
    file = configs("run", 'num-layers = 4\nlr = 1e-3\nbf16 = true\nsave-optim = false\ndata-path = ["1", "a"]\n')
    args = parse_args(["--config", file])
    assert (args.num_layers, args.lr, args.bf16, args.save_optim, args.data_path) == (4, 1e-3, True, False, ["1", "a"])
    args = parse_args(["--num-layers", "8", "--no-bf16", "--config", file, "--save-optim"])
    assert (args.num_layers, args.lr, args.bf16, args.save_optim) == (8, 1e-3, False, True)


def test_toml_knows_the_negative_spelling_and_the_flags_without_effect(configs):
    args = parse_args(
        ["--config", configs("run", "no-save-rng = true\nno-save-optim = false\nuse-mcore-models = true\n")]
    )
    assert (args.save_rng, args.save_optim) == (False, True)
    assert args.no_effect == {"use-mcore-models": NO_EFFECT["use-mcore-models"]}


def test_a_run_file_includes_a_model_and_another_run_and_its_own_keys_win(configs):
    configs("models/small", "num-layers = 4\nhidden-size = 64\n")
    configs("runs/common", 'model = "small"\nlr = 1.0\nseed = 5\n')
    run = configs("runs/mine", 'lr = 2.0\nbase = "common"\nhidden-size = 128\n')
    args = parse_args(["--config", run])
    assert (args.num_layers, args.hidden_size, args.lr, args.seed) == (4, 128, 2.0, 5)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("num_layers = 4", ["'num_layers'", "did you mean --num-layers?"]),
        ("xyzzy = 4", ["'xyzzy'"]),
        ('config = "other.toml"', ["'config'"]),
        ("bf16 = 1", ["bf16 = 1", "true or false"]),
        ("num-layers = true", ["--num-layers", "'True'"]),
        ("num-layers = [1, 2]", ["num-layers = [1, 2]", "one value"]),
        ('normalization = "BatchNorm"', ["'BatchNorm'", "RMSNorm"]),
        ("[num-layers]\na = 1", ["[num-layers]", "one value"]),
        ("lr = ", ["TOML"]),
        ('model = "huge"', ['model = "huge"', "small"]),
        ("model = 5", ['model = "5"', "small"]),
        ('base = "mine"', ["includes it again"]),
    ],
)
def test_a_mistake_in_a_toml_file_is_named_with_the_file(configs, text, parts):
    configs("models/small", "num-layers = 4\n")
    file = configs("runs/mine", text)
    sentence = refused(["--config", file])
    assert all(part in sentence for part in ["mine.toml", *parts]), sentence


def test_a_mistake_in_an_included_file_names_that_file(configs):
    configs("models/small", "num-layer = 4\n")
    sentence = refused(["--config", configs("runs/mine", 'model = "small"')])
    assert "models/small.toml" in sentence and "did you mean --num-layers?" in sentence


def test_a_config_file_that_is_not_there_is_named(tmp_path):
    assert f"{tmp_path}/none.toml" in refused(["--config", f"{tmp_path}/none.toml"])
    assert str(tmp_path) in refused(["--config", str(tmp_path)])


def test_flags_without_effect_are_taken_in_every_spelling_and_listed_with_the_reason():
    spellings = [
        [["--use-mcore-models"], "use-mcore-models"],
        [["--no-rope-fusion"], "rope-fusion"],
        [["--attention-backend", "flash"], "attention-backend"],
        [["--wandb-project", "x"], "wandb-project"],
    ]
    for argv, name in spellings:
        args = parse_args(argv)
        assert args.no_effect == {name: NO_EFFECT[name]}
        assert not hasattr(args, name.replace("-", "_"))
    assert parse_args([]).no_effect == {}


def test_no_flag_is_defined_twice_and_each_has_a_help_text():
    names = [flag.name for flags in GROUPS.values() for flag in flags]
    assert len(names) == len(set(names)) and not set(names) & set(NO_EFFECT)
    assert all(flag.help for flags in GROUPS.values() for flag in flags)


@cache
def attributes_read_by_the_trainer() -> frozenset[str]:
    """Every ``….name`` and every string that is a name, in the files that act on the arguments."""
    found: set[str] = set()
    for file in TRAINING.glob("*.py"):
        if file.name in ("flags.py", "ranges.py", "unused_flags.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
    return frozenset(found)


@cache
def fields_of_megatron_core() -> frozenset[str]:
    """Fields of the dataclasses that take every argument of their name, as far as megatron-core itself reads them."""
    core = Path(find_spec("megatron.core").submodule_search_locations[0])
    configs = [core / "transformer/transformer_config.py", core / "model_parallel_config.py"]
    configs += [core / "optimizer/optimizer_config.py"]
    trees = [ast.parse(file.read_text()) for file in configs]
    fields = {node.target.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    readers = [*core.glob("transformer/**/*.py"), *core.glob("models/**/*.py"), *core.glob("optimizer/*.py")]
    readers += [core / "tensor_parallel/layers.py", core / "pipeline_parallel/schedules.py"]
    read = {
        name
        for file in {*readers, *configs}
        for name in re.findall(r"(?:(?<=config)|(?<=self))\.(\w+)\b(?! = )", file.read_text())
    }
    return frozenset(fields & read)


# Read under a name that is put together: train/valid/test_data_path and the two units of decay and warm-up.
PUT_TOGETHER = {
    "train_data_path valid_data_path test_data_path": ("data_sources.py", "{split}_data_path"),
    "lr_decay_iters lr_warmup_iters": ("validation.py", "lr_{what}_iters"),
    "lr_decay_samples lr_warmup_samples": ("validation.py", "lr_{what}_samples"),
}


@cache
def attributes_read_by_the_method() -> frozenset[str]:
    """Every ``….name`` that sdp4bit_patches reads."""
    trees = [ast.parse(file.read_text()) for file in (TRAINING.parents[1] / "sdp4bit_patches").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load))


def is_read(dest: str) -> bool:
    if dest in {flag.dest for flag in GROUPS["compression"]}:
        return dest in attributes_read_by_the_method()
    put_together = any(
        dest in names.split() and pattern in (TRAINING / file).read_text()
        for names, (file, pattern) in PUT_TOGETHER.items()
    )
    return put_together or dest in attributes_read_by_the_trainer() | fields_of_megatron_core()


@pytest.mark.parametrize("flag", FLAGS.values(), ids=lambda flag: flag.name)
def test_every_flag_is_read_somewhere(flag):
    has_a_choice = flag.choices is None or len(flag.choices) > 1
    assert is_read(flag.dest) or not has_a_choice


def test_a_flag_that_nobody_reads_would_be_found():
    # The last is a field of megatron-core's configuration that none of its layers reads.
    assert "no_such_flag" not in attributes_read_by_the_method()
    for dest in ("no_such_flag", "wandb_project", "apply_residual_connection_post_layernorm"):
        assert not is_read(dest)
