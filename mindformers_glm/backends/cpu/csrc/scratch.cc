#include "scratch.h"

#include <cstdlib>
#include <new>

namespace glm {

Scratch::~Scratch() { std::free(data_); }

void* Scratch::ReserveBytes(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (bytes > capacity_) {
    std::free(data_);
    capacity_ = 0;
    data_ = std::aligned_alloc(64, bytes);
    if (data_ == nullptr) throw std::bad_alloc();
    capacity_ = bytes;
  }
  return data_;
}

}  // namespace glm
