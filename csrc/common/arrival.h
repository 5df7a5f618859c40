// How processes that share memory wait for each other: each counts in a word of its own what it has written.
#pragma once

#include <atomic>
#include <cstdint>
#include <ctime>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sdp4bit {

using Count = std::atomic<uint32_t>;
static_assert(sizeof(Count) == sizeof(uint32_t) && Count::is_always_lock_free, "a futex is a plain 32-bit word");

// Sleep until `count` is woken, is no longer `seen`, or `seconds` are over. Only Linux has what shares the memory.
inline void sleep_on(Count* count, uint32_t seen, double seconds) {
  timespec left = {static_cast<time_t>(seconds), static_cast<long>((seconds - static_cast<time_t>(seconds)) * 1e9)};
#ifdef __linux__
  syscall(SYS_futex, count, FUTEX_WAIT, seen, &left, nullptr, 0);
#else
  (void)count, (void)seen;
  left = {0, 100000};
  nanosleep(&left, nullptr);
#endif
}

// Let the others see what this process has written until now, and that it has arrived at `value`.
inline void arrive(Count* count, uint32_t value) {
  count->store(value, std::memory_order_release);
#ifdef __linux__
  syscall(SYS_futex, count, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

inline double monotonic_seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Whether `count` has arrived at `value`, or passed it, before `seconds` are over.
inline bool await_arrival(Count* count, uint32_t value, double seconds) {
  const double deadline = monotonic_seconds() + seconds;
  for (double left = seconds;; left = deadline - monotonic_seconds()) {
    const uint32_t seen = count->load(std::memory_order_acquire);
    if (static_cast<int32_t>(seen - value) >= 0) return true;
    if (left <= 0) return false;
    sleep_on(count, seen, left);
  }
}

}  // namespace sdp4bit
