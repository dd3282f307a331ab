// Working memory that outlives a call, so that no kernel allocates in its loops.
#pragma once

#include <cstddef>

namespace glm {

// A 64-byte aligned buffer that only grows. Each thread that calls a kernel has its own
// (`thread_local`), as two may run at once; what program.cc keeps between kernels is locked.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  // Room for `count` elements; what they hold is undefined. Throws std::bad_alloc.
  template <typename T>
  T* Reserve(size_t count) {
    return static_cast<T*>(ReserveBytes(count * sizeof(T)));
  }

 private:
  void* ReserveBytes(size_t bytes);

  void* data_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace glm
