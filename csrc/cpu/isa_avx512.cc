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
}  // namespace avx512

const Kernels kAvx512Kernels = {avx512::quantize, avx512::dequantize};
}  // namespace sdp4bit
#endif
