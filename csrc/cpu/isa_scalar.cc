#include <cmath>
#include <cstring>

#include "jobs.h"

#define TARGET

namespace sdp4bit {
namespace scalar {
#include "vector_scalar.inc"
// The loops come behind the operations they are made of.
#include "kernels.inc"
}  // namespace scalar

const Kernels kScalarKernels = {scalar::quantize, scalar::dequantize};
}  // namespace sdp4bit
