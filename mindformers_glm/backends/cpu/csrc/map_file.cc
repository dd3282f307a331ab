// Lays a part of a file over memory that was allocated for it, so that it need not be copied.
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>

#include "aot.h"

// Replaces the `bytes` at `data`, a private mapping that ends on a page or behind it, by those of
// an open file from `offset` on, privately: what is written to them never reaches the file. A
// negative `file` puts fresh zeroed memory back. The pages are there when this returns. What else
// lies there would be lost: mapped_memory.py gives it only memory that it knows (allocation.py).
GLM_EXPORT int glm_map_file(void* data, int64_t bytes, int file, int64_t offset) {
  return glm::RunAot("glm_map_file", [&] {
    constexpr uintptr_t kHugePage = 2 << 20;
    glm::Expect(data != nullptr && reinterpret_cast<uintptr_t>(data) % kHugePage == 0 &&
                    offset % static_cast<int64_t>(kHugePage) == 0 && bytes > 0,
                "called with a place that huge pages cannot take");
    const int flags = MAP_PRIVATE | MAP_FIXED | (file < 0 ? MAP_ANONYMOUS : 0);
    void* mapped = mmap(data, bytes, PROT_READ | PROT_WRITE, flags, file < 0 ? -1 : file, offset);
    glm::Expect(mapped == data, [&] { return std::string("mmap: ") + std::strerror(errno); });
    // Advice: a system that knows no such thing goes on with small pages, or reads them when asked.
    madvise(data, bytes, MADV_HUGEPAGE);
#ifdef MADV_POPULATE_READ
    if (file >= 0) madvise(data, bytes, MADV_POPULATE_READ);
#endif
  });
}
