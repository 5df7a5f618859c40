#include "quantize.cuh"

using namespace sdp4bit;

template <int kType>
static int launch_difference(const float* main, const void* model, uint8_t* payload, const sdp4bit_layout& layout,
                             const sdp4bit_rounding& rounding, const sdp4bit_execution& execution) {
  const DifferenceSource<kType> source = {{main}, {model}};
  return launch_quantize(source, payload, layout, rounding, layout.format.hadamard != 0, execution);
}

int sdp4bit_quantize_difference(const float* main, const void* model, int32_t model_type, uint8_t* payload,
                                const sdp4bit_layout* layout, const sdp4bit_rounding* rounding,
                                const sdp4bit_execution* execution) {
  switch (model_type) {
    case SDP4BIT_FP32:
      return launch_difference<SDP4BIT_FP32>(main, model, payload, *layout, *rounding, *execution);
    case SDP4BIT_BF16:
      return launch_difference<SDP4BIT_BF16>(main, model, payload, *layout, *rounding, *execution);
    case SDP4BIT_FP16:
      return launch_difference<SDP4BIT_FP16>(main, model, payload, *layout, *rounding, *execution);
    default:
      return SDP4BIT_INVALID_ARGUMENT;
  }
}
