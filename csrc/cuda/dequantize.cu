// All verbs over the one dequantizing kernel, so that it is compiled once.
#include "dequantize.cuh"

int sdp4bit_dequantize(const uint8_t* payload, void* output, int32_t output_type, const sdp4bit_layout* layout,
                       const sdp4bit_execution* execution) {
  return sdp4bit::launch_dequantize(payload, 0, 1, output, output_type, false, *layout, *execution);
}

int sdp4bit_dequantize_add(const uint8_t* payload, void* output, int32_t output_type, const sdp4bit_layout* layout,
                           const sdp4bit_execution* execution) {
  return sdp4bit::launch_dequantize(payload, 0, 1, output, output_type, true, *layout, *execution);
}

int sdp4bit_dequantize_reduce(const uint8_t* payloads, int64_t source_stride, int32_t num_sources, void* output,
                              int32_t output_type, const sdp4bit_layout* layout, const sdp4bit_execution* execution) {
  return sdp4bit::launch_dequantize(payloads, source_stride, num_sources, output, output_type, false, *layout,
                                    *execution);
}
