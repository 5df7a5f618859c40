// What the verbs ask for, and the functions of one instruction set that do it for a range of groups.
#pragma once

#include "adamw.h"
#include "arithmetic.h"
#include "philox.h"
#include "sources.h"
#include "wire.h"

namespace sdp4bit {

// Where a quantizer's values come from.
enum class Source { kTensor, kDifference, kReduction };

struct QuantizeJob {
  Source source;
  const void* input;  // kTensor: of input_type; kDifference: fp32 main
  int32_t input_type;
  const void* model;  // kDifference: of model_type
  int32_t model_type;
  sdp4bit_sources sources;  // kReduction
  uint8_t* payload;
  const sdp4bit_layout* layout;
  const sdp4bit_rounding* rounding;
};

struct DequantizeJob {
  sdp4bit_sources sources;
  void* output;
  int32_t output_type;
  bool add;  // to what output holds
};

struct AdamwJob {
  float* published;  // null: the state is advanced in place
  float *main, *exp_avg, *exp_avg_sq;
  const float* gradient;
  AdamwNumbers numbers;
  int32_t second_moment;  // of what is published
  int32_t square_root;
  const float *roots, *state_roots;  // SDP4BIT_SQRT_GIVEN
};

// Handle groups [begin, end) of segment `segment`; elements [begin, end) of the tensors.
struct Kernels {
  void (*quantize)(const QuantizeJob& job, int64_t segment, int64_t begin, int64_t end);
  void (*dequantize)(const DequantizeJob& job, int64_t segment, int64_t begin, int64_t end);
  void (*adamw)(const AdamwJob& job, int64_t begin, int64_t end);
  void (*adamw_provisional)(const AdamwJob& job, int64_t begin, int64_t end);
};

extern const Kernels kScalarKernels, kAvx2Kernels, kAvx512Kernels;

// The kernels that `isa` names, null where this machine does not have them.
const Kernels* kernels_for(int32_t isa);

// SDP4BIT_SQRT_RSQRT14 of one element, for code compiled without AVX-512 on a processor that has it.
float rsqrt14_square_root(float value);
// SDP4BIT_SQRT_RSQRT12 of one element.
float rsqrt12_square_root(float value);

// Check, split over the threads, run. Return an error code of sdp4bit.h.
int run(const QuantizeJob& job, const sdp4bit_execution& execution);
int run(const DequantizeJob& job, const sdp4bit_execution& execution);

}  // namespace sdp4bit
