#include "quantize.cuh"

using namespace sdp4bit;

int sdp4bit_quantize(const void* input, int32_t input_type, uint8_t* payload, const sdp4bit_layout* layout,
                     const sdp4bit_rounding* rounding, const sdp4bit_execution* execution) {
  const bool transforms = layout->format.hadamard != 0;
  switch (input_type) {
    case SDP4BIT_FP32:
      return launch_quantize(TensorSource<SDP4BIT_FP32>{input}, payload, *layout, *rounding, transforms, *execution);
    case SDP4BIT_BF16:
      return launch_quantize(TensorSource<SDP4BIT_BF16>{input}, payload, *layout, *rounding, transforms, *execution);
    case SDP4BIT_FP16:
      return launch_quantize(TensorSource<SDP4BIT_FP16>{input}, payload, *layout, *rounding, transforms, *execution);
    default:
      return SDP4BIT_INVALID_ARGUMENT;
  }
}
