// What one thread does: 8 consecutive elements, loaded, transformed with its neighbours, packed or stored.
// Every thread of a warp takes part in every shuffle; threads without elements carry zeros.
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "arithmetic.h"
#include "philox.h"
#include "wire.h"

namespace sdp4bit {

constexpr int kElements = 8;             // of a thread
constexpr int64_t kNowhere = INT64_MAX;  // the index of a thread without elements, behind every tensor's end
constexpr unsigned kWarp = 0xFFFFFFFFu;
constexpr float kInverseHadamard = 1.0f / kBlock;
static_assert(4 * kElements == kElementsPerPhilox,
              "a thread takes half of a Philox block's bytes, as they are or mirrored");

struct Elements {
  float value[kElements];
};

__device__ __forceinline__ float word_to_float(uint16_t word, int32_t type) {
  return type == SDP4BIT_BF16 ? bf16_to_float(word) : __half2float(__ushort_as_half(word));
}
__device__ __forceinline__ uint16_t float_to_word(float value, int32_t type) {
  return type == SDP4BIT_BF16 ? float_to_bf16(value) : __half_as_ushort(__float2half_rn(value));
}

// What a kernel writes as well must not come through the read-only cache.
enum class Memory { kReadOnly, kWritten };

// Elements [index, index + 8) of a tensor of num_elements; zeros behind its end.
template <int kType, Memory kMemory = Memory::kReadOnly>
__device__ __forceinline__ Elements load(const void* data, int64_t index, int64_t num_elements) {
  using Element = std::conditional_t<kType == SDP4BIT_FP32, float, uint16_t>;
  Elements x = {};
  if (index >= num_elements) return x;
  const Element* from = static_cast<const Element*>(data) + index;
  alignas(16) Element raw[kElements] = {};
  if (index + kElements <= num_elements && is_aligned(from)) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof raw / 16); ++i) {
      const uint4* words = reinterpret_cast<const uint4*>(from) + i;
      reinterpret_cast<uint4*>(raw)[i] = kMemory == Memory::kReadOnly ? __ldg(words) : *words;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) raw[i] = index + i < num_elements ? from[i] : Element{0};
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    if constexpr (kType == SDP4BIT_FP32) {
      x.value[i] = raw[i];
    } else {
      x.value[i] = word_to_float(raw[i], kType);
    }
  }
  return x;
}

template <int kType>
__device__ __forceinline__ void store(void* data, int64_t index, int64_t num_elements, const Elements& x) {
  using Element = std::conditional_t<kType == SDP4BIT_FP32, float, uint16_t>;
  Element* to = static_cast<Element*>(data) + index;
  alignas(16) Element raw[kElements];
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    if constexpr (kType == SDP4BIT_FP32) {
      raw[i] = x.value[i];
    } else {
      raw[i] = float_to_word(x.value[i], kType);
    }
  }
  if (index + kElements <= num_elements && is_aligned(to)) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof raw / 16); ++i) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(raw)[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (index + i < num_elements) to[i] = raw[i];
    }
  }
}

__device__ __forceinline__ void add(Elements& x, const Elements& y) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) x.value[i] = x.value[i] + y.value[i];
}

// Strides 1, 2, 4 within the thread, 8 and 16 with the threads beside it: four threads hold a Hadamard block.
__device__ __forceinline__ void hadamard(Elements& x) {
#pragma unroll
  for (int stride = 1; stride < kElements; stride *= 2) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (i & stride) continue;
      const float low = x.value[i], high = x.value[i + stride];
      x.value[i] = low + high;
      x.value[i + stride] = low - high;
    }
  }
#pragma unroll
  for (int step = 1; step < kBlock / kElements; step *= 2) {
    const bool upper = threadIdx.x & step;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const float other = __shfl_xor_sync(kWarp, x.value[i], step);
      x.value[i] = upper ? other - x.value[i] : x.value[i] + other;
    }
  }
}

// The bytes that hold 8 codes of kBits bits.
template <int kBits>
struct Packed {
  using Word =
      std::conditional_t<kBits == 8, uint2,
                         std::conditional_t<kBits == 4, uint32_t, std::conditional_t<kBits == 2, uint16_t, uint8_t>>>;
};

template <int kBits>
__device__ __forceinline__ Elements decode(const uint8_t* codes, float scale) {
  Elements x;
  if constexpr (kBits == 32) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      reinterpret_cast<uint4*>(x.value)[i] = __ldg(reinterpret_cast<const uint4*>(codes) + i);
    }
  } else {
    using Word = typename Packed<kBits>::Word;
    alignas(8) uint8_t bytes[sizeof(Word)];
    *reinterpret_cast<Word*>(bytes) = __ldg(reinterpret_cast<const Word*>(codes));
#pragma unroll
    for (int i = 0; i < kElements; ++i) x.value[i] = static_cast<float>(unpack_code(bytes, i, kBits)) * scale;
  }
  return x;
}

// The Philox block whose first 8 bytes are those of elements [index, index + 8). What three neighbours take of it is
// thrown away: computing it again is cheaper than shuffles, and memory is the limit.
__device__ __forceinline__ PhiloxBlock random_block(const sdp4bit_rounding& rounding, int64_t index) {
  const PhiloxBlock block = philox(philox_counter(rounding, index / kElementsPerPhilox), rounding.seed);
  const bool upper = index & kElements, mirrored = index & 2 * kElements;
  const uint32_t first = upper ? block.word[2] : block.word[0], second = upper ? block.word[3] : block.word[1];
  return {{mirrored ? mirror(first) : first, mirrored ? mirror(second) : second, 0, 0}};
}

template <int kBits>
__device__ __forceinline__ void encode(const Elements& x, float scale, const sdp4bit_rounding& rounding,
                                       int64_t random_index, uint8_t* codes) {
  using Word = typename Packed<kBits>::Word;
  alignas(8) uint8_t bytes[sizeof(Word)] = {};
  if (is_coded(scale)) {
    const float inverse_scale = 1.0f / scale;
    PhiloxBlock random = {};
    if (rounding.stochastic) random = random_block(rounding, random_index);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int code = rounding.stochastic ? code_stochastic(x.value[i], inverse_scale, kBits, random_byte(random, i))
                                           : code_to_nearest(x.value[i], inverse_scale, kBits);
      constexpr int kPerByte = 8 / kBits;
      bytes[i / kPerByte] |= static_cast<uint8_t>((code & ((1 << kBits) - 1)) << (kPerByte - 1 - i % kPerByte) * kBits);
    }
  }
  *reinterpret_cast<Word*>(codes) = *reinterpret_cast<const Word*>(bytes);
}

}  // namespace sdp4bit
