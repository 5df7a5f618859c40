// Runs csrc/cuda on the CPU, so that its indices, shuffles and barriers are tested where there is no GPU.
// Each thread of a block is a coroutine; a shuffle or a barrier hands over to the next thread until all have arrived.
// Found before the CUDA toolkit's header of the same name by the compiler's command line (-I).
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr std::size_t kStack = 64 << 10;

// What a thread waits for: a barrier of the code, or in a shuffle that all have offered, or that all have read.
enum class Waiting { kBarrier, kOffered, kRead };

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool finished = false;
  uint32_t offered = 0;
  Waiting waiting = Waiting::kBarrier;
};
inline std::vector<Thread> threads(1024);
inline ucontext_t scheduler;
inline void (*body)(void*);
inline void* body_argument;

inline void enter() {
  body(body_argument);
  threads[threadIdx.x].finished = true;
  swapcontext(&threads[threadIdx.x].context, &scheduler);
}

// Hand over; comes back once every other thread of the block has had its turn.
inline void wait(Waiting waiting) {
  const unsigned own = threadIdx.x;
  threads[own].waiting = waiting;
  swapcontext(&threads[own].context, &scheduler);
  threadIdx.x = own;
}

inline void run_block(unsigned num_threads) {
  for (unsigned t = 0; t < num_threads; ++t) {
    Thread& thread = threads[t];
    thread.finished = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = kStack;
    makecontext(&thread.context, enter, 0);
  }
  for (unsigned left = num_threads; left > 0;) {
    left = 0;
    for (unsigned t = 0; t < num_threads; ++t) {
      if (threads[t].finished) continue;
      threadIdx.x = t;
      swapcontext(&scheduler, &threads[t].context);
      left += !threads[t].finished;
    }
  }
}

// Ends the process where `other` has not come to the same shuffle as this thread, which on a GPU is undefined. Threads
// run in their order: those before this one have already read.
inline void check_arrived(unsigned other) {
  const Waiting expected = other < threadIdx.x ? Waiting::kRead : Waiting::kOffered;
  if (!threads[other].finished && threads[other].waiting == expected) return;
  std::fprintf(stderr, "thread %u exchanges with thread %u, which is elsewhere\n", threadIdx.x, other);
  std::abort();
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::Waiting::kBarrier); }
inline void __syncwarp() { emulation::wait(emulation::Waiting::kBarrier); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int step) {
  static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
  std::memcpy(&emulation::threads[threadIdx.x].offered, &value, 4);
  emulation::wait(emulation::Waiting::kOffered);
  emulation::check_arrived(threadIdx.x ^ step);
  std::memcpy(&value, &emulation::threads[threadIdx.x ^ step].offered, 4);
  emulation::wait(emulation::Waiting::kRead);  // nobody offers anew before all have read
  return value;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
inline float fabsf(float value) { return std::fabs(value); }
template <class T>
T min(T a, T b) {
  return std::min(a, b);
}
template <class T>
T max(T a, T b) {
  return std::max(a, b);
}

// A grid has no more rows than these, so that every test with three segments tests how a row goes on to its next one.
constexpr unsigned kMaxRows = 2;

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  auto call = [&] { kernel(arguments...); };
  gridDim = config->gridDim;
  gridDim.y = std::min(gridDim.y, kMaxRows);
  blockDim = config->blockDim;
  emulation::body = [](void* argument) { (*static_cast<decltype(call)*>(argument))(); };
  emulation::body_argument = &call;
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) emulation::run_block(blockDim.x);
  }
  return cudaSuccess;
}
