/* The codec's interface, C99: cpu/ and cuda/ each define every function.
 *
 * A layout is a table of segments: elements [element_offset, element_offset + num_elements) of a tensor belong to the
 * message that starts message_offset bytes into the payload; random_offset is the first element's index in the stream
 * of random numbers, a multiple of 32. Payloads and messages start on 16 bytes. Nothing here allocates or synchronizes.
 * On CUDA every pointer to bytes, elements or segments is device memory, and work is queued on execution->stream.
 * Functions return 0 or a code for sdp4bit_error_string.
 */
#ifndef SDP4BIT_H
#define SDP4BIT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SDP4BIT_FP32 = 0, SDP4BIT_BF16 = 1, SDP4BIT_FP16 = 2 };
enum { SDP4BIT_MEAN = 0, SDP4BIT_ABSMAX = 1 };
enum { SDP4BIT_ISA_BEST = 0, SDP4BIT_ISA_SCALAR = 1, SDP4BIT_ISA_AVX2 = 2, SDP4BIT_ISA_AVX512 = 3 };
enum {
  SDP4BIT_OK = 0,
  SDP4BIT_INVALID_FORMAT = 1,
  SDP4BIT_INVALID_ARGUMENT = 2,
  SDP4BIT_UNSUPPORTED_ISA = 3,
  SDP4BIT_CUDA_ERROR = 1000 /* plus the cudaError_t */
};

typedef struct {
  int32_t bits;          /* 1, 2, 4, 8 or 32 */
  int32_t group_size;    /* elements a scale, a multiple of 32 from 32 to 8192 */
  int32_t hadamard;      /* 0 or 32 */
  int32_t scale_type;    /* SDP4BIT_FP32 or SDP4BIT_BF16 */
  int32_t one_bit_scale; /* SDP4BIT_MEAN or SDP4BIT_ABSMAX */
} sdp4bit_format;

typedef struct {
  int64_t element_offset;
  int64_t num_elements;
  int64_t random_offset;
  int64_t message_offset;
} sdp4bit_segment;

typedef struct {
  sdp4bit_format format;
  const sdp4bit_segment* segments;
  int64_t num_segments;
  int64_t max_elements; /* the largest num_elements of the table */
} sdp4bit_layout;

/* What a sum is taken over, one after the other: source r's payload starts at payloads + r * source_stride. In the
 * place of source own_place, which is not read, stand values that were never quantized: elements of `own`, addressed by
 * the layout's segments, or where own_sources is given, the sum of those. That has the same hadamard and the same
 * num_elements, and own elements itself; there are no more than these two levels. A sum that is transformed back leaves
 * own elements out and adds them last, as they are. */
typedef struct sdp4bit_sources {
  const uint8_t* payloads;
  int64_t source_stride;
  int32_t num_sources;
  const sdp4bit_layout* layout;
  int32_t own_place; /* -1: every source is a payload, and what is below is not read */
  const void* own;
  int32_t own_type;
  const struct sdp4bit_sources* own_sources; /* or null */
} sdp4bit_sources;

typedef struct {
  int32_t stochastic; /* 0: to nearest, and the names below are not read */
  uint32_t step;
  uint64_t seed;
  uint32_t bucket; /* 24 bits */
  uint32_t source; /* 24 bits */
  uint32_t hop;    /* 8 bits */
} sdp4bit_rounding;

typedef struct {
  void* stream;        /* CUDA: a cudaStream_t */
  int32_t num_threads; /* CPU: at most so many */
  int32_t isa;         /* CPU: SDP4BIT_ISA_… */
} sdp4bit_execution;

/* Which second moment a provisional AdamW step divides by: see sdp4bit_adamw_provisional. */
enum { SDP4BIT_UPDATED = 0, SDP4BIT_STATE = 1, SDP4BIT_LARGEST = 2, SDP4BIT_BOUNDED = 3 };
/* AdamW's square root. RSQRT14: x * rsqrt14(x), refined once by Newton's method, as MKL and so torch computes it with
 * AVX-512 (at most 1 ulp too small). RSQRT12: from rsqrtps, refined twice, as MKL computes it on an AMD processor
 * without AVX-512. Both need a processor that has what they start from. GIVEN: the caller has taken the roots. CUDA
 * knows ROUNDED, to nearest, only. */
