// Where values come from: elements [index, index + 8) of a segment, zeros behind its end.
#pragma once

#include "elements.cuh"

namespace sdp4bit {

template <int kType>
struct TensorSource {
  const void* data;

  __device__ __forceinline__ Elements load(const sdp4bit_segment& segment, int64_t, int64_t index) const {
    using Element = std::conditional_t<kType == SDP4BIT_FP32, float, uint16_t>;
    return sdp4bit::load<kType>(static_cast<const Element*>(data) + segment.element_offset, index,
                                segment.num_elements);
  }
};

template <int kType>
struct DifferenceSource {
  TensorSource<SDP4BIT_FP32> main;
  TensorSource<kType> model;

  __device__ __forceinline__ Elements load(const sdp4bit_segment& segment, int64_t number, int64_t index) const {
    Elements x = main.load(segment, number, index);
    const Elements y = model.load(segment, number, index);
#pragma unroll
    for (int i = 0; i < kElements; ++i) x.value[i] = x.value[i] - y.value[i];
    return x;
  }
};

// The sum over the sources 0 .. num_sources - 1, in this order.
template <int kBits>
struct ReductionSource {
  const uint8_t* __restrict__ payloads;
  int64_t stride;
  int32_t num_sources;
  sdp4bit_layout layout;

  __device__ __forceinline__ Elements load(const sdp4bit_segment&, int64_t number, int64_t index) const {
    const sdp4bit_segment segment = layout.segments[number];
    const int64_t valid = num_valid(layout.format, segment.num_elements);
    if (index >= valid) return {};
    const uint8_t* codes = payloads + segment.message_offset + index * kBits / 8;
    const uint8_t* scales = payloads + segment.message_offset + scales_offset(layout.format, segment.num_elements);
    // In blocks of 32, so that a division of 32 bits is enough for 2^37 elements.
    const uint32_t group =
        static_cast<uint32_t>(index / kBlock) / static_cast<uint32_t>(layout.format.group_size / kBlock);
    Elements sum = decode<kBits>(codes, scale(scales, group));
#pragma unroll 4
    for (int32_t r = 1; r < num_sources; ++r) {
      codes += stride;
      scales += stride;
      add(sum, decode<kBits>(codes, scale(scales, group)));
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) sum.value[i] = index + i < valid ? sum.value[i] : 0.0f;
    return sum;
  }
  __device__ __forceinline__ float scale(const uint8_t* scales, uint32_t group) const {
    return kBits == 32 ? 1.0f : load_scale(scales, group, layout.format.scale_type);
  }
};

}  // namespace sdp4bit
