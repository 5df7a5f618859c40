// Checks a job, picks the instruction set, and splits the groups of all segments over threads.
#include <algorithm>

#include "jobs.h"
#include "threads.h"

namespace sdp4bit {
namespace {

int check(const QuantizeJob& job) {
  const bool reduces = job.source == Source::kReduction;
  if (!is_valid(job.layout->format)) return SDP4BIT_INVALID_FORMAT;
  if (const int error = reduces ? check_sources(job.sources) : SDP4BIT_OK) return error;
  const bool types = is_type(job.input_type) && is_type(job.model_type);
  const bool same_ranges = !reduces || job.sources.layout->num_segments == job.layout->num_segments;
  const bool unbiased = !job.rounding->stochastic || !uses_mean(job.layout->format);
  return types && same_ranges && unbiased && is_aligned(job.payload) ? SDP4BIT_OK : SDP4BIT_INVALID_ARGUMENT;
}

int check(const DequantizeJob& job) {
  const int error = check_sources(job.sources);
  return error || is_type(job.output_type) ? error : SDP4BIT_INVALID_ARGUMENT;
}

// Call work(segment, begin, end) for every group that lies in [first, last) of the groups of all segments.
template <class Work>
void run_groups(const sdp4bit_layout& layout, int64_t first, int64_t last, const Work& work) {
  int64_t base = 0;
  for (int64_t segment = 0; segment < layout.num_segments && base < last; ++segment) {
    const int64_t groups = num_groups(layout.format, layout.segments[segment].num_elements);
    const int64_t begin = std::max<int64_t>(first - base, 0), end = std::min(last - base, groups);
    if (begin < end) work(segment, begin, end);
    base += groups;
  }
}

template <class Work>
void run_threads(const sdp4bit_layout& layout, int num_threads, const Work& work) {
  int64_t total = 0;
  for (int64_t s = 0; s < layout.num_segments; ++s) total += num_groups(layout.format, layout.segments[s].num_elements);
  split_over_threads(total, total * layout.format.group_size, num_threads,
                     [&](int64_t first, int64_t last) { run_groups(layout, first, last, work); });
}

}  // namespace

const Kernels* kernels_for(int32_t isa) {
  if (isa == SDP4BIT_ISA_SCALAR) return &kScalarKernels;
#ifdef __x86_64__
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == SDP4BIT_ISA_AVX2) return avx2 ? &kAvx2Kernels : nullptr;
  if (isa == SDP4BIT_ISA_AVX512) return avx512 && avx2 ? &kAvx512Kernels : nullptr;
#endif
  return isa == SDP4BIT_ISA_BEST ? kernels_for(sdp4bit_best_isa()) : nullptr;
}

int run(const QuantizeJob& job, const sdp4bit_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  if (kernels == nullptr) return SDP4BIT_UNSUPPORTED_ISA;
  if (const int error = check(job)) return error;
  run_threads(*job.layout, execution.num_threads,
              [&](int64_t segment, int64_t begin, int64_t end) { kernels->quantize(job, segment, begin, end); });
  return SDP4BIT_OK;
}

int run(const DequantizeJob& job, const sdp4bit_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  if (kernels == nullptr) return SDP4BIT_UNSUPPORTED_ISA;
  if (const int error = check(job)) return error;
  run_threads(*job.sources.layout, execution.num_threads,
              [&](int64_t segment, int64_t begin, int64_t end) { kernels->dequantize(job, segment, begin, end); });
  return SDP4BIT_OK;
}

}  // namespace sdp4bit

const char* sdp4bit_device(void) { return "cpu"; }

int32_t sdp4bit_best_isa(void) {
  if (sdp4bit::kernels_for(SDP4BIT_ISA_AVX512) != nullptr) return SDP4BIT_ISA_AVX512;
  return sdp4bit::kernels_for(SDP4BIT_ISA_AVX2) != nullptr ? SDP4BIT_ISA_AVX2 : SDP4BIT_ISA_SCALAR;
}

const char* sdp4bit_error_string(int error) {
  switch (error) {
    case SDP4BIT_OK:
      return "no error";
    case SDP4BIT_INVALID_FORMAT:
      return "invalid message format";
    case SDP4BIT_INVALID_ARGUMENT:
      return "invalid argument (type, alignment to 16 bytes, number of sources, rounding or step)";
    case SDP4BIT_UNSUPPORTED_ISA:
      return "this processor lacks the instruction set asked for";
    default:
      return "unknown error";
  }
}

int64_t sdp4bit_message_bytes(const sdp4bit_format* format, int64_t num_elements) {
  return sdp4bit::is_valid(*format) && num_elements >= 0 ? sdp4bit::message_bytes(*format, num_elements) : -1;
}
