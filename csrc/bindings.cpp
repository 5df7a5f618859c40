// The Python face of sdp4bit.h, compiled once into _cpu and once into _cuda: tensors come as addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "arrival.h"
#include "sdp4bit.h"

namespace py = pybind11;
using Address = std::uintptr_t;
using WithoutGil = py::call_guard<py::gil_scoped_release>;

namespace {

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(const char* verb, int error) {
  if (error == SDP4BIT_OK) return;
  throw std::runtime_error(std::string("sdp4bit ") + verb + " (" + sdp4bit_device() +
                           "): " + sdp4bit_error_string(error));
}

sdp4bit_layout make_layout(int32_t bits, int32_t group_size, int32_t hadamard, int32_t scale_type,
                           int32_t one_bit_scale, Address segments, int64_t num_segments, int64_t max_elements) {
  return {{bits, group_size, hadamard, scale_type, one_bit_scale},
          pointer<const sdp4bit_segment>(segments),
          num_segments,
          max_elements};
}

sdp4bit_sources make_sources(Address payloads, int64_t stride, int32_t num_sources, const sdp4bit_layout& layout,
                             int32_t own_place, Address own, int32_t own_type, const sdp4bit_sources* own_sources) {
  return {pointer<const uint8_t>(payloads), stride,   num_sources, &layout, own_place,
          pointer<const void>(own),         own_type, own_sources};
}

sdp4bit_rounding make_rounding(uint64_t seed, uint32_t step, uint32_t bucket, uint32_t hop, uint32_t source) {
  return {1, step, seed, bucket, source, hop};
}

sdp4bit_execution make_execution(Address stream, int32_t num_threads, int32_t isa) {
  return {pointer<void>(stream), num_threads, isa};
}

sdp4bit_adamw_step make_adamw_step(int64_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
                                   const std::vector<double>& scales, int32_t square_root, Address roots,
                                   Address state_roots) {
  sdp4bit_adamw_step numbers = {step, lr, beta1, beta2, eps, weight_decay, {}, 0, square_root, nullptr, nullptr};
  numbers.roots = pointer<const float>(roots);
  numbers.state_roots = pointer<const float>(state_roots);
  numbers.num_scales = static_cast<int32_t>(scales.size());
  for (std::size_t i = 0; i < scales.size() && i < SDP4BIT_ADAMW_MAX_SCALES; ++i) numbers.scales[i] = scales[i];
  return numbers;
}

void quantize(Address input, int32_t type, Address payload, const sdp4bit_layout& layout,
              const sdp4bit_rounding& rounding, const sdp4bit_execution& execution) {
  check("quantize",
        sdp4bit_quantize(pointer<const void>(input), type, pointer<uint8_t>(payload), &layout, &rounding, &execution));
}

void quantize_difference(Address main, Address model, int32_t type, Address payload, const sdp4bit_layout& layout,
                         const sdp4bit_rounding& rounding, const sdp4bit_execution& execution) {
  check("quantize_difference", sdp4bit_quantize_difference(pointer<const float>(main), pointer<const void>(model), type,
                                                           pointer<uint8_t>(payload), &layout, &rounding, &execution));
}

void dequantize(Address payload, Address output, int32_t type, const sdp4bit_layout& layout,
                const sdp4bit_execution& execution) {
  check("dequantize",
        sdp4bit_dequantize(pointer<const uint8_t>(payload), pointer<void>(output), type, &layout, &execution));
}

void dequantize_add(Address payload, Address output, int32_t type, const sdp4bit_layout& layout,
                    const sdp4bit_execution& execution) {
  check("dequantize_add",
        sdp4bit_dequantize_add(pointer<const uint8_t>(payload), pointer<void>(output), type, &layout, &execution));
}

void dequantize_reduce(const sdp4bit_sources& sources, Address output, int32_t type,
                       const sdp4bit_execution& execution) {
  check("dequantize_reduce", sdp4bit_dequantize_reduce(&sources, pointer<void>(output), type, &execution));
}

void dequantize_reduce_quantize(const sdp4bit_sources& sources, Address payload, const sdp4bit_layout& output_layout,
                                const sdp4bit_rounding& rounding, const sdp4bit_execution& execution) {
  check("dequantize_reduce_quantize",
        sdp4bit_dequantize_reduce_quantize(&sources, pointer<uint8_t>(payload), &output_layout, &rounding, &execution));
}

// A parameter's addresses, its number of elements, and the numbers of its step.
using Advanced = std::tuple<Address, Address, Address, Address, int64_t, const sdp4bit_adamw_step*>;
using Published = std::tuple<Address, Address, Address, Address, Address, int64_t, const sdp4bit_adamw_step*, int32_t>;

void adamw(const std::vector<Advanced>& parameters, const sdp4bit_execution& execution) {
  for (const auto& [main, exp_avg, exp_avg_sq, gradient, num_elements, step] : parameters) {
    check("adamw", sdp4bit_adamw(pointer<float>(main), pointer<float>(exp_avg), pointer<float>(exp_avg_sq),
                                 pointer<const float>(gradient), num_elements, step, &execution));
  }
}

void adamw_provisional(const std::vector<Published>& parameters, const sdp4bit_execution& execution) {
  for (const auto& [published, main, exp_avg, exp_avg_sq, gradient, num_elements, step, second_moment] : parameters) {
    check("adamw_provisional",
          sdp4bit_adamw_provisional(pointer<float>(published), pointer<const float>(main),
                                    pointer<const float>(exp_avg), pointer<const float>(exp_avg_sq),
                                    pointer<const float>(gradient), num_elements, step, second_moment, &execution));
  }
}

void arrive(Address count, uint32_t value) { sdp4bit::arrive(pointer<sdp4bit::Count>(count), value); }

bool await_arrival(Address count, uint32_t value, double seconds) {
  return sdp4bit::await_arrival(pointer<sdp4bit::Count>(count), value, seconds);
}

}  // namespace

