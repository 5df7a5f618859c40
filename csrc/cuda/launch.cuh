// Starts a kernel on the caller's stream; no allocation, no synchronization.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "wire.h"

namespace sdp4bit {

constexpr int64_t kMaxGridX = 2147483647, kMaxGridY = 65535;

// One row of blocks a segment; kernels walk over the segments that the grid has no row for.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t num_segments,
           const sdp4bit_execution& execution, const Arguments&... arguments) {
  if (blocks == 0 || num_segments == 0) return SDP4BIT_OK;
  if (blocks > kMaxGridX) return SDP4BIT_INVALID_ARGUMENT;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(std::min(num_segments, kMaxGridY)));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(execution.stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  return error == cudaSuccess ? SDP4BIT_OK : SDP4BIT_CUDA_ERROR + static_cast<int>(error);
}

}  // namespace sdp4bit
