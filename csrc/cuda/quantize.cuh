// The quantizing kernel over any source, then its launcher.
#pragma once

#include <cuda_runtime.h>

#include "launch.cuh"
#include "sources.cuh"

namespace sdp4bit {

struct Target {
  uint8_t* payload;
  sdp4bit_layout layout;
  sdp4bit_rounding rounding;
  bool transforms;
  int threads_per_group;  // a power of two up to 32, or all threads of the block
};

// ---- kernel

// Combine a value over the threads of a group, neighbours first: every thread gets the same result.
template <class T, class Combine>
__device__ __forceinline__ T reduce_group(T value, int threads_per_group, T nothing, T* shared, Combine combine) {
  for (int step = 1; step < min(threads_per_group, 32); step *= 2) {
    value = combine(value, __shfl_xor_sync(kWarp, value, step));
  }
  if (threads_per_group <= 32) return value;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  __syncthreads();  // what an earlier call left in shared has been read
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  value = lane < num_warps ? shared[lane] : nothing;
  for (int step = 1; step < 32; step *= 2) value = combine(value, __shfl_xor_sync(kWarp, value, step));
  return value;
}

__device__ __forceinline__ uint32_t group_absmax(const Elements& x, int threads_per_group, uint32_t* shared) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) largest = max(largest, bits_of(x.value[i]) & 0x7FFFFFFFu);
  return reduce_group(largest, threads_per_group, 0u, shared, [](uint32_t a, uint32_t b) { return max(a, b); });
}

__device__ __forceinline__ float group_sum(const Elements& x, int threads_per_group, float* shared) {
  float sums[kElements];
#pragma unroll
  for (int i = 0; i < kElements; ++i) sums[i] = fabsf(x.value[i]);
#pragma unroll
  for (int width = kElements; width > 1; width /= 2) {
#pragma unroll
    for (int i = 0; i < width / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
  }
  return reduce_group(sums[0], threads_per_group, 0.0f, shared, [](float a, float b) { return a + b; });
}

__device__ __forceinline__ void encode(int bits, const Elements& x, float scale, const sdp4bit_rounding& rounding,
                                       int64_t random_index, uint8_t* codes) {
  switch (bits) {
    case 32:
#pragma unroll
      for (int i = 0; i < 2; ++i) reinterpret_cast<uint4*>(codes)[i] = reinterpret_cast<const uint4*>(x.value)[i];
      return;
    case 8:
      return encode<8>(x, scale, rounding, random_index, codes);
    case 4:
      return encode<4>(x, scale, rounding, random_index, codes);
    case 2:
      return encode<2>(x, scale, rounding, random_index, codes);
    default:
      return encode<1>(x, scale, rounding, random_index, codes);
  }
}

// The bytes between codes and scales, and behind the scales: fewer than 16 each.
__device__ __forceinline__ void clear_gaps(const sdp4bit_format& format, uint8_t* message, int64_t num_elements) {
  const int64_t scales_begin = scales_offset(format, num_elements), end = message_bytes(format, num_elements);
  for (int64_t i = codes_bytes(format, num_elements); i < scales_begin; ++i) message[i] = 0;
  for (int64_t i = scales_begin + num_groups(format, num_elements) * scale_bytes(format); i < end; ++i) message[i] = 0;
}

template <class Source>
__device__ __forceinline__ void quantize_group(const Source& source, const Target& target,
                                               const sdp4bit_segment& segment, int64_t number, int64_t group,
                                               int thread, uint32_t* shared) {
  const sdp4bit_format& format = target.layout.format;
  const int64_t groups = num_groups(format, segment.num_elements), first = group * format.group_size;
  const bool works = group < groups && thread * kElements < format.group_size;
  const int64_t index = works ? first + thread * kElements : kNowhere;
  Elements x = source.load(segment, number, index);
  if (target.transforms) hadamard(x);
  const uint32_t absmax = group_absmax(x, target.threads_per_group, shared);
  float magnitude = float_of(absmax);
  if (uses_mean(format)) {
    const int64_t left = num_valid(format, segment.num_elements) - first;
    magnitude = group_sum(x, target.threads_per_group, reinterpret_cast<float*>(shared)) /
                static_cast<float>(left < format.group_size ? left : format.group_size);
  }
  if (!works) return;
  uint8_t* message = target.payload + segment.message_offset;
  const float scale = group_scale(format, absmax, magnitude);
  encode(format.bits, x, scale, target.rounding, segment.random_offset + index, message + index * format.bits / 8);
  if (thread != 0) return;
  if (format.bits != 32) {
    store_scale(message + scales_offset(format, segment.num_elements), group, format.scale_type, scale);
  }
  if (group == groups - 1) clear_gaps(format, message, segment.num_elements);
}

template <class Source>
__global__ void __launch_bounds__(1024) quantize_kernel(const Source source, const Target target) {
  __shared__ uint32_t shared[32];
  const int groups_per_block = blockDim.x / target.threads_per_group;
  const int64_t group = int64_t{blockIdx.x} * groups_per_block + threadIdx.x / target.threads_per_group;
  const int thread = threadIdx.x % target.threads_per_group;
  for (int64_t number = blockIdx.y; number < target.layout.num_segments; number += gridDim.y) {
    const sdp4bit_segment segment = target.layout.segments[number];
    const int64_t first_group = int64_t{blockIdx.x} * groups_per_block;
    if (first_group >= num_groups(target.layout.format, segment.num_elements)) continue;  // the whole block does
    quantize_group(source, target, segment, number, group, thread, shared);
  }
}

// ---- launcher

template <class Source>
int launch_quantize(const Source& source, uint8_t* payload, const sdp4bit_layout& layout,
                    const sdp4bit_rounding& rounding, bool transforms, const sdp4bit_execution& execution) {
  if (!is_valid(layout.format)) return SDP4BIT_INVALID_FORMAT;
  if (rounding.stochastic && uses_mean(layout.format)) return SDP4BIT_INVALID_ARGUMENT;
  const int needed = layout.format.group_size / kElements;
  int threads_per_group = 4, block = 256;
  while (threads_per_group < needed && threads_per_group < 32) threads_per_group *= 2;
  if (needed > 32) threads_per_group = block = static_cast<int>(divide_up(needed, 32) * 32);
  const Target target = {payload, layout, rounding, transforms, threads_per_group};
  const int64_t blocks = divide_up(num_groups(layout.format, layout.max_elements), block / threads_per_group);
  return launch(quantize_kernel<Source>, blocks, block, layout.num_segments, execution, source, target);
}

}  // namespace sdp4bit
