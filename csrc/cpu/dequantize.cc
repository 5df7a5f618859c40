#include "jobs.h"

int sdp4bit_dequantize(const uint8_t* payload, void* output, int32_t output_type, const sdp4bit_layout* layout,
                       const sdp4bit_execution* execution) {
  const sdp4bit_sources sources = sdp4bit::payloads_alone(payload, 0, 1, layout);
  return sdp4bit::run(sdp4bit::DequantizeJob{sources, output, output_type, false}, *execution);
}
