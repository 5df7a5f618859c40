/* Calls every verb with every format, instruction set and type on buffers of exactly the needed size, in C99.
 * Built with the sanitizers, it finds what reads or writes beside them, what is undefined, and what leaks. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sdp4bit.h"

enum { NUM_SOURCES = 3, NUM_SEGMENTS = 3 };

static int failures = 0;

static void check(int ok, const char* what) {
  if (ok) return;
  printf("failed: %s\n", what);
  ++failures;
}

static void* allocate(int64_t num_bytes) { /* 16-byte aligned on every platform that has SIMD */
  void* memory = malloc(num_bytes > 0 ? (size_t)num_bytes : 1);
  if (memory == NULL) exit(2);
  memset(memory, 0x3C, num_bytes > 0 ? (size_t)num_bytes : 1);
  return memory;
}

static int64_t lay_out(sdp4bit_format format, const int64_t* sizes, sdp4bit_segment* segments) {
  int64_t element = 0, byte = 0;
  for (int s = 0; s < NUM_SEGMENTS; ++s) {
    const sdp4bit_segment segment = {element, sizes[s], 32 * s, byte};
    segments[s] = segment;
    element += sizes[s];
    byte += sdp4bit_message_bytes(&format, sizes[s]);
  }
  return byte;
}

/* Both sums with own elements in the place of the middle source, from `values` and from a sum that they stand in. */
static void run_own(sdp4bit_sources sources, const void* values, int32_t type, void* output, uint8_t* payload,
                    const sdp4bit_rounding* rounding, const sdp4bit_execution* execution) {
  const sdp4bit_layout* layout = sources.layout;
  sdp4bit_sources node = sources;
  sources.own_place = node.own_place = 1;
  sources.own = node.own = values;
  sources.own_type = node.own_type = type;
  for (int levels = 1; levels <= 2; ++levels) {
    sources.own_sources = levels == 1 ? NULL : &node;
    check(sdp4bit_dequantize_reduce_quantize(&sources, payload, layout, rounding, execution) == 0, "requantize own");
    check(sdp4bit_dequantize_reduce(&sources, output, type, execution) == 0, "reduce own");
  }
}

static void run(sdp4bit_format format, const int64_t* sizes, int32_t type, int stochastic, int32_t isa) {
  sdp4bit_segment segments[NUM_SEGMENTS];
  const int64_t num_bytes = lay_out(format, sizes, segments);
  const int64_t n = sizes[0] + sizes[1] + sizes[2];
  const sdp4bit_layout layout = {format, segments, NUM_SEGMENTS, n};
  const sdp4bit_rounding rounding = {stochastic, 1, 2, 3, 4, 5};
  const sdp4bit_execution execution = {NULL, 3, isa};
  const int64_t width = type == SDP4BIT_FP32 ? 4 : 2;
  float* values = allocate(4 * n);
  for (int64_t i = 0; i < n; ++i) values[i] = (float)(i % 37 - 18);
  if (n > 5) values[5] = NAN;
  void* other = allocate(width * n);
  uint8_t *payloads = allocate(NUM_SOURCES * num_bytes), *payload = allocate(num_bytes);
  check(sdp4bit_quantize(values, SDP4BIT_FP32, payload, &layout, &rounding, &execution) == 0, "quantize fp32");
  for (int r = 0; r < NUM_SOURCES; ++r) memcpy(payloads + r * num_bytes, payload, (size_t)num_bytes);
  check(sdp4bit_dequantize(payload, other, type, &layout, &execution) == 0, "dequantize");
  check(sdp4bit_dequantize_add(payload, other, type, &layout, &execution) == 0, "dequantize_add");
  check(sdp4bit_quantize(other, type, payload, &layout, &rounding, &execution) == 0, "quantize");
  check(sdp4bit_quantize_difference(values, other, type, payload, &layout, &rounding, &execution) == 0, "difference");
  const sdp4bit_sources sources = {payloads, num_bytes, NUM_SOURCES, &layout, -1, NULL, 0, NULL};
  check(sdp4bit_dequantize_reduce(&sources, other, type, &execution) == 0, "reduce");
  check(sdp4bit_dequantize_reduce_quantize(&sources, payload, &layout, &rounding, &execution) == 0, "requantize");
  run_own(sources, other, type, other, payload, &rounding, &execution);
  free(payload);
  free(payloads);
  free(other);
  free(values);
}

