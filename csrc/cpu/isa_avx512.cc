#include "jobs.h"

#ifdef __x86_64__
#include <immintrin.h>

#include <cmath>
#include <cstring>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))

namespace sdp4bit {
namespace avx512 {
#include "vector_avx512.inc"
// The loops come behind the operations they are made of.
#include "kernels.inc"
#include "rsqrt12.inc"
// As above.
#include "lanes_avx512.inc"
// As above.
#include "../common/adamw.inc"
#include "adamw_loops.inc"
}  // namespace avx512

const Kernels kAvx512Kernels = {avx512::quantize, avx512::dequantize, avx512::adamw, avx512::adamw_provisional};

TARGET float rsqrt14_square_root(float value) {
  return _mm512_cvtss_f32(avx512::refined_square_root(_mm512_set1_ps(value)));
}
}  // namespace sdp4bit
#endif
