#include "jobs.h"

int sdp4bit_dequantize_reduce_quantize(const uint8_t* payloads, int64_t source_stride, int32_t num_sources,
                                       uint8_t* payload, const sdp4bit_layout* layout,
                                       const sdp4bit_layout* output_layout, const sdp4bit_rounding* rounding,
                                       const sdp4bit_execution* execution) {
  sdp4bit::QuantizeJob job = {};
  job.source = sdp4bit::Source::kReduction;
  job.reduction = {payloads, source_stride, num_sources, layout};
  job.payload = payload;
  job.layout = output_layout;
  job.rounding = rounding;
  return sdp4bit::run(job, *execution);
}
