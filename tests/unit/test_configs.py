"""Every file in configs/ is read as the command line would, and every model has the parameters it is known for."""

from __future__ import annotations

import resource
import tomllib
from pathlib import Path

import pytest
from parallel_launch import parallel_launch

from megatron.training.arguments import parse_args
from megatron.training.errors import UserError
from megatron.training.validation import validate_args
from sdp4bit_patches.config import PRESETS, CommConfig, from_arguments

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODELS = sorted((CONFIGS / "models").glob("*.toml"))
RUNS = sorted((CONFIGS / "runs").glob("*.toml"))
SCHEMES = sorted((CONFIGS / "schemes").glob("*.toml"))

# As published, in units of 10^9. The table rounds to two or three digits, and 350M is the loosest of its names.
PUBLISHED = {
    "gpt_125m": 0.125,
    "gpt_350m": 0.35,
    "gpt_1p3b": 1.32,
    "gpt_2p7b": 2.65,
    "gpt_6p7b": 6.66,
    "gpt_13b": 12.9,
    "gpt_18b": 18.4,
}
TOLERANCE = 0.02
LLAMA_3P1_8B_PARAMETERS = 8_030_261_248

# What a model's file leaves to the run.
_TRAINING = "--micro-batch-size 1 --lr 1e-4 --train-iters 1 --mock-data --bf16".split()


def _model_args(name: str):
    path = CONFIGS / "models" / f"{name}.toml"
    return validate_args(parse_args(["--config", str(path), *_TRAINING]), world_size=1)


def _count_parameters(names: list[str]) -> tuple[dict[str, int], float]:
    """Parameters of each model, built without memory; and by how many GiB the process has grown meanwhile."""
    import torch
    from megatron.core import parallel_state

    from megatron.training.model import build_gpt_model, transformer_config
    from megatron.training.tokenizer import padded_vocab_size

    parallel_state.initialize_model_parallel()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = {}
    for name in names:
        args = _model_args(name)
        args.padded_vocab_size = padded_vocab_size(args.vocab_size, args)
        with torch.device("meta"):
            model = build_gpt_model(args, transformer_config(args))
        assert all(parameter.is_meta for parameter in model.parameters())
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    return counts, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


@pytest.fixture(scope="module")
def built() -> tuple[dict[str, int], float]:
    return parallel_launch(1, _count_parameters, [path.stem for path in MODELS], timeout_s=120)[0]


@pytest.fixture(scope="module")
def counts(built) -> dict[str, int]:
    return built[0]


def test_models_are_built_without_memory_for_their_weights(built) -> None:
    assert built[1] < 0.5


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_agree_with_the_published_number(counts, name: str) -> None:
    assert counts[name] == pytest.approx(PUBLISHED[name] * 1e9, rel=TOLERANCE)


@pytest.mark.parametrize("name", [*PUBLISHED, "gpt_tiny"])
def test_parameters_of_a_gpt_follow_from_its_shape(counts, name: str) -> None:
    """Narayanan et al. 2021 (arXiv 2104.04473), equation 2, plus the final norm."""
    args = _model_args(name)
    layers, hidden, positions = args.num_layers, args.hidden_size, args.max_position_embeddings
    vocabulary = -(-args.vocab_size // 128) * 128
    per_layer = 12 * hidden**2 + 13 * hidden
    assert counts[name] == layers * per_layer + (vocabulary + positions) * hidden + 2 * hidden


def test_llama_3p1_8b_has_its_published_number_of_parameters(counts) -> None:
    assert counts["llama3p1_8b"] == LLAMA_3P1_8B_PARAMETERS


def test_a_wrong_shape_is_outside_the_tolerance(counts) -> None:
    assert counts["gpt_1p3b"] != pytest.approx(PUBLISHED["gpt_2p7b"] * 1e9, rel=TOLERANCE)
    wider = LLAMA_3P1_8B_PARAMETERS + 32 * 3 * 4096 * 128
    assert counts["llama3p1_8b"] != wider


def test_every_gpt_and_llama_of_the_tables_is_there() -> None:
    needed = {*PUBLISHED, "llama3p1_8b", "gpt_tiny", "llama_tiny", "moe_tiny"}
    assert needed <= {path.stem for path in MODELS}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_passes_the_checks_of_the_command_line(path: Path) -> None:
    args = validate_args(parse_args(["--config", str(path)]), world_size=4)
    assert args.num_layers and args.train_iters


def test_every_preset_has_its_file_and_every_file_its_preset() -> None:
    assert {path.stem for path in SCHEMES} == set(PRESETS)


@pytest.mark.parametrize("path", SCHEMES, ids=lambda path: path.stem)
def test_a_scheme_says_what_the_preset_of_its_name_does(path: Path) -> None:
    assert from_arguments(parse_args(["--config", str(path)])) == CommConfig(**PRESETS[path.stem])
    assert tomllib.loads(path.read_text()).keys() == {key.replace("_", "-") for key in PRESETS[path.stem]}


def test_a_scheme_with_one_knob_changed_is_not_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "qwd.toml"
    path.write_text((CONFIGS / "schemes/qwd.toml").read_text().replace("bits = 4", "bits = 8"))
    assert from_arguments(parse_args(["--config", str(path)])) != CommConfig(**PRESETS["qwd"])


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_says_nothing_about_training(path: Path) -> None:
    with pytest.raises(UserError, match="--micro-batch-size --lr not given"):
        validate_args(parse_args(["--config", str(path), "--mock-data"]), world_size=1)


def test_a_misspelled_key_is_refused_with_the_file_and_the_right_spelling(tmp_path: Path) -> None:
    path = tmp_path / "models" / "wrong.toml"
    path.parent.mkdir()
    path.write_text(MODELS[0].read_text().replace("num-layers", "num-layer"))
    with pytest.raises(UserError, match=r"wrong\.toml: unknown key 'num-layer'; did you mean --num-layers\?"):
        parse_args(["--config", str(path)])
