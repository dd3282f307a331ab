// The kernels for 64-bit Arm processors with dot products of bytes (Kunpeng 920, Neoverse N1 on):
// the NEON ones with other products of integer weights and of an int8 cache.
#include "../kernel_table.h"
#if defined(GLM_AARCH64)

// Shared headers come before the pragma: what they define must run on any processor.
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "../dtype.h"
#include "../scratch.h"

#pragma GCC target("arch=armv8.2-a+dotprod")

#define GLM_ISA neon_dotprod
#include "vec_neon.h"
// (the order matters: the files below are written in terms of the vector above)
#include "dot_int_dotprod.h"
#include "attention.h"
#include "linear_int.h"
#include "linear_int_row.h"

namespace glm {
namespace neon_dotprod {

void AttentionOfBytes(const AttentionArgs& args) {
  if (args.cache_dtype == DType::kU8) {
    AttentionWith<uint8_t, IntProducts>(args);
  } else {
    kNeonTable.attention(args);
  }
}

}  // namespace neon_dotprod

const KernelTable kNeonDotprodTable = {
    "neon_dotprod",
    kNeonTable.linear,
    neon_dotprod::LinearIntOrRow<neon_dotprod::LinearInt>,
    kNeonTable.rms_norm,
    neon_dotprod::AttentionOfBytes,
    kNeonTable.convert,
    kNeonTable.pack_rows,
    kNeonTable.quantize_row,
};

}  // namespace glm

#endif  // GLM_AARCH64
