"""The codec's face: what it refuses and how it says so, forced instruction sets, and the reference as a stand-in."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from codec_helpers import ROOT, ROUNDING, empty_payload, quantized

from sdp4bit_patches import codec, wire
from sdp4bit_patches.reference import NodeSum, Own
from sdp4bit_patches.wire import MessageFormat

needs_native = pytest.mark.skipif(codec.NATIVE["cpu"] is None, reason="no native codec here")
LAYOUT = wire.single_message(MessageFormat(4, 128), 256)


def refused(sentence: str, verb: str, *tensors: torch.Tensor, rounding: object = None) -> None:
    keywords = {} if verb.startswith("dequantize") else {"rounding": rounding}
    with pytest.raises(ValueError, match=sentence):
        getattr(codec, verb)(*tensors, codec.prepare(LAYOUT, "cpu"), **keywords)


def test_a_wrong_dtype_device_stride_or_size_is_refused_with_a_sentence() -> None:
    values, payload = torch.zeros(256), empty_payload(LAYOUT)
    refused("input is torch.float64: use one of", "quantize", values.double(), payload)
    refused("input has 255 elements, its layout needs 256", "quantize", values[:255], payload)
    refused("input has shape .256,., strides .2,.: use a contiguous 1-D", "quantize", torch.zeros(512)[::2], payload)
    refused("input has shape .16, 16.", "quantize", values.view(16, 16), payload)
    refused("input is on meta, its layout on cpu: move one", "quantize", values.to("meta"), payload)
    refused("payload is torch.int8: use torch.uint8", "quantize", values, payload.view(torch.int8))
    refused("payload has shape .143,., its layout needs 144 bytes", "quantize", values, payload[:143])
    refused("off 16 bytes", "quantize", values, torch.zeros(200, dtype=torch.uint8)[1:])
    refused("main is torch.bfloat16: use one of", "quantize_difference", values.bfloat16(), values, payload)
    refused("payloads has shape .144,.*use a 2-D tensor", "dequantize_reduce", payload, values)


def test_a_layout_that_begins_before_its_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="begins at element -1"):
        codec.prepare(LAYOUT.shifted(1), "cpu")


def test_layouts_of_different_transforms_or_ranges_are_refused() -> None:
    payload, layout = empty_payload(LAYOUT), codec.prepare(LAYOUT, "cpu")
    other_transform = codec.prepare(wire.single_message(MessageFormat(4, 128, 32), 256), "cpu")
    other_range = codec.prepare(wire.single_message(MessageFormat(4, 128), 255), "cpu")
    with pytest.raises(ValueError, match=r"hadamard=\[0, 32\]"):
        codec.dequantize_reduce_quantize(payload[None], payload.clone(), layout, other_transform)
    with pytest.raises(ValueError, match="segments of different sizes"):
        codec.dequantize_reduce_quantize(payload[None], payload.clone(), layout, other_range)


def test_own_values_that_do_not_fit_their_sum_are_refused_with_a_sentence() -> None:
    rows, output, layout = empty_payload(LAYOUT, 2), torch.zeros(256), codec.prepare(LAYOUT, "cpu")
    other_transform = codec.prepare(wire.single_message(MessageFormat(8, 128, 32), 256), "cpu")
    other_range = codec.prepare(wire.single_message(MessageFormat(4, 128), 255), "cpu")
    with warnings.catch_warnings(action="ignore"):  # that there is no native module for this device
        elsewhere = codec.prepare(LAYOUT, "meta")
    node = NodeSum(rows, layout, Own(1, output))

    def refused_own(sentence: str, own: Own) -> None:
        with pytest.raises(ValueError, match=sentence):
            codec.dequantize_reduce(rows, output, layout, own)
        with pytest.raises(ValueError, match=sentence):
            codec.dequantize_reduce_quantize(rows, rows[0].clone(), layout, layout, None, own)

    refused_own("own.place is 2: use a row of the payloads, from 0 to 1", Own(2, output))
    refused_own("own.place is -1: use a row", Own(-1, output))
    refused_own("own.values is torch.float64: use one of", Own(0, output.double()))
    refused_own("own.values has 255 elements, its layout needs 256", Own(0, output[:255]))
    refused_own("own.values is on meta, its layout on cpu", Own(0, output.to("meta")))
    refused_own("own.values.own.place is 2: use a row", Own(0, NodeSum(rows, layout, Own(2, output))))
    refused_own("own.values.payloads has shape .2, 16.", Own(0, NodeSum(rows[:, :16], layout, Own(0, output))))
    refused_own(r"hadamard=\[0, 32\]", Own(0, NodeSum(rows, other_transform, Own(0, output))))
    refused_own("own.values.layout list segments of different", Own(0, NodeSum(rows, other_range, Own(0, output))))
    refused_own("own.values.layout are on different devices", Own(0, NodeSum(rows, elsewhere, Own(0, output))))
    refused_own("own.values.own is a sum, too", Own(0, NodeSum(rows, layout, Own(0, node))))


def test_stochastic_signs_times_a_mean_are_refused_because_they_are_biased() -> None:
    layout = codec.prepare(wire.single_message(MessageFormat(1, 128), 256), "cpu")
    with pytest.raises(ValueError, match="one_bit_scale='absmax'"):
        codec.quantize(torch.zeros(256), empty_payload(layout.layout), layout, ROUNDING)


@needs_native
def test_an_unknown_or_missing_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'avx1024': use one of"), codec.instruction_set("avx1024"):
        pass
    code = (
        "import torch; from sdp4bit_patches import codec, wire as w; l = w.single_message(w.MessageFormat(4, 32), 32)\n"
    )
    code += "codec.quantize(torch.zeros(32), torch.zeros(32, dtype=torch.uint8), codec.prepare(l, 'cpu'))"
    environment = {"SDP4BIT_ISA": "sse9", "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "ValueError: SDP4BIT_ISA=sse9: use one of" in done.stderr


@needs_native
def test_an_error_of_the_native_code_names_the_kernel() -> None:
    native = codec.NATIVE["cpu"]
    layout = native.Layout(3, 128, 0, 0, 0, 0, 0, 0)
    with pytest.raises(RuntimeError, match=r"sdp4bit quantize \(cpu\): invalid message format"):
        native.quantize(0, 0, 0, layout, native.Rounding(), native.Execution(0, 1, 0))


def test_without_a_native_module_the_reference_runs_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codec.NATIVE, "cpu", None)
    codec.warn_about_reference.cache_clear()
    values = torch.randn(256, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            layout, payload, output = codec.prepare(LAYOUT, "cpu"), empty_payload(LAYOUT), torch.zeros(256)
            codec.quantize(values, payload, layout, ROUNDING)
            codec.quantize_difference(values, values, empty_payload(LAYOUT), layout)
            codec.dequantize(payload, output, layout)
            codec.dequantize_add(payload, output, layout)
            codec.dequantize_reduce(payload[None], output, layout)
            codec.dequantize_reduce_quantize(payload[None], payload.clone(), layout, layout)
            node = NodeSum(payload[None], layout, Own(0, values))
            codec.dequantize_reduce(payload[None], output, layout, Own(0, node))
            assert torch.equal(output, values)
    assert [str(w.message).split(":")[0] for w in caught] == ["sdp4bit_patches._cpu was not built"]
    assert torch.equal(payload, quantized(values, LAYOUT, ROUNDING))


@pytest.mark.skipif(codec.NATIVE["cuda"] is None, reason="CUDA kernels not built")
def test_both_native_modules_load_side_by_side() -> None:
    assert (codec.NATIVE["cpu"].device(), codec.NATIVE["cuda"].device()) == ("cpu", "cuda")
