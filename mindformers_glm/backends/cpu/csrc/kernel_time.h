// How long the operators run, for measurements of what is around them.
#pragma once

#include <chrono>

namespace glm {

// Adds its own lifetime to the time that glm_take_kernel_ns returns.
class KernelTimer {
 public:
  KernelTimer() : begin_(std::chrono::steady_clock::now()) {}
  KernelTimer(const KernelTimer&) = delete;
  KernelTimer& operator=(const KernelTimer&) = delete;
  ~KernelTimer();

 private:
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace glm
