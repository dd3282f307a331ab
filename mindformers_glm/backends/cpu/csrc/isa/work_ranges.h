// Who multiplies which tile rows.
#pragma once

#include <algorithm>
#include <atomic>
#include <new>

#include "../scratch.h"

namespace glm::GLM_ISA {

// Every thread begins with a range of its own, which it takes from front to back, as memory is read
// fastest; it lies in the thread's memory node (first_touch.cc). Threads do not get on at the same
// speed, however even the ranges are: who is done takes from the back of what others have left.
// Taking holds up the loads behind it, so it is half of what is left, and little only at the end.
// OpenMP may give fewer threads than there are ranges (OMP_THREAD_LIMIT): they do the others' too.
class WorkRanges {
 public:
  struct Part {
    int64_t begin, end;  // none left: both 0
  };

  // first(thread) is where a thread's range begins, first(team) where the last one's ends.
  template <typename First>
  WorkRanges(Scratch& scratch, int64_t team, const First& first)
      : ranges_(scratch.Reserve<Range>(team)), team_(team) {
    for (int64_t thread = 0; thread < team; ++thread) {
      new (ranges_ + thread) Range{Pack(first(thread), first(thread + 1))};
    }
  }

  // Some multiple of `group` for the calling thread, or what is left.
  Part Take(int64_t thread, int64_t group) const {
    Part part = TakeFrom(ranges_[thread].bounds, group, true);
    for (int64_t i = 1; i < team_ && part.begin == part.end; ++i) {
      part = TakeFrom(ranges_[(thread + i) % team_].bounds, group, false);
    }
    return part;
  }

 private:
  struct alignas(64) Range {  // a cache line each
    std::atomic<uint64_t> bounds;
  };

  static uint64_t Pack(int64_t begin, int64_t end) {
    return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
  }

  static Part TakeFrom(std::atomic<uint64_t>& bounds, int64_t group, bool from_front) {
    uint64_t now = bounds.load(std::memory_order_relaxed);
    for (;;) {
      const int64_t begin = static_cast<int64_t>(now >> 32), end = static_cast<uint32_t>(now);
      if (begin >= end) return {0, 0};
      const int64_t half = (end - begin) / (2 * group) * group;
      const int64_t taken = std::min(std::max(half, group), end - begin);
      const uint64_t left = from_front ? Pack(begin + taken, end) : Pack(begin, end - taken);
      if (bounds.compare_exchange_weak(now, left, std::memory_order_relaxed)) {
        return from_front ? Part{begin, begin + taken} : Part{end - taken, end};
      }
    }
  }

  Range* ranges_;
  int64_t team_;
};

}  // namespace glm::GLM_ISA
