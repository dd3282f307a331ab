#include "kernel_time.h"

#include <atomic>
#include <cstdint>

#include "aot.h"

namespace glm {
namespace {

std::atomic<int64_t> total_ns{0};
std::atomic<int64_t> num_calls{0};

}  // namespace

KernelTimer::~KernelTimer() {
  const auto duration = std::chrono::steady_clock::now() - begin_;
  total_ns += std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
  ++num_calls;
}

}  // namespace glm

// Nanoseconds and number of the operator calls since the last time this was asked.
GLM_EXPORT void glm_take_kernel_ns(int64_t* nanoseconds, int64_t* calls) {
  *nanoseconds = glm::total_ns.exchange(0);
  *calls = glm::num_calls.exchange(0);
}
