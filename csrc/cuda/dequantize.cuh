// The dequantizing kernel: sum over the sources, transform back, add own elements, put into or onto the output.
// Then its launcher.
#pragma once

#include "launch.cuh"
#include "sources.cuh"

namespace sdp4bit {

// ---- kernel

template <int kType>
__device__ __forceinline__ void put(void* output, const sdp4bit_segment& segment, int64_t index, Elements x,
                                    bool adds) {
  using Element = std::conditional_t<kType == SDP4BIT_FP32, float, uint16_t>;
  Element* to = static_cast<Element*>(output) + segment.element_offset;
  if (adds) {
    Elements held = load<kType, Memory::kWritten>(to, index, segment.num_elements);
    add(held, x);
    x = held;
  }
  store<kType>(to, index, segment.num_elements, x);
}

__device__ __forceinline__ void put(int32_t type, void* output, const sdp4bit_segment& segment, int64_t index,
                                    Elements x, bool adds) {
  switch (type) {
    case SDP4BIT_FP32:
      return put<SDP4BIT_FP32>(output, segment, index, x, adds);
    case SDP4BIT_BF16:
      return put<SDP4BIT_BF16>(output, segment, index, x, adds);
    default:
      return put<SDP4BIT_FP16>(output, segment, index, x, adds);
  }
}

template <class Reduction>
__global__ void __launch_bounds__(256)
    dequantize_kernel(const Reduction source, void* output, int32_t output_type, bool adds) {
  const sdp4bit_layout& layout = source.payloads.layout;
  const int64_t index = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kElements;
  for (int64_t number = blockIdx.y; number < layout.num_segments; number += gridDim.y) {
    const sdp4bit_segment segment = layout.segments[number];
    if (int64_t{blockIdx.x} * blockDim.x * kElements >= segment.num_elements) continue;  // the whole block does
    Elements x = source.load(segment, number, index);
    if (layout.format.hadamard) {
      hadamard(x);
#pragma unroll
      for (int i = 0; i < kElements; ++i) x.value[i] = x.value[i] * kInverseHadamard;
    }
    // No thread leaves its warp before the end: the next segment's transform exchanges elements between all of them.
    if (index < segment.num_elements) {
      source.own.add_to(x, number, index);
      put(output_type, output, segment, index, x, adds);
    }
    __syncwarp();
  }
}

// ---- launcher

inline int launch_dequantize(const sdp4bit_sources& sources, void* output, int32_t output_type, bool adds,
                             const sdp4bit_execution& execution) {
  if (const int error = check_sources(sources)) return error;
  if (!is_type(output_type)) return SDP4BIT_INVALID_ARGUMENT;
  return with_reduction<OwnLast>(sources, [&](const auto& source) {
    const sdp4bit_layout& layout = *sources.layout;
    const int64_t blocks = divide_up(layout.max_elements, 256 * kElements);
    return launch(dequantize_kernel<std::decay_t<decltype(source)>>, blocks, 256, layout.num_segments, execution,
                  source, output, output_type, adds);
  });
}

}  // namespace sdp4bit
