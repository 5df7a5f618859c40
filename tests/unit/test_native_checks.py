"""The header is C99, the CPU code is clean under the sanitizers and leaks nothing, a thread changes no bit."""

from __future__ import annotations

import os
import resource
import subprocess
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from codec_helpers import COMPILER, ROOT, ROUNDING, empty_payload

from sdp4bit_patches import codec, wire
from sdp4bit_patches.wire import MessageFormat

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
needs_native = pytest.mark.skipif(codec.NATIVE["cpu"] is None, reason="no native codec here")
INCLUDES = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "common")]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CHEAPER = ["-fno-sanitize=null,vptr,return,unreachable"]  # a third of the compile time, for what ASan sees anyway


def run(*command: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, **keywords)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


@needs_compiler
def test_the_header_and_its_caller_are_strict_c99(tmp_path: Path) -> None:
    c_compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-c"]
    run(c_compiler, *flags, *INCLUDES, str(ROOT / "tests/native/every_verb.c"), "-o", str(tmp_path / "driver.o"))


@needs_compiler
def test_every_verb_is_clean_under_the_address_undefined_and_leak_sanitizers(tmp_path: Path) -> None:
    c_compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    driver, program = tmp_path / "driver.o", tmp_path / "every_verb"
    source = ROOT / "tests/native/every_verb.c"
    run(c_compiler, "-std=c99", "-g", *SANITIZERS, *INCLUDES, "-c", str(source), "-o", str(driver))
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-w", "-pthread", *SANITIZERS, *CHEAPER, *INCLUDES]

    def compile_source(path: Path) -> str:
        run(COMPILER, *flags, "-c", str(path), "-o", str(tmp_path / f"{path.stem}.o"))
        return str(tmp_path / f"{path.stem}.o")

    with ThreadPoolExecutor(2) as pool:
        objects = [*pool.map(compile_source, sorted((ROOT / "csrc/cpu").glob("*.cc"), reverse=True))]
    run(COMPILER, *SANITIZERS, "-pthread", *objects, str(driver), "-o", str(program))
    done = run(str(program), env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "LD_PRELOAD": ""})
    assert done.stdout == "0 failures\n"


@needs_compiler
def test_the_sanitizers_would_have_seen_an_overflow(tmp_path: Path) -> None:
    source, program = tmp_path / "overflow.c", tmp_path / "overflow"
    source.write_text("#include <stdlib.h>\nint main(int n, char **v) { char *p = malloc(4); return p[n + 3] + !v; }\n")
    run(COMPILER, "-x", "c++", "-fpermissive", "-w", *SANITIZERS, str(source), "-o", str(program))
    assert subprocess.run([str(program)], capture_output=True).returncode != 0


@needs_native
def test_ten_thousand_calls_do_not_grow_the_process() -> None:
    values = torch.randn(4096)
    layout = codec.prepare(wire.single_message(MessageFormat(4, 128, 32), 4096), "cpu")
    payload = empty_payload(layout.layout)

    def call() -> None:
        codec.quantize(values, payload, layout, ROUNDING)
        codec.dequantize_add(payload, values, layout)

    for _ in range(1000):
        call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10_000):
        call()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024  # KiB; a leak of 128 bytes a call shows


@needs_native
@pytest.mark.parametrize("num_elements", (70_000, 1_000_003))
def test_the_number_of_threads_changes_no_bit(num_elements: int) -> None:
    values = torch.randn(num_elements, generator=torch.Generator().manual_seed(1))
    layout = codec.prepare(wire.single_message(MessageFormat(4, 96, 32), num_elements), "cpu")
    before, payloads, outputs = torch.get_num_threads(), [], []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            payloads.append(empty_payload(layout.layout))
            outputs.append(torch.empty(num_elements))
            codec.quantize(values, payloads[-1], layout, ROUNDING)
            codec.dequantize(payloads[-1], outputs[-1], layout)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(payloads[0], other) for other in payloads[1:])
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@needs_native
def test_calls_from_several_python_threads_do_not_disturb_each_other() -> None:
    layout = codec.prepare(wire.single_message(MessageFormat(8, 128), 50_000), "cpu")
    inputs = [torch.randn(50_000, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]

    def quantize(values: torch.Tensor) -> torch.Tensor:
        payload = empty_payload(layout.layout)
        codec.quantize(values, payload, layout, ROUNDING)
        return payload

    expected = [quantize(values) for values in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(25):
            assert all(map(torch.equal, pool.map(quantize, inputs), expected))


@needs_native
def test_the_gil_is_released_while_a_verb_computes() -> None:
    values, counted, done = torch.randn(1 << 24), [0], threading.Event()
    layout = codec.prepare(wire.single_message(MessageFormat(4, 128), values.numel()), "cpu")
    payload = empty_payload(layout.layout)

    def quantize_slowly() -> None:
        with codec.instruction_set("scalar"):
            codec.quantize(values, payload, layout, ROUNDING)
        done.set()

    thread = threading.Thread(target=quantize_slowly)
    thread.start()
    while not done.is_set():
        counted[0] += 1
    thread.join()
    assert counted[0] > 100
