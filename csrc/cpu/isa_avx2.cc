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
#include "lanes_avx2.inc"
// As above.
#include "../common/adamw.inc"
#include "adamw_loops.inc"
}  // namespace avx2

const Kernels kAvx2Kernels = {avx2::quantize, avx2::dequantize, avx2::adamw, avx2::adamw_provisional};
}  // namespace sdp4bit
#endif