enum { SDP4BIT_SQRT_ROUNDED = 0, SDP4BIT_SQRT_RSQRT14 = 1, SDP4BIT_SQRT_RSQRT12 = 2, SDP4BIT_SQRT_GIVEN = 3 };
enum { SDP4BIT_ADAMW_MAX_SCALES = 4 };

typedef struct {
  int64_t step; /* counts from 1 */
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  double scales[SDP4BIT_ADAMW_MAX_SCALES]; /* multiplied onto the gradient, one after the other */
  int32_t num_scales;
  int32_t square_root;      /* SDP4BIT_SQRT_… */
  const float* roots;       /* GIVEN: of the second moment as updated by the scaled gradient; null where not used */
  const float* state_roots; /* GIVEN: of the state's own; null where not used */
} sdp4bit_adamw_step;

/* "cpu" or "cuda": which of the two this library is. */
const char* sdp4bit_device(void);
const char* sdp4bit_error_string(int error);
/* The instruction set that SDP4BIT_ISA_BEST stands for on this machine; 0 on CUDA. */
int32_t sdp4bit_best_isa(void);
/* Bytes of a message of num_elements, as in wire.py; -1 for an invalid format. */
int64_t sdp4bit_message_bytes(const sdp4bit_format* format, int64_t num_elements);

int sdp4bit_quantize(const void* input, int32_t input_type, uint8_t* payload, const sdp4bit_layout* layout,
                     const sdp4bit_rounding* rounding, const sdp4bit_execution* execution);

/* main (fp32) - model (any type), subtracted in fp32. */
int sdp4bit_quantize_difference(const float* main, const void* model, int32_t model_type, uint8_t* payload,
                                const sdp4bit_layout* layout, const sdp4bit_rounding* rounding,
                                const sdp4bit_execution* execution);

int sdp4bit_dequantize(const uint8_t* payload, void* output, int32_t output_type, const sdp4bit_layout* layout,
                       const sdp4bit_execution* execution);

int sdp4bit_dequantize_add(const uint8_t* payload, void* output, int32_t output_type, const sdp4bit_layout* layout,
                           const sdp4bit_execution* execution);

/* The sum over the sources. `output` may be the memory of their own elements, each at its own address. */
int sdp4bit_dequantize_reduce(const sdp4bit_sources* sources, void* output, int32_t output_type,
                              const sdp4bit_execution* execution);

/* The same sum, quantized anew without leaving the transformed domain; both layouts list the same ranges. */
int sdp4bit_dequantize_reduce_quantize(const sdp4bit_sources* sources, uint8_t* payload,
                                       const sdp4bit_layout* output_layout, const sdp4bit_rounding* rounding,
                                       const sdp4bit_execution* execution);

/* Advance parameters and moments by a gradient, in place: Loshchilov & Hutter 2019 (arXiv 1711.05101). */
int sdp4bit_adamw(float* main, float* exp_avg, float* exp_avg_sq, const float* gradient, int64_t num_elements,
                  const sdp4bit_adamw_step* step, const sdp4bit_execution* execution);

/* Write into `published` what sdp4bit_adamw would make of main with a gradient that is scaled already. It divides by
 * the root of the second moment as updated by the gradient, of the state's own (with its bias correction), by the
 * larger of the two, or by the larger of the state's and half the updated one (BOUNDED); in step 1 by the updated. */
int sdp4bit_adamw_provisional(float* published, const float* main, const float* exp_avg, const float* exp_avg_sq,
                              const float* gradient, int64_t num_elements, const sdp4bit_adamw_step* step,
                              int32_t second_moment, const sdp4bit_execution* execution);

#ifdef __cplusplus
}
#endif
#endif
