// Rows of a table, converted to float32.
#include <stdexcept>
#include <string>

#include "aot.h"
#include "kernel_table.h"

namespace glm {
namespace {

// ids i32[M], table [V, H] of any float type, num_rows i32[1] -> f32[M, H]
void Embedding(const AotCall& call) {
  call.ExpectParams(4, 4);
  const Tensor ids = call.Get(0, "ids", 1, {DType::kI32});
  const Tensor table = call.Get(1, "table", 2, {DType::kF32, DType::kBF16, DType::kF16});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  const int64_t num_rows = call.GetCount(2, "num_rows", ids.shape[0]);
  const int64_t vocab_size = table.shape[0], width = table.shape[1];
  ExpectSize(y, 0, ids.shape[0]);
  ExpectSize(y, 1, width);
  for (int64_t r = 0; r < num_rows; ++r) {
    const int32_t id = ids.As<int32_t>()[r];
    Expect(id >= 0 && id < vocab_size, "token id " + std::to_string(id) + " in row " +
                                           std::to_string(r) + " is outside the vocabulary of " +
                                           std::to_string(vocab_size));
  }
  const KernelTable& kernels = Kernels();
  // The table may be a part of a mapped file: its elements need not be aligned.
#pragma omp parallel for schedule(static) if (num_rows * width > 65536)
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t offset = ids.As<int32_t>()[r] * width * SizeOf(table.dtype);
    kernels.convert(y.As<float>() + r * width, DType::kF32, table.As<char>() + offset, table.dtype,
                    width);
  }
}

}  // namespace
}  // namespace glm

GLM_EXPORT int glm_embedding(GLM_AOT_SIGNATURE) {
  return glm::RunAot("glm_embedding", [&] { glm::Embedding(glm::AotCall(GLM_AOT_ARGUMENTS)); });
}
