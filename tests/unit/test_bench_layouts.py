"""What `tools/bench_layouts.py --peers` says before and after its runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import bench_layouts, deepspeed_peers
from tools.deepspeed_peers import PEERS, PeerRuns, check_deepspeed, table


def test_without_deepspeed_nothing_is_run_and_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deepspeed_peers, "find_spec", lambda name: None)
    monkeypatch.setattr(bench_layouts, "run_python", lambda *words, log: pytest.fail("something was run"))
    monkeypatch.setattr(sys, "argv", ["bench_layouts.py", "--peers", "deepspeed"])
    with pytest.raises(ValueError, match=f"{sys.executable} has no package deepspeed; .* pip install .*deepspeed$"):
        bench_layouts.main(bench_layouts.parse_arguments())


def test_the_version_that_is_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_peers, "find_spec", lambda name: object())
    monkeypatch.setattr(deepspeed_peers.importlib.metadata, "version", lambda name: f"{name} 1.2")
    assert check_deepspeed() == "deepspeed 1.2"


def test_peers_run_the_same_file_and_only_the_scheduled_one_gets_the_layout(tmp_path: Path) -> None:
    started = {}

    def emulate(name: str, words: list[str]) -> None:
        started[name] = words
        (tmp_path / f"{name}.json").write_text('{"seconds": [9.0, 2.0, 1.0], "losses": [6.2, 6.2, 6.2]}')

    runs = PeerRuns(emulate, Path("run.toml"), 2, [0, 2, 1, 3], steps=3, warm_up=1, folder=tmp_path)
    assert [runs.run(name) for name in PEERS] == [[2.0, 1.0]] * len(PEERS)
    assert {name for name, words in started.items() if "0,2,1,3" in words} == {"the same, scheduled"}
    assert all(words[words.index("--config") + 1] == "run.toml" for words in started.values())


def test_peers_stand_beside_the_scheduled_layout() -> None:
    assert table({"ZeRO-3": [2.0, 3.0, 2.5]}, scheduled=0.5).splitlines()[1].split() == ["ZeRO-3", "2.500", "5.00x"]
