#include "jobs.h"

int sdp4bit_quantize_difference(const float* main, const void* model, int32_t model_type, uint8_t* payload,
                                const sdp4bit_layout* layout, const sdp4bit_rounding* rounding,
                                const sdp4bit_execution* execution) {
  sdp4bit::QuantizeJob job = {};
  job.source = sdp4bit::Source::kDifference;
  job.input = main;
  job.model = model;
  job.model_type = model_type;
  job.payload = payload;
  job.layout = layout;
  job.rounding = rounding;
  return sdp4bit::run(job, *execution);
}
