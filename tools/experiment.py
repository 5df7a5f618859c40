"""An experiment as data: variants of one training run, each with several seeds, and what has to come out of it."""

from __future__ import annotations

import json
import os
import shlex
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.training.arguments import parse_args
from megatron.training.validation import validate_args
from tools.plot_runs import RunMetrics, read_run
from tools.run_folder import settings
from tools.toml_files import read_toml

_KEYS = {"title", "config", "num-processes", "seeds", "reference", "variants"}
_OPTIONAL_KEYS = {"flags"}
_VARIANT_KEYS = {"flags", "within", "at-least", "repairs", "closes-at-least"}


@dataclass(frozen=True)
class Variant:
    """A run's further flags, and the mean difference from the reference, in %, that is demanded of it.

    `within`: its magnitude is at most this. `at_least`: it is at least this (a negative control). None: no demand.
    `repairs`: the variant whose difference this one is to make smaller, by at least `closes_at_least` % of it.
    """

    name: str
    flags: tuple[str, ...]
    within: float | None = None
    at_least: float | None = None
    repairs: str | None = None
    closes_at_least: float | None = None


@dataclass(frozen=True)
class Experiment:
    """`variants` of the run in `config`, with every one of `seeds`, each compared with `reference` of the same seed.

    `flags`: further ones of all runs.
    """

    title: str
    config: str
    num_processes: int
    seeds: tuple[int, ...]
    reference: str
    variants: tuple[Variant, ...]
    flags: tuple[str, ...] = ()

    def words(self, variant: Variant, seed: int) -> list[str]:
        """The command line of one run. Rounding is as random as the weights: it takes the same seed."""
        return [
            "--config",
            self.config,
            *self.flags,
            *variant.flags,
            "--seed",
            str(seed),
            "--quantization-seed",
            str(seed),
        ]


def read_experiment(path: Path) -> Experiment:
    """Read a file of configs/experiments, and check the flags of every run of it.

    Raises:
        ValueError: a key is missing or unknown, a flag is wrong, or the reference is not among the variants.
        OSError: the file cannot be read.
    """
    table = read_toml(path)
    _check_keys(path, table, _KEYS | _OPTIONAL_KEYS, required=_KEYS)
    variants = tuple(_variant(f"{path}, variants.{name}", name, values) for name, values in table["variants"].items())
    names = [variant.name for variant in variants]
    if table["reference"] not in names:
        raise ValueError(f"{path}: reference = {table['reference']!r} is not among the variants: {', '.join(names)}")
    numbers = (table["num-processes"], tuple(table["seeds"]))
    flags = tuple(shlex.split(table.get("flags", "")))
    experiment = Experiment(table["title"], table["config"], *numbers, table["reference"], variants, flags)
    for variant in variants:
        if variant.repairs not in (None, *names):
            raise ValueError(
                f"{path}, variants.{variant.name}: repairs = {variant.repairs!r} is not among the variants"
            )
    for variant in variants:
        try:
            arguments(experiment, variant, experiment.seeds[0])
        except ValueError as error:
            raise ValueError(f"{path}, variants.{variant.name}: {error}") from error
    return experiment


def _variant(where: str, name: str, values: dict[str, Any]) -> Variant:
    _check_keys(where, values, _VARIANT_KEYS, required={"flags"})
    if ("repairs" in values) != ("closes-at-least" in values):
        raise ValueError(f"{where}: repairs names a variant and closes-at-least its share in %; give both or none")
    demands = (values.get(key) for key in ("within", "at-least", "repairs", "closes-at-least"))
    return Variant(name, tuple(shlex.split(values["flags"])), *demands)


def _check_keys(where: Any, table: dict[str, Any], known: set[str], required: set[str]) -> None:
    unknown, missing = sorted(set(table) - known), sorted(required - set(table))
    if unknown or missing:
        problem = f"unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise ValueError(f"{where}: {problem}; the keys are {', '.join(sorted(known))}")


def arguments(experiment: Experiment, variant: Variant, seed: int) -> Namespace:
    """The checked arguments of one run.

    Raises:
        ValueError: a flag is wrong.
    """
    return validate_args(parse_args(experiment.words(variant, seed)), experiment.num_processes)


@dataclass(frozen=True)
class RunFolder:
    """Where one run of an experiment lies: `metrics.jsonl` appears when it has finished."""

    path: Path

    @property
    def metrics(self) -> Path:
        """The finished run's metrics."""
        return self.path / "metrics.jsonl"

    @property
    def unfinished(self) -> Path:
        """The metrics while it runs."""
        return self.path / "unfinished.jsonl"

    @property
    def log(self) -> Path:
        """What the run has printed."""
        return self.path / "log.txt"

    @property
    def _settings(self) -> Path:
        return self.path / "settings.json"

    def begin(self, words: list[str]) -> None:
        """Make the folder ready for a run with this command line."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.unfinished.unlink(missing_ok=True)
        self._settings.write_text(json.dumps(settings(words), indent=1) + "\n")

    def finish(self, label: str, num_iterations: int) -> None:
        """Declare the run finished.

        Raises:
            ValueError: it has not come to its last iteration, or has no validation there.
        """
        _complete(read_run(self.unfinished, label), self.unfinished, num_iterations)
        os.replace(self.unfinished, self.metrics)

    def stands(self, words: list[str]) -> bool:
        """Whether the run with this command line has finished.

        Raises:
            ValueError: it has, with other settings.
        """
        if not self.metrics.exists():
            return False
        made = json.loads(self._settings.read_text())
        wanted = settings(words)
        other = sorted(key for key in made | wanted if made.get(key) != wanted.get(key))
        if other:
            raise ValueError(f"{self.path} was run with another {', '.join(other)}: remove it to run it again")
        return True


def _complete(run: RunMetrics, path: Path, num_iterations: int) -> None:
    if run.iterations[-1] != num_iterations or not run.validation or run.validation[-1][0] != num_iterations:
        raise ValueError(
            f"{path} ends at iteration {run.iterations[-1]}; a finished run validates at {num_iterations}, "
            "which --eval-interval has to divide"
        )
