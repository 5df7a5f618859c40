"""A sweep as data: configs/sweeps/NAME.toml, which says what the rows of a table are and how each is run.

A file may name others in ``base`` (configs/sweeps/base/): their tables come first, and its own keys overrule theirs.
Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.cluster_files import check_keys
from tools.toml_files import read_toml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class Result:
    """A quantity of a table. Each field names where it is found: a published column, a measured and a predicted value.

    `times`: what published and measured values are multiplied by; `predicted_times`: predicted ones. `of`: the rows
    that have it. `digits`: significant digits that are shown. `from_zero`: whether its axis in a picture begins at 0.
    """

    name: str
    published: str
    measured: str
    deviation: str = ""
    predicted: str = ""
    times: float = 1.0
    predicted_times: float = 1.0
    digits: int = 4
    from_zero: bool = True
    of: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """What holds for the rows whose columns are as `matches` says: names of files, and further keys."""

    matches: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Local:
    """How runs of the sweep are made small enough for one machine."""

    model: str
    ranks: int
    flags: dict[str, Any]
    runs: tuple[str, ...]
    skipped_iterations: int


@dataclass(frozen=True)
class Sweep:
    """A table: where its rows come from (`published` with `where` and `join`, or `grids`) and what makes them runs.

    `columns`: column -> the flag whose value it is. `rules`: in order, a later one overrules. `skipped_iterations`:
    warm-up, which measured means leave out. `simulator`: the action of tools.simulator that predicts it, if any does.
    """

    name: str
    path: Path
    title: str
    published: str
    where: dict[str, Any]
    join: dict[str, Any]
    grids: tuple[dict[str, list[Any]], ...]
    shared: dict[str, Any]
    columns: dict[str, str]
    flags: dict[str, Any]
    environment: dict[str, str]
    rules: tuple[Rule, ...]
    results: tuple[Result, ...]
    skipped_iterations: int
    keeps_checkpoints: bool
    simulator: str
    local: Local | None


# Key of a file -> what it holds when neither the file nor a base says anything.
_DEFAULTS: dict[str, Any] = {
    "title": "", "published": "", "cluster": "", "model": "", "scheme": "", "where": {}, "join": {}, "grids": [],
    "shared": {}, "columns": {}, "flags": {}, "environment": {}, "when": [], "results": [], "local": {},
    "skipped-iterations": 0, "keeps-checkpoints": False, "simulator": "",
}  # fmt: skip
_RULE_KEYS = {"is", "model", "scheme", "cluster", "nodes", "ranks", "flags", "note", "cannot-run"}
_RESULT_KEYS = {name.replace("_", "-") for name in Result.__dataclass_fields__}
_LOCAL_KEYS = {"model", "ranks", "runs", "flags", "skipped-iterations"}


def sweep_names(configs: Path = CONFIGS) -> list[str]:
    """The tables that there are."""
    return sorted(path.stem for path in (configs / "sweeps").glob("*.toml"))


def read_sweep(name: str, configs: Path = CONFIGS) -> Sweep:
    """Read ``configs/sweeps/NAME.toml`` and its bases.

    Raises:
        ValueError: there is no such sweep, or a file of it has an unknown key or a value that cannot be meant.
    """
    known = sweep_names(configs)
    if name not in known:
        raise ValueError(f"there is no table '{name}'; there are: {', '.join(known) or 'none'}")
    path = configs / "sweeps" / f"{name}.toml"
    table = _read(path)
    if bool(table["published"]) == bool(table["grids"]):
        raise ValueError(f"{path}: give its rows once: published = a file of configs/published, or [[grids]]")
    everywhere = {key: table[key] for key in ("model", "scheme", "cluster") if table[key]}
    rules = [Rule(rule.pop("is", {}), rule) for rule in ({"is": {}, **everywhere}, *table["when"])]
    for result in table["results"]:
        check_keys(f"{path}, results", result, _RESULT_KEYS, {"name", "published", "measured"})
    return Sweep(
        name, path, table["title"], table["published"], table["where"], table["join"], tuple(table["grids"]),
        table["shared"], table["columns"], table["flags"], table["environment"], tuple(rules),
        tuple(Result(**{key.replace("-", "_"): value for key, value in r.items()}) for r in table["results"]),
        table["skipped-iterations"], table["keeps-checkpoints"], table["simulator"],
        _local(path, table["local"]),
    )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    """The file's tables over those of its bases: lists grow, tables merge, single values are replaced."""
    try:
        own = read_toml(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; `base` names files of configs/sweeps/base") from error
    check_keys(str(path), own, {*_DEFAULTS, "base"})
    for rule in own.get("when", []):
        check_keys(f"{path}, when", rule, _RULE_KEYS, {"is"})
    merged = {key: type(value)(value) for key, value in _DEFAULTS.items()}
    folder = path.parent if path.parent.name == "base" else path.parent / "base"
    for table in (*(_read(folder / f"{name}.toml") for name in own.pop("base", [])), own):
        for key, value in table.items():
            merged[key] = _over(merged[key], value)
    return merged


def _over(below: Any, above: Any) -> Any:
    if isinstance(below, dict):
        return below | {key: _over(below.get(key), value) for key, value in above.items()}
    if isinstance(below, list):
        return [*below, *(item for item in above if item not in below)]
    return above


def _local(path: Path, table: dict[str, Any]) -> Local | None:
    if not table:
        return None
    check_keys(f"{path}, local", table, _LOCAL_KEYS, {"model", "ranks", "flags", "runs"})
    return Local(
        table["model"], table["ranks"], table["flags"], tuple(table["runs"]), table.get("skipped-iterations", 0)
    )
