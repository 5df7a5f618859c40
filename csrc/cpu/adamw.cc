#include "jobs.h"
#include "threads.h"

namespace sdp4bit {
namespace {

// Whether there is a way to take the roots, and those that are given are the ones that are used.
bool has_roots(const AdamwJob& job, int64_t num_elements) {
  if (job.square_root != SDP4BIT_SQRT_GIVEN) {
    return job.square_root >= SDP4BIT_SQRT_ROUNDED && job.square_root <= SDP4BIT_SQRT_RSQRT12;
  }
  const bool updated = job.second_moment == SDP4BIT_STATE || job.roots != nullptr;
  const bool of_state = job.second_moment == SDP4BIT_UPDATED || job.state_roots != nullptr;
  return num_elements == 0 || (updated && of_state);
}

// Whether this processor has what the root starts from.
bool supports(int32_t square_root) {
  if (square_root == SDP4BIT_SQRT_RSQRT14) return kernels_for(SDP4BIT_ISA_AVX512) != nullptr;
  return square_root != SDP4BIT_SQRT_RSQRT12 || kernels_for(SDP4BIT_ISA_AVX2) != nullptr;
}

int run_adamw(const AdamwJob& job, int64_t num_elements, const sdp4bit_adamw_step& step,
              const sdp4bit_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  if (kernels == nullptr) return SDP4BIT_UNSUPPORTED_ISA;
  const bool rules = job.second_moment >= SDP4BIT_UPDATED && job.second_moment <= SDP4BIT_BOUNDED;
  if (!is_valid(step) || !rules || !has_roots(job, num_elements) || num_elements < 0) return SDP4BIT_INVALID_ARGUMENT;
  if (!supports(step.square_root)) return SDP4BIT_UNSUPPORTED_ISA;
  const auto kernel = job.published == nullptr ? kernels->adamw : kernels->adamw_provisional;
  split_over_threads(num_elements, num_elements, execution.num_threads,
                     [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  return SDP4BIT_OK;
}

}  // namespace
}  // namespace sdp4bit

int sdp4bit_adamw(float* main, float* exp_avg, float* exp_avg_sq, const float* gradient, int64_t num_elements,
                  const sdp4bit_adamw_step* step, const sdp4bit_execution* execution) {
  const sdp4bit::AdamwJob job = {nullptr,         main,
                                 exp_avg,         exp_avg_sq,
                                 gradient,        sdp4bit::adamw_numbers(*step),
                                 SDP4BIT_UPDATED, step->square_root,
                                 step->roots,     step->state_roots};
  return sdp4bit::run_adamw(job, num_elements, *step, *execution);
}

// The job has one type for both verbs; where something is published, what is const here is not written.
int sdp4bit_adamw_provisional(float* published, const float* main, const float* exp_avg, const float* exp_avg_sq,
                              const float* gradient, int64_t num_elements, const sdp4bit_adamw_step* step,
                              int32_t second_moment, const sdp4bit_execution* execution) {
  const sdp4bit::AdamwJob job = {published,
                                 const_cast<float*>(main),
                                 const_cast<float*>(exp_avg),
                                 const_cast<float*>(exp_avg_sq),
                                 gradient,
                                 sdp4bit::adamw_numbers(*step),
                                 sdp4bit::second_moment_rule(*step, second_moment),
                                 step->square_root,
                                 step->roots,
                                 step->state_roots};
  return sdp4bit::run_adamw(job, num_elements, *step, *execution);
}
