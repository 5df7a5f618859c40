#include "quantize.cuh"

using namespace sdp4bit;

template <int kBits>
static int launch_reduction(const uint8_t* payloads, int64_t stride, int32_t num_sources, uint8_t* payload,
                            const sdp4bit_layout& layout, const sdp4bit_layout& output_layout,
                            const sdp4bit_rounding& rounding, const sdp4bit_execution& execution) {
  const ReductionSource<kBits> source = {payloads, stride, num_sources, layout};
  return launch_quantize(source, payload, output_layout, rounding, false, execution);  // already transformed
}

int sdp4bit_dequantize_reduce_quantize(const uint8_t* payloads, int64_t source_stride, int32_t num_sources,
                                       uint8_t* payload, const sdp4bit_layout* layout,
                                       const sdp4bit_layout* output_layout, const sdp4bit_rounding* rounding,
                                       const sdp4bit_execution* execution) {
  if (!is_valid(layout->format)) return SDP4BIT_INVALID_FORMAT;
  const bool sources = num_sources >= 1 && source_stride % kAlignment == 0;
  if (!sources || layout->num_segments != output_layout->num_segments) return SDP4BIT_INVALID_ARGUMENT;
  const auto launch_bits = layout->format.bits == 32  ? launch_reduction<32>
                           : layout->format.bits == 8 ? launch_reduction<8>
                           : layout->format.bits == 4 ? launch_reduction<4>
                           : layout->format.bits == 2 ? launch_reduction<2>
                                                      : launch_reduction<1>;
  return launch_bits(payloads, source_stride, num_sources, payload, *layout, *output_layout, *rounding, *execution);
}