/* AdamW over exactly n elements, at an address that no register's width divides. */
static void step(int64_t n, int32_t square_root, int32_t isa) {
  sdp4bit_adamw_step numbers = {2, 1e-2, 0.9, 0.95, 1e-8, 0.1, {0.5, 0.25, 1, 1}, 2, square_root, NULL, NULL};
  const sdp4bit_execution execution = {NULL, 3, isa};
  float* memory[7];
  float* values[7]; /* published, main, exp_avg, exp_avg_sq, gradient, roots, state_roots */
  for (int k = 0; k < 7; ++k) {
    memory[k] = allocate(4 * (n + 1));
    values[k] = memory[k] + 1;
    for (int64_t i = 0; i < n; ++i) values[k][i] = (float)((i * (k + 3)) % 37) * 0.01f;
  }
  for (int32_t rule = SDP4BIT_UPDATED; rule <= SDP4BIT_BOUNDED; ++rule) {
    if (square_root == SDP4BIT_SQRT_GIVEN) {
      numbers.roots = rule == SDP4BIT_STATE ? NULL : values[5];
      numbers.state_roots = rule == SDP4BIT_UPDATED ? NULL : values[6];
    }
    check(sdp4bit_adamw_provisional(values[0], values[1], values[2], values[3], values[4], n, &numbers, rule,
                                    &execution) == 0,
          "adamw_provisional");
  }
  if (square_root == SDP4BIT_SQRT_GIVEN) numbers.roots = values[5];
  check(sdp4bit_adamw(values[1], values[2], values[3], values[4], n, &numbers, &execution) == 0, "adamw");
  for (int k = 0; k < 7; ++k) free(memory[k]);
}

static int has_root(int32_t square_root) {
  if (square_root == SDP4BIT_SQRT_RSQRT14) return sdp4bit_best_isa() == SDP4BIT_ISA_AVX512;
  return square_root != SDP4BIT_SQRT_RSQRT12 || sdp4bit_best_isa() != SDP4BIT_ISA_SCALAR;
}

static void step_all_sizes(int32_t isa) {
  const int64_t sizes[] = {0, 1, 7, 15, 16, 31, 33, 100, 200003};
  for (int i = 0; i < 9; ++i) {
    for (int32_t root = SDP4BIT_SQRT_ROUNDED; root <= SDP4BIT_SQRT_GIVEN; ++root) {
      if (has_root(root)) step(sizes[i], root, isa);
    }
  }
}

static void refuse_nonsense_steps(void) {
  const sdp4bit_execution execution = {NULL, 1, 0};
  sdp4bit_adamw_step numbers = {0, 1e-2, 0.9, 0.95, 1e-8, 0.1, {1, 1, 1, 1}, 0, SDP4BIT_SQRT_ROUNDED, NULL, NULL};
  check(sdp4bit_adamw(NULL, NULL, NULL, NULL, 0, &numbers, &execution) == SDP4BIT_INVALID_ARGUMENT, "step 0");
  numbers.step = 1;
  numbers.num_scales = 5;
  check(sdp4bit_adamw(NULL, NULL, NULL, NULL, 0, &numbers, &execution) == SDP4BIT_INVALID_ARGUMENT, "5 scales");
  numbers.num_scales = 0;
  check(sdp4bit_adamw(NULL, NULL, NULL, NULL, -1, &numbers, &execution) == SDP4BIT_INVALID_ARGUMENT, "-1 elements");
  numbers.square_root = 7;
  check(sdp4bit_adamw(NULL, NULL, NULL, NULL, 0, &numbers, &execution) == SDP4BIT_INVALID_ARGUMENT, "square root 7");
  numbers.square_root = SDP4BIT_SQRT_GIVEN;
  check(sdp4bit_adamw(NULL, NULL, NULL, NULL, 1, &numbers, &execution) == SDP4BIT_INVALID_ARGUMENT, "no roots");
}

