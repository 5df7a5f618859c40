// One way to split work over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>

namespace sdp4bit {

constexpr int64_t kMinElementsPerThread = 1 << 16;  // below this, starting a thread costs more than it saves
constexpr int kMaxThreads = 64;

// Call work(begin, end) for parts that make up [0, total), each on a thread of its own; `num_elements` in all of it.
template <class Work>
void split_over_threads(int64_t total, int64_t num_elements, int num_threads, const Work& work) {
  const int64_t useful = num_elements / kMinElementsPerThread;
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>({num_threads, useful, kMaxThreads}));
  const auto part = [&](int64_t index) { work(total * index / threads, total * (index + 1) / threads); };
  std::thread helpers[kMaxThreads];
  int64_t started = 1;
  try {
    for (; started < threads; ++started) helpers[started] = std::thread(part, started);
  } catch (const std::system_error&) {
    // The system has no more threads: this one does what is left, with the same result.
  }
  for (int64_t index = started; index < threads; ++index) part(index);
  part(0);
  for (int64_t index = 1; index < started; ++index) helpers[index].join();
}

}  // namespace sdp4bit
