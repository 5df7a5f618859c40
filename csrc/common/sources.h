// Whether a sum's sources make sense, for cpu/ and cuda/ alike.
#pragma once

#include "wire.h"

namespace sdp4bit {

inline bool is_type(int32_t type) { return type >= SDP4BIT_FP32 && type <= SDP4BIT_FP16; }

// A sum of nothing but payloads, a single one's too.
inline sdp4bit_sources payloads_alone(const uint8_t* payloads, int64_t stride, int32_t num_sources,
                                      const sdp4bit_layout* layout) {
  return {payloads, stride, num_sources, layout, -1, nullptr, SDP4BIT_FP32, nullptr};
}

inline int check_one_level(const sdp4bit_sources& sources) {
  if (!is_valid(sources.layout->format)) return SDP4BIT_INVALID_FORMAT;
  const bool payloads = sources.num_sources >= 1 && sources.source_stride % kAlignment == 0;
  const bool own = sources.own_place == -1 || (sources.own_place >= 0 && sources.own_place < sources.num_sources);
  return payloads && own && is_aligned(sources.payloads) ? SDP4BIT_OK : SDP4BIT_INVALID_ARGUMENT;
}

// Whether the own elements of a sum that has some are a tensor of a known type.
inline bool owns_tensor(const sdp4bit_sources& sources) {
  return sources.own_sources == nullptr && is_type(sources.own_type);
}

inline int check_sources(const sdp4bit_sources& sources) {
  const int error = check_one_level(sources);
  if (error || sources.own_place < 0 || owns_tensor(sources)) return error;
  if (sources.own_sources == nullptr) return SDP4BIT_INVALID_ARGUMENT;
  const sdp4bit_sources& inner = *sources.own_sources;
  if (const int inner_error = check_one_level(inner)) return inner_error;
  const bool same_ranges = inner.layout->num_segments == sources.layout->num_segments &&
                           inner.layout->format.hadamard == sources.layout->format.hadamard;
  return same_ranges && inner.own_place >= 0 && owns_tensor(inner) ? SDP4BIT_OK : SDP4BIT_INVALID_ARGUMENT;
}

}  // namespace sdp4bit
