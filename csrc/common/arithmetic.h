// One element's and one group's arithmetic, for host and device: sdp4bit_patches/reference.py, line by line.
// Compiled without contraction (-ffp-contract=off, --fmad=false): every operation is rounded once.
#pragma once

#include <cmath>
#include <cstring>

#include "wire.h"

namespace sdp4bit {

constexpr uint32_t kInfinityBits = 0x7F800000u, kNanBits = 0x7FC00000u, kLargestBf16Bits = 0x7F7F0000u;
constexpr uint32_t kSmallestScaleBits = 0x04800000u;  // 2^-118: 256 times the reciprocal of every scale is finite

SDP4BIT_HOST_DEVICE uint32_t bits_of(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

SDP4BIT_HOST_DEVICE float float_of(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

SDP4BIT_HOST_DEVICE float bf16_to_float(uint16_t bf16) { return float_of(uint32_t{bf16} << 16); }

SDP4BIT_HOST_DEVICE uint16_t float_to_bf16(float value) {  // to nearest even; every NaN becomes 0x7FC0
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFFu) > kInfinityBits) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

SDP4BIT_HOST_DEVICE float fp16_to_float(uint16_t fp16) {
  const uint32_t sign = uint32_t{fp16} >> 15 << 31, rest = fp16 & 0x7FFFu;
  if (rest >= 0x7C00u) return float_of(sign | kInfinityBits | rest << 13);
  if (rest >= 0x0400u) return float_of(sign | ((rest << 13) + (112u << 23)));
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // a denormal fp16 is a normal float
  return float_of(sign | bits_of(magnitude));
}

SDP4BIT_HOST_DEVICE uint16_t float_to_fp16(float value) {  // to nearest even; every NaN becomes 0x7E00
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
  if (rest > kInfinityBits) return 0x7E00;
  if (rest >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and above round to infinity
  if (rest >= 0x38800000u) {
    return static_cast<uint16_t>(sign | (rest - (112u << 23) + 0xFFFu + (rest >> 13 & 1)) >> 13);
  }
  // Adding 0.5 leaves the multiple of 2^-24 in the low bits, rounded to nearest even by the addition itself.
  return static_cast<uint16_t>(sign | (bits_of(float_of(rest) + 0.5f) - 0x3F000000u));
}

SDP4BIT_HOST_DEVICE int largest_code(int bits) { return bits > 1 ? (1 << (bits - 1)) - 1 : 1; }

// What the group's scale field holds: `magnitude` is the absmax, or the mean magnitude at one bit. As a float. Without
// branches, so that compilers handle several groups at once.
SDP4BIT_HOST_DEVICE float group_scale(const sdp4bit_format& format, uint32_t absmax_bits, float magnitude) {
  const float scale = magnitude / static_cast<float>(largest_code(format.bits));
  uint32_t bits = bits_of(scale);  // positive, so that integers order like floats
  const bool finite = (absmax_bits < kInfinityBits) & (bits < kInfinityBits);
  bits = bits < kSmallestScaleBits ? kSmallestScaleBits : bits;
  const uint32_t upwards = (bits + 0xFFFFu) & 0xFFFF0000u;  // so that no code has to be clipped
  const uint32_t in_bf16 = upwards < kLargestBf16Bits ? upwards : kLargestBf16Bits;
  bits = format.scale_type == SDP4BIT_FP32 ? bits : in_bf16;
  bits = finite ? bits : kNanBits;
  return float_of(absmax_bits == 0 ? 0 : bits);
}

SDP4BIT_HOST_DEVICE bool is_coded(float scale) { return scale > 0.0f; }  // neither a zero group nor a NaN one

SDP4BIT_HOST_DEVICE bool uses_mean(const sdp4bit_format& format) {
  return format.bits == 1 && format.one_bit_scale == SDP4BIT_MEAN;
}

SDP4BIT_HOST_DEVICE int clamp_code(int code, int largest) {
  return code > largest ? largest : code < -largest ? -largest : code;
}

// The signed code of `value`; at one bit, 1 stands for minus.
SDP4BIT_HOST_DEVICE int code_to_nearest(float value, float inverse_scale, int bits) {
  if (bits == 1) return value < 0.0f;
  return clamp_code(static_cast<int>(rintf(value * inverse_scale)), largest_code(bits));
}

// |scaled| passes the largest code by less than 2^-9, so that there is nothing to clamp and all fits in 16 bits.
SDP4BIT_HOST_DEVICE int code_stochastic(float value, float inverse_scale, int bits, uint32_t random_byte) {
  const float scaled = value * inverse_scale;
  const int random = static_cast<int>(random_byte);
  if (bits == 1) return static_cast<int>(rintf(scaled * 128.0f)) + random < 128;
  return (static_cast<int>(rintf(scaled * 256.0f)) + random) >> 8;
}

// The value that stands `index` places into the codes, as an integer: +-1 at one bit.
SDP4BIT_HOST_DEVICE int unpack_code(const uint8_t* codes, int64_t index, int bits) {
  if (bits == 8) return static_cast<int8_t>(codes[index]);
  const int64_t per_byte = 8 / bits;
  const int shift = static_cast<int>(per_byte - 1 - index % per_byte) * bits;
  const int code = codes[index / per_byte] >> shift & ((1 << bits) - 1);
  return bits == 1 ? 1 - 2 * code : code - (code >> (bits - 1) << bits);
}

SDP4BIT_HOST_DEVICE float load_scale(const uint8_t* scales, int64_t group, int scale_type) {
  if (scale_type == SDP4BIT_FP32) return reinterpret_cast<const float*>(scales)[group];
  return bf16_to_float(reinterpret_cast<const uint16_t*>(scales)[group]);
}

SDP4BIT_HOST_DEVICE void store_scale(uint8_t* scales, int64_t group, int scale_type, float scale) {
  if (scale_type == SDP4BIT_FP32) {
    reinterpret_cast<float*>(scales)[group] = scale;
  } else {
    reinterpret_cast<uint16_t*>(scales)[group] = static_cast<uint16_t>(bits_of(scale) >> 16);
  }
}

}  // namespace sdp4bit
