// Philox4x32-7 (Salmon et al., SC 2011) and the names of a random number, for host and device.
#pragma once

#include "wire.h"

namespace sdp4bit {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u, kPhiloxKeyStep1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 7;
constexpr int kElementsPerPhilox = 32;  // 8 bits an element; each of a block's 16 bytes serves twice, see mirror

struct PhiloxBlock {
  uint32_t word[4];
};

// The counter of random block `block` of a rounding: block, source and the block's high bits, step, bucket and hop.
SDP4BIT_HOST_DEVICE PhiloxBlock philox_counter(const sdp4bit_rounding& rounding, uint64_t block) {
  return {{static_cast<uint32_t>(block), rounding.source << 8 | static_cast<uint32_t>(block >> 32), rounding.step,
           rounding.bucket << 8 | rounding.hop}};
}

// The two key words of round `round`.
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
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * c.word[0];
    const uint64_t product1 = uint64_t{kPhiloxMultiplier1} * c.word[2];
    c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ philox_key0(seed, round), static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ philox_key1(seed, round),
          static_cast<uint32_t>(product0)}};
  }
  return c;
}

// Every byte's bits in reverse order, xor 0x55: for the second element that takes a byte. Over all 256 bytes the two
// elements' roundings are uncorrelated on average (docs/codec_design.md), and each alone is as uniform as the byte.
SDP4BIT_HOST_DEVICE uint32_t mirror(uint32_t bytes) {
#ifdef __CUDA_ARCH__
  bytes = __byte_perm(__brev(bytes), 0, 0x0123);
#else
  bytes = (bytes >> 4 & 0x0F0F0F0Fu) | (bytes & 0x0F0F0F0Fu) << 4;
  bytes = (bytes >> 2 & 0x33333333u) | (bytes & 0x33333333u) << 2;
  bytes = (bytes >> 1 & 0x55555555u) | (bytes & 0x55555555u) << 1;
#endif
  return bytes ^ 0x55555555u;
}

// mirror() of the lower and of the upper four bits, for the processors that look 16 values up at once.
alignas(16) constexpr uint8_t kMirrored[2][16] = {
    {0x50, 0xD0, 0x10, 0x90, 0x70, 0xF0, 0x30, 0xB0, 0x40, 0xC0, 0x00, 0x80, 0x60, 0xE0, 0x20, 0xA0},
    {0x05, 0x0D, 0x01, 0x09, 0x07, 0x0F, 0x03, 0x0B, 0x04, 0x0C, 0x00, 0x08, 0x06, 0x0E, 0x02, 0x0A}};

// The random byte of element `element` (0 .. 31) of a block.
SDP4BIT_HOST_DEVICE uint32_t random_byte(const PhiloxBlock& block, int element) {
  const uint32_t word = block.word[element >> 2 & 3];
  return (element < 16 ? word : mirror(word)) >> (8 * (element & 3)) & 0xFF;
}

}  // namespace sdp4bit
