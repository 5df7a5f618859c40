// The numbers of one AdamW step as the arithmetic uses them: worked out in fp64, then rounded once to fp32, as torch
// does.
#pragma once

#include <cmath>
#include <cstdint>

#include "sdp4bit.h"

namespace sdp4bit {

struct AdamwNumbers {
  float scales[SDP4BIT_ADAMW_MAX_SCALES];
  int32_t num_scales;
  float decay;             // 1 - lr * weight_decay
  float first_weight;      // of gradient - exp_avg, added to exp_avg; to the gradient where that is nearer
  bool first_is_gradient;  // which one it is
  float beta2, second_weight;
  float correction;        // of the square root of the updated second moment
  float state_correction;  // the same for the state's own, one step younger
  float eps, step_size;
};

inline float root_correction(double beta2, int64_t count) {
  return static_cast<float>(std::pow(1 - std::pow(beta2, static_cast<double>(count)), 0.5));
}

inline AdamwNumbers adamw_numbers(const sdp4bit_adamw_step& step) {
  AdamwNumbers numbers = {};
  numbers.num_scales = step.num_scales;
  for (int i = 0; i < SDP4BIT_ADAMW_MAX_SCALES; ++i) numbers.scales[i] = static_cast<float>(step.scales[i]);
  numbers.decay = static_cast<float>(1 - step.lr * step.weight_decay);
  const float first_weight = static_cast<float>(1 - step.beta1);
  numbers.first_is_gradient = !(std::fabs(first_weight) < 0.5f);
  numbers.first_weight = numbers.first_is_gradient ? first_weight - 1.0f : first_weight;
  numbers.beta2 = static_cast<float>(step.beta2);
  numbers.second_weight = static_cast<float>(1 - step.beta2);
  numbers.correction = root_correction(step.beta2, step.step);
  numbers.state_correction = root_correction(step.beta2, step.step - 1);
  numbers.eps = static_cast<float>(step.eps);
  numbers.step_size = static_cast<float>(-step.lr / (1 - std::pow(step.beta1, static_cast<double>(step.step))));
  return numbers;
}

inline bool is_valid(const sdp4bit_adamw_step& step) {
  return step.step >= 1 && step.num_scales >= 0 && step.num_scales <= SDP4BIT_ADAMW_MAX_SCALES;
}

// In step 1 the state has no second moment yet, so there is only the updated one.
inline int32_t second_moment_rule(const sdp4bit_adamw_step& step, int32_t second_moment) {
  return step.step == 1 ? int32_t{SDP4BIT_UPDATED} : second_moment;
}

}  // namespace sdp4bit
