#include "jobs.h"

int sdp4bit_dequantize_reduce(const uint8_t* payloads, int64_t source_stride, int32_t num_sources, void* output,
                              int32_t output_type, const sdp4bit_layout* layout, const sdp4bit_execution* execution) {
  const sdp4bit::Reduction reduction = {payloads, source_stride, num_sources, layout};
  return sdp4bit::run(sdp4bit::DequantizeJob{reduction, output, output_type, false}, *execution);
}
