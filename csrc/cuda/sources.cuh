// Where values come from: elements [index, index + 8) of a segment, zeros behind its end. Every thread of a warp loads,
// because own elements are transformed with those of its neighbours.
#pragma once

#include "elements.cuh"
#include "sources.h"

namespace sdp4bit {

template <int kType, Memory kMemory = Memory::kReadOnly>
struct TensorSource {
  const void* data;

  __device__ __forceinline__ Elements load(const sdp4bit_segment& segment, int64_t, int64_t index) const {
    using Element = std::conditional_t<kType == SDP4BIT_FP32, float, uint16_t>;
    return sdp4bit::load<kType, kMemory>(static_cast<const Element*>(data) + segment.element_offset, index,
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

struct Payloads {
  const uint8_t* __restrict__ first;
  int64_t stride;
  int32_t num_sources;
  sdp4bit_layout layout;
};

template <int kBits>
__device__ __forceinline__ Elements decode(const uint8_t* codes, const uint8_t* scales, uint32_t group,
                                           int32_t scale_type) {
  return decode<kBits>(codes, kBits == 32 ? 1.0f : load_scale(scales, group, scale_type));
}

// The sum over the sources 0 .. num_sources - 1, in this order; `stand_in` is taken for the one at `place`.
template <int kBits>
__device__ __forceinline__ Elements sum(const Payloads& payloads, int64_t number, int64_t index, int32_t place,
                                        const Elements& stand_in) {
  const sdp4bit_format& format = payloads.layout.format;
  const sdp4bit_segment segment = payloads.layout.segments[number];
  const int64_t valid = num_valid(format, segment.num_elements);
  if (index >= valid) return {};
  const uint8_t* codes = payloads.first + segment.message_offset + index * kBits / 8;
  const uint8_t* scales = payloads.first + segment.message_offset + scales_offset(format, segment.num_elements);
  // In blocks of 32, so that a division of 32 bits is enough for 2^37 elements.
  const uint32_t group = static_cast<uint32_t>(index / kBlock) / static_cast<uint32_t>(format.group_size / kBlock);
  Elements total = place == 0 ? stand_in : decode<kBits>(codes, scales, group, format.scale_type);
#pragma unroll 4
  for (int32_t r = 1; r < payloads.num_sources; ++r) {
    codes += payloads.stride;
    scales += payloads.stride;
    add(total, r == place ? stand_in : decode<kBits>(codes, scales, group, format.scale_type));
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) total.value[i] = index + i < valid ? total.value[i] : 0.0f;
  return total;
}

// Stands in for a source that is left out: adding -0.0 changes no value, not even the sign of a zero.
__device__ __forceinline__ Elements nothing() {
  Elements x;
#pragma unroll
  for (int i = 0; i < kElements; ++i) x.value[i] = -0.0f;
  return x;
}

struct NothingOwn {
  static constexpr int32_t place = -1;

  __device__ __forceinline__ Elements stand_in(int64_t, int64_t) const { return {}; }
  __device__ __forceinline__ void add_to(Elements&, int64_t, int64_t) const {}
};

// Elements that were never quantized, and what the sum of their node consists of besides, if there is one.
// The kernel may write them: its output can be the same memory.
struct OwnElements {
  int32_t place;
  const void* data;
  int32_t type;
  sdp4bit_layout layout;  // of the sum that data is a part of
  int32_t place_in_node;
  Payloads node;  // num_sources is 0: there is none
  bool alone;     // there is no other source

  __device__ __forceinline__ Elements load(int64_t number, int64_t index) const {
    const sdp4bit_segment& segment = layout.segments[number];
    switch (type) {
      case SDP4BIT_FP32:
        return TensorSource<SDP4BIT_FP32, Memory::kWritten>{data}.load(segment, number, index);
      case SDP4BIT_BF16:
        return TensorSource<SDP4BIT_BF16, Memory::kWritten>{data}.load(segment, number, index);
      default:
        return TensorSource<SDP4BIT_FP16, Memory::kWritten>{data}.load(segment, number, index);
    }
  }
  __device__ __forceinline__ Elements sum_of_node(int64_t number, int64_t index, const Elements& x) const {
    if (node.num_sources == 0) return x;
    switch (node.layout.format.bits) {
      case 32:
        return sum<32>(node, number, index, place_in_node, x);
      case 8:
        return sum<8>(node, number, index, place_in_node, x);
      case 4:
        return sum<4>(node, number, index, place_in_node, x);
      case 2:
        return sum<2>(node, number, index, place_in_node, x);
      default:
        return sum<1>(node, number, index, place_in_node, x);
    }
  }
};

// For a sum that stays transformed: own elements are transformed as the payloads' are, and stand in their place.
struct OwnInPlace : OwnElements {
  __device__ __forceinline__ Elements stand_in(int64_t number, int64_t index) const {
    Elements x = load(number, index);
    if (layout.format.hadamard) hadamard(x);
    return sum_of_node(number, index, x);
  }
};

// For a sum that is transformed back: all others are summed, and own elements are added to the outcome as they are.
struct OwnLast : OwnElements {
  __device__ __forceinline__ Elements stand_in(int64_t number, int64_t index) const {
    return sum_of_node(number, index, nothing());
  }
  __device__ __forceinline__ void add_to(Elements& others, int64_t number, int64_t index) const {
    const Elements own = load(number, index);
    if (alone) {
      others = own;
    } else {
      add(others, own);
    }
  }
};

template <int kBits, class Own>
struct ReductionSource {
  Payloads payloads;
  Own own;

  __device__ __forceinline__ Elements load(const sdp4bit_segment&, int64_t number, int64_t index) const {
    return sum<kBits>(payloads, number, index, own.place, own.stand_in(number, index));
  }
};

// ---- from what the caller gave: kernels take it by value

inline Payloads payloads_of(const sdp4bit_sources& sources) {
  return {sources.payloads, sources.source_stride, sources.num_sources, *sources.layout};
}

inline OwnElements own_of(const sdp4bit_sources& sources) {
  const sdp4bit_sources* node = sources.own_sources;
  const bool alone = sources.num_sources == 1 && (node == nullptr || node->num_sources == 1);
  if (node == nullptr) return {sources.own_place, sources.own, sources.own_type, *sources.layout, -1, {}, alone};
  return {sources.own_place, node->own, node->own_type, *node->layout, node->own_place, payloads_of(*node), alone};
}

template <class Own, int kBits, class Launch>
int with_reduction(const sdp4bit_sources& sources, const Launch& launch) {
  if (sources.own_place < 0) return launch(ReductionSource<kBits, NothingOwn>{payloads_of(sources), {}});
  return launch(ReductionSource<kBits, Own>{payloads_of(sources), {own_of(sources)}});
}

// Call launch(source) with the ReductionSource over `sources`; Own: OwnInPlace or OwnLast, if there are own elements.
template <class Own, class Launch>
int with_reduction(const sdp4bit_sources& sources, const Launch& launch) {
  switch (sources.layout->format.bits) {
    case 32:
      return with_reduction<Own, 32>(sources, launch);
    case 8:
      return with_reduction<Own, 8>(sources, launch);
    case 4:
      return with_reduction<Own, 4>(sources, launch);
    case 2:
      return with_reduction<Own, 2>(sources, launch);
    default:
      return with_reduction<Own, 1>(sources, launch);
  }
}

}  // namespace sdp4bit
