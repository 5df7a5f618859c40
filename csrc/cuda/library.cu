// What describes the library rather than computes.
#include <cuda_runtime.h>

#include "wire.h"

const char* sdp4bit_device(void) { return "cuda"; }

int32_t sdp4bit_best_isa(void) { return SDP4BIT_ISA_BEST; }

const char* sdp4bit_error_string(int error) {
  if (error >= SDP4BIT_CUDA_ERROR) return cudaGetErrorString(static_cast<cudaError_t>(error - SDP4BIT_CUDA_ERROR));
  switch (error) {
    case SDP4BIT_OK:
      return "no error";
    case SDP4BIT_INVALID_FORMAT:
      return "invalid message format";
    default:
      return "invalid argument (type, stride, number of sources, rounding or step)";
  }
}

int64_t sdp4bit_message_bytes(const sdp4bit_format* format, int64_t num_elements) {
  return sdp4bit::is_valid(*format) && num_elements >= 0 ? sdp4bit::message_bytes(*format, num_elements) : -1;
}
