#include "jobs.h"

#ifdef __x86_64__
#include <immintrin.h>

#include <cmath>
#include <cstring>

#define TARGET __attribute__((target("avx2,fma,f16c")))

namespace sdp4bit {
namespace avx2 {
#include "vector_avx2.inc"
// The loops come behind the operations they are made of.
#include "kernels.inc"
#include "rsqrt12.inc"
// As above.
#include "lanes_avx2.inc"
// As above.
#include "../common/adamw.inc"
#include "adamw_loops.inc"
}  // namespace avx2

const Kernels kAvx2Kernels = {avx2::quantize, avx2::dequantize, avx2::adamw, avx2::adamw_provisional};

TARGET float rsqrt12_square_root(float value) { return _mm256_cvtss_f32(avx2::refine_rsqrt12(_mm256_set1_ps(value))); }
}  // namespace sdp4bit
#endif
