#include "quantize.cuh"

using namespace sdp4bit;

int sdp4bit_dequantize_reduce_quantize(const sdp4bit_sources* sources, uint8_t* payload,
                                       const sdp4bit_layout* output_layout, const sdp4bit_rounding* rounding,
                                       const sdp4bit_execution* execution) {
  if (const int error = check_sources(*sources)) return error;
  if (sources->layout->num_segments != output_layout->num_segments) return SDP4BIT_INVALID_ARGUMENT;
  return with_reduction<OwnInPlace>(*sources, [&](const auto& source) {
    return launch_quantize(source, payload, *output_layout, *rounding, false, *execution);  // already transformed
  });
}