static int reduced(const sdp4bit_sources* sources) {
  const sdp4bit_execution execution = {NULL, 1, 0};
  return sdp4bit_dequantize_reduce(sources, NULL, SDP4BIT_FP32, &execution);
}

static void refuse_nonsense_sources(void) {
  const sdp4bit_format format = {4, 128, 0, SDP4BIT_FP32, SDP4BIT_MEAN}, transformed = {4, 128, 32, 0, 0};
  const sdp4bit_layout layout = {format, NULL, 0, 0}, other_layout = {transformed, NULL, 0, 0};
  const sdp4bit_sources good = {NULL, 0, 2, &layout, 1, NULL, SDP4BIT_BF16, NULL};
  sdp4bit_sources sources = good, node = good;
  check(reduced(&sources) == 0, "own elements, none of them");
  sources.own_type = 7;
  check(reduced(&sources) == SDP4BIT_INVALID_ARGUMENT, "own type 7");
  sources.own_sources = &node;
  check(reduced(&sources) == 0, "a node's sum, whose type counts");
  sources.own_place = 2;
  check(reduced(&sources) == SDP4BIT_INVALID_ARGUMENT, "own place 2 of 2");
  sources.own_place = 0;
  node.own_place = -1;
  check(reduced(&sources) == SDP4BIT_INVALID_ARGUMENT, "a node's sum without anything of its own");
  node = good;
  node.own_sources = &good;
  check(reduced(&sources) == SDP4BIT_INVALID_ARGUMENT, "three levels");
  node = good;
  node.layout = &other_layout;
  check(reduced(&sources) == SDP4BIT_INVALID_ARGUMENT, "another transform");
}

static void refuse_nonsense(void) {
  sdp4bit_format format = {3, 128, 0, SDP4BIT_FP32, SDP4BIT_MEAN};
  sdp4bit_layout layout = {format, NULL, 0, 0};
  const sdp4bit_rounding rounding = {0, 0, 0, 0, 0, 0};
  const sdp4bit_execution execution = {NULL, 1, 0}, unknown_isa = {NULL, 1, 9};
  check(sdp4bit_quantize(NULL, 0, NULL, &layout, &rounding, &execution) == SDP4BIT_INVALID_FORMAT, "bits=3");
  check(sdp4bit_message_bytes(&format, 1) == -1, "bytes of bits=3");
  layout.format.bits = 4;
  check(sdp4bit_quantize(NULL, 7, NULL, &layout, &rounding, &execution) == SDP4BIT_INVALID_ARGUMENT, "type 7");
  check(sdp4bit_quantize(NULL, 0, NULL, &layout, &rounding, &unknown_isa) == SDP4BIT_UNSUPPORTED_ISA, "isa 9");
  check(strlen(sdp4bit_error_string(SDP4BIT_INVALID_FORMAT)) > 0, "a sentence");
}

int main(void) {
  const int32_t bits[] = {1, 2, 4, 8, 32}, group_sizes[] = {32, 96, 128, 1056, 8192};
  const int64_t sizes[][NUM_SEGMENTS] = {{0, 0, 0}, {1, 0, 33}, {131, 64, 2050}, {70001, 1, 140000}};
  for (int32_t isa = SDP4BIT_ISA_SCALAR; isa <= sdp4bit_best_isa(); ++isa) {
    step_all_sizes(isa);
    for (int i = 0; i < 5 * 5 * 4; ++i) {
      const int32_t group_size = group_sizes[i / 5 % 5];
      const int large = i / 25 == 3;
      if (large && group_size != 96) continue; /* several threads, once */
      for (int variant = 0; variant < (large ? 2 : 12); ++variant) {
        const sdp4bit_format format = {bits[i % 5], group_size, variant % 2 * 32, variant % 3 == 1, SDP4BIT_ABSMAX};
        run(format, sizes[i / 25], variant % 3, variant / 2 % 2, isa);
      }
    }
  }
  refuse_nonsense();
  refuse_nonsense_sources();
  refuse_nonsense_steps();
  printf("%d failures\n", failures);
  return failures != 0;
}
