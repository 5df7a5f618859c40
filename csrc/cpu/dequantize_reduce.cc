#include "jobs.h"

int sdp4bit_dequantize_reduce(const sdp4bit_sources* sources, void* output, int32_t output_type,
                              const sdp4bit_execution* execution) {
  return sdp4bit::run(sdp4bit::DequantizeJob{*sources, output, output_type, false}, *execution);
}
