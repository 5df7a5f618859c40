// Philox4x32-10 (Salmon et al., SC 2011) and the names of a random number, for host and device.
#pragma once

#include "wire.h"

namespace sdp4bit {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u, kPhiloxKeyStep1 = 0xBB67AE85u;
constexpr int kElementsPerPhilox = 16;  // 8 bits an element

struct PhiloxBlock {
  uint32_t word[4];
};

// The counter of random block `block` of a rounding: block, source and the block's high bits, step, bucket and hop.
SDP4BIT_HOST_DEVICE PhiloxBlock philox_counter(const sdp4bit_rounding& rounding, uint64_t block) {
  return {{static_cast<uint32_t>(block), rounding.source << 8 | static_cast<uint32_t>(block >> 32), rounding.step,
           rounding.bucket << 8 | rounding.hop}};
}

// The two key words of round `round`, of ten.
SDP4BIT_HOST_DEVICE constexpr uint32_t philox_key0(uint64_t seed, int round) {
  return static_cast<uint32_t>(seed) + static_cast<uint32_t>(round) * kPhiloxKeyStep0;
}
SDP4BIT_HOST_DEVICE constexpr uint32_t philox_key1(uint64_t seed, int round) {
  return static_cast<uint32_t>(seed >> 32) + static_cast<uint32_t>(round) * kPhiloxKeyStep1;
}

SDP4BIT_HOST_DEVICE PhiloxBlock philox(PhiloxBlock c, uint64_t seed) {
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * c.word[0];
    const uint64_t product1 = uint64_t{kPhiloxMultiplier1} * c.word[2];
    c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ philox_key0(seed, round), static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ philox_key1(seed, round),
          static_cast<uint32_t>(product0)}};
  }
  return c;
}

// The random byte of element `element` (0 .. 15) of a block.
SDP4BIT_HOST_DEVICE uint32_t random_byte(const PhiloxBlock& block, int element) {
  return block.word[element >> 2] >> (8 * (element & 3)) & 0xFF;
}

}  // namespace sdp4bit