PYBIND11_MODULE(SDP4BIT_MODULE, module) {
  // Local types: _cpu and _cuda are loaded side by side and define the same ones.
  py::class_<sdp4bit_layout>(module, "Layout", py::module_local())
      .def(py::init(&make_layout))
      .def("message_bytes", [](const sdp4bit_layout& layout, int64_t num_elements) {
        return sdp4bit_message_bytes(&layout.format, num_elements);
      });
  // Sources point to a layout and to further sources: those live as long.
  py::class_<sdp4bit_sources>(module, "Sources", py::module_local())
      .def(py::init(&make_sources), py::keep_alive<1, 5>(), py::keep_alive<1, 9>(), py::arg("payloads"),
           py::arg("stride"), py::arg("num_sources"), py::arg("layout"), py::arg("own_place") = -1, py::arg("own") = 0,
           py::arg("own_type") = 0, py::arg("own_sources") = nullptr);
  py::class_<sdp4bit_rounding>(module, "Rounding", py::module_local())
      .def(py::init([] { return sdp4bit_rounding{}; }))
      .def(py::init(&make_rounding));
  py::class_<sdp4bit_execution>(module, "Execution", py::module_local()).def(py::init(&make_execution));
  py::class_<sdp4bit_adamw_step>(module, "AdamWStep", py::module_local()).def(py::init(&make_adamw_step));
  module.def("device", &sdp4bit_device);
  module.def("best_isa", &sdp4bit_best_isa);
  module.def("quantize", &quantize, WithoutGil());
  module.def("quantize_difference", &quantize_difference, WithoutGil());
  module.def("dequantize", &dequantize, WithoutGil());
  module.def("dequantize_add", &dequantize_add, WithoutGil());
  module.def("dequantize_reduce", &dequantize_reduce, WithoutGil());
  module.def("dequantize_reduce_quantize", &dequantize_reduce_quantize, WithoutGil());
  module.def("arrive", &arrive);
  module.def("await_arrival", &await_arrival, WithoutGil());
  module.def("adamw", &adamw, WithoutGil());
  module.def("adamw_provisional", &adamw_provisional, WithoutGil());
}
