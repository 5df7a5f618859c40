#include "jobs.h"

int sdp4bit_dequantize_reduce_quantize(const sdp4bit_sources* sources, uint8_t* payload,
                                       const sdp4bit_layout* output_layout, const sdp4bit_rounding* rounding,
                                       const sdp4bit_execution* execution) {
  sdp4bit::QuantizeJob job = {};
  job.source = sdp4bit::Source::kReduction;
  job.sources = *sources;
  job.payload = payload;
  job.layout = output_layout;
  job.rounding = rounding;
  return sdp4bit::run(job, *execution);
}
