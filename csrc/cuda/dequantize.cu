// All verbs over the one dequantizing kernel, so that it is compiled once.
#include "dequantize.cuh"

int sdp4bit_dequantize(const uint8_t* payload, void* output, int32_t output_type, const sdp4bit_layout* layout,
                       const sdp4bit_execution* execution) {
  const sdp4bit_sources sources = sdp4bit::payloads_alone(payload, 0, 1, layout);
  return sdp4bit::launch_dequantize(sources, output, output_type, false, *execution);
}

int sdp4bit_dequantize_add(const uint8_t* payload, void* output, int32_t output_type, const sdp4bit_layout* layout,
                           const sdp4bit_execution* execution) {
  const sdp4bit_sources sources = sdp4bit::payloads_alone(payload, 0, 1, layout);
  return sdp4bit::launch_dequantize(sources, output, output_type, true, *execution);
}

int sdp4bit_dequantize_reduce(const sdp4bit_sources* sources, void* output, int32_t output_type,
                              const sdp4bit_execution* execution) {
  return sdp4bit::launch_dequantize(*sources, output, output_type, false, *execution);
}
