// The message as constants: the same formulas as sdp4bit_patches/wire.py, for host and device.
#pragma once

#include <cstdint>

#include "sdp4bit.h"

#ifdef __CUDACC__
#define SDP4BIT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SDP4BIT_HOST_DEVICE inline
#endif

namespace sdp4bit {

constexpr int64_t kAlignment = 16;
constexpr int kBlock = 32;  // elements of a Hadamard block; group sizes and random offsets are multiples of it
constexpr int kMaxGroupSize = 8192;

SDP4BIT_HOST_DEVICE constexpr int64_t divide_up(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}
SDP4BIT_HOST_DEVICE constexpr int64_t align(int64_t num_bytes) { return divide_up(num_bytes, kAlignment) * kAlignment; }
SDP4BIT_HOST_DEVICE constexpr int64_t scale_bytes(const sdp4bit_format& format) {
  return format.bits == 32 ? 0 : format.scale_type == SDP4BIT_BF16 ? 2 : 4;
}
SDP4BIT_HOST_DEVICE constexpr int64_t num_groups(const sdp4bit_format& format, int64_t num_elements) {
  return divide_up(num_elements, format.group_size);
}
SDP4BIT_HOST_DEVICE constexpr int64_t codes_bytes(const sdp4bit_format& format, int64_t num_elements) {
  return num_groups(format, num_elements) * (int64_t{format.group_size} * format.bits / 8);
}
SDP4BIT_HOST_DEVICE constexpr int64_t scales_offset(const sdp4bit_format& format, int64_t num_elements) {
  return align(codes_bytes(format, num_elements));
}
SDP4BIT_HOST_DEVICE constexpr int64_t message_bytes(const sdp4bit_format& format, int64_t num_elements) {
  return scales_offset(format, num_elements) + align(num_groups(format, num_elements) * scale_bytes(format));
}
// Elements that are no filling: those of the tensor, rounded up to whole Hadamard blocks.
SDP4BIT_HOST_DEVICE constexpr int64_t num_valid(const sdp4bit_format& format, int64_t num_elements) {
  return format.hadamard ? divide_up(num_elements, format.hadamard) * format.hadamard : num_elements;
}

SDP4BIT_HOST_DEVICE bool is_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % kAlignment == 0;
}

constexpr bool is_valid(const sdp4bit_format& format) {
  const bool bits = format.bits == 1 || format.bits == 2 || format.bits == 4 || format.bits == 8 || format.bits == 32;
  const bool group =
      format.group_size >= kBlock && format.group_size <= kMaxGroupSize && format.group_size % kBlock == 0;
  const bool scales = format.scale_type == SDP4BIT_FP32 || format.scale_type == SDP4BIT_BF16;
  const bool one_bit = format.one_bit_scale == SDP4BIT_MEAN || format.one_bit_scale == SDP4BIT_ABSMAX;
  return bits && group && scales && one_bit && (format.hadamard == 0 || format.hadamard == kBlock);
}

static_assert(sizeof(sdp4bit_segment) == 32, "a row of the int64 table that wire.Segment describes");
static_assert(message_bytes({4, 128, 0, SDP4BIT_FP32, 0}, 0) == 0, "an empty message has no bytes");
static_assert(message_bytes({4, 128, 0, SDP4BIT_FP32, 0}, 128) == 64 + 16, "codes, then one scale on 16 bytes");
static_assert(message_bytes({4, 128, 0, SDP4BIT_FP32, 0}, 129) == 128 + 16, "the last group is whole");
static_assert(message_bytes({8, 128, 32, SDP4BIT_FP32, 0}, 4096) == 4096 + 128, "8.25 bits an element");
static_assert(message_bytes({4, 2048, 0, SDP4BIT_BF16, 0}, 1 << 20) == (1 << 19) + 1024, "bf16 scales");
static_assert(scales_offset({1, 32, 0, SDP4BIT_FP32, 0}, 32) == 16, "4 bytes of codes, scales on 16");
static_assert(message_bytes({32, 32, 0, SDP4BIT_FP32, 0}, 33) == 256, "the identity has no scales");

}  // namespace sdp4bit
