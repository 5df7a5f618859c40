#include "jobs.h"

int sdp4bit_dequantize(const uint8_t* payload, void* output, int32_t output_type, const sdp4bit_layout* layout,
                       const sdp4bit_execution* execution) {
  return sdp4bit::run(sdp4bit::DequantizeJob{{payload, 0, 1, layout}, output, output_type, false}, *execution);
}
