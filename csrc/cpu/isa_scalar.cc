#include <cmath>
#include <cstring>

#include "jobs.h"

#define TARGET

namespace sdp4bit {
namespace scalar {
#include "vector_scalar.inc"
// The loops come behind the operations they are made of.
#include "kernels.inc"
#include "lanes_scalar.inc"
// As above.
#include "../common/adamw.inc"
#include "adamw_loops.inc"
}  // namespace scalar

const Kernels kScalarKernels = {scalar::quantize, scalar::dequantize, scalar::adamw, scalar::adamw_provisional};
}  // namespace sdp4bit
