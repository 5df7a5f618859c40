// The conversions of the CUDA toolkit's header that csrc/cuda uses.
#pragma once

#include "arithmetic.h"
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half half) { return half.bits; }
inline float __half2float(__half half) { return sdp4bit::fp16_to_float(half.bits); }
inline __half __float2half_rn(float value) { return {sdp4bit::float_to_fp16(value)}; }
