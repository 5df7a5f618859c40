#include "jobs.h"

int sdp4bit_quantize(const void* input, int32_t input_type, uint8_t* payload, const sdp4bit_layout* layout,
                     const sdp4bit_rounding* rounding, const sdp4bit_execution* execution) {
  sdp4bit::QuantizeJob job = {};
  job.source = sdp4bit::Source::kTensor;
  job.input = input;
  job.input_type = input_type;
  job.payload = payload;
  job.layout = layout;
  job.rounding = rounding;
  return sdp4bit::run(job, *execution);
}
