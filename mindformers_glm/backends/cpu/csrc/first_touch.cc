// Machines with several memory nodes: a page belongs to the node of the thread that first writes it.
#include <cstdint>

#include "aot.h"

// Writes a zero into every page of `bytes` of fresh (zero) memory at `data`: part i of `num_parts`
// equal ones by the thread that a static schedule over the parts gives it, as in the kernels that
// will read them.
GLM_EXPORT int glm_first_touch(void* data, int64_t bytes, int64_t num_parts) {
  return glm::RunAot("glm_first_touch", [&] {
    glm::Expect(data != nullptr && bytes >= 0 && num_parts > 0, "called without data");
    constexpr int64_t kPage = 4096;
    volatile char* first = static_cast<char*>(data);
    const int64_t part = (bytes + num_parts - 1) / num_parts;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < num_parts; ++i) {
      const int64_t end = (i + 1) * part < bytes ? (i + 1) * part : bytes;
      for (int64_t offset = i * part; offset < end; offset += kPage) first[offset] = 0;
    }
  });
}
