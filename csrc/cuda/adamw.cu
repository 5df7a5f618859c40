// AdamW in place and out of place: one element a thread at a time, the CPU's arithmetic. nvcc's square root and
// division round to nearest and keep denormals unless --use_fast_math says otherwise.
#include "adamw.h"
#include "launch.cuh"

namespace sdp4bit {
namespace {

#define INLINE __device__ __forceinline__

using Lanes = float;

INLINE Lanes splat(float value) { return value; }
INLINE Lanes fused(Lanes a, Lanes b, Lanes c) { return fmaf(a, b, c); }

#include "adamw.inc"

struct Roots {
  INLINE Lanes of_updated(Lanes second) const { return sqrtf(second); }
  INLINE Lanes of_state(Lanes second) const { return sqrtf(second); }
};

constexpr int kThreads = 256, kElementsPerThread = 4;  // each of them a whole block apart, so that loads coalesce

struct State {
  float *main, *exp_avg, *exp_avg_sq;
};

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const State state, const float* gradients, int64_t num_elements, const AdamwNumbers numbers) {
  const int64_t start = int64_t{blockIdx.x} * kThreads * kElementsPerThread + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kElementsPerThread; ++k) {
    const int64_t i = start + k * kThreads;
    if (i >= num_elements) return;
    const float gradient = scaled(gradients[i], numbers);
    const float first = first_moment(state.exp_avg[i], gradient, numbers);
    const float second = second_moment(state.exp_avg_sq[i], gradient, numbers);
    const float divisor = denominator(Roots().of_updated(second), numbers.correction, numbers);
    state.main[i] = advanced(state.main[i], first, divisor, numbers);
    state.exp_avg[i] = first;
    state.exp_avg_sq[i] = second;
  }
}

__global__ void __launch_bounds__(kThreads)
    adamw_provisional_kernel(float* published, const float* main, const float* exp_avg, const float* exp_avg_sq,
                             const float* gradients, int64_t num_elements, const AdamwNumbers numbers, int32_t rule) {
  const int64_t start = int64_t{blockIdx.x} * kThreads * kElementsPerThread + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kElementsPerThread; ++k) {
    const int64_t i = start + k * kThreads;
    if (i >= num_elements) return;
    const float gradient = gradients[i];
    const float first = first_moment(exp_avg[i], gradient, numbers);
    const float divisor = provisional_denominator(exp_avg_sq[i], gradient, rule, numbers, Roots());
    published[i] = advanced(main[i], first, divisor, numbers);
  }
}

template <class... Parameters, class... Arguments>
int launch_adamw(void (*kernel)(Parameters...), int64_t num_elements, const sdp4bit_adamw_step& step,
                 const sdp4bit_execution& execution, const Arguments&... arguments) {
  if (!is_valid(step) || step.square_root != SDP4BIT_SQRT_ROUNDED || num_elements < 0) return SDP4BIT_INVALID_ARGUMENT;
  return launch(kernel, divide_up(num_elements, kThreads * kElementsPerThread), kThreads, 1, execution, arguments...);
}

}  // namespace
}  // namespace sdp4bit

using namespace sdp4bit;

int sdp4bit_adamw(float* main, float* exp_avg, float* exp_avg_sq, const float* gradient, int64_t num_elements,
                  const sdp4bit_adamw_step* step, const sdp4bit_execution* execution) {
  const State state = {main, exp_avg, exp_avg_sq};
  return launch_adamw(adamw_kernel, num_elements, *step, *execution, state, gradient, num_elements,
                      adamw_numbers(*step));
}

int sdp4bit_adamw_provisional(float* published, const float* main, const float* exp_avg, const float* exp_avg_sq,
                              const float* gradient, int64_t num_elements, const sdp4bit_adamw_step* step,
                              int32_t second_moment, const sdp4bit_execution* execution) {
  if (second_moment < SDP4BIT_UPDATED || second_moment > SDP4BIT_BOUNDED) return SDP4BIT_INVALID_ARGUMENT;
  return launch_adamw(adamw_provisional_kernel, num_elements, *step, *execution, published, main, exp_avg, exp_avg_sq,
                      gradient, num_elements, adamw_numbers(*step), second_moment_rule(*step, second_moment));
}
