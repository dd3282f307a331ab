// Rows of a table, converted to float32.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "aot.h"
#include "kernel_table.h"

namespace glm {
namespace {

// ids i32[M], table [V, H] of any float type, num_rows i32[1] -> f32[M, H]. Where the table is a
// part of a larger one, vocabulary i32[2] follows: the id of its first row, and all rows there are;
// rows of ids that other parts hold become zeros.
void Embedding(const AotCall& call) {
  call.ExpectParams(4, 5);
  const Tensor ids = call.Get(0, "ids", 1, {DType::kI32});
  const Tensor table = call.Get(1, "table", 2, {DType::kF32, DType::kBF16, DType::kF16});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  const int64_t num_rows = call.GetCount(2, "num_rows", ids.shape[0]);
  const int64_t part_size = table.shape[0], width = table.shape[1];
  int64_t first_id = 0, vocab_size = part_size;
  if (call.num_params() == 5) {
    const Tensor vocabulary = call.Get(3, "vocabulary", 1, {DType::kI32});
    ExpectSize(vocabulary, 0, 2);
    first_id = vocabulary.As<int32_t>()[0];
    vocab_size = vocabulary.As<int32_t>()[1];
    Expect(first_id >= 0 && first_id + part_size <= vocab_size, [&] {
      return "the table begins at token id " + std::to_string(first_id) + " and has " +
             std::to_string(part_size) + " rows of " + std::to_string(vocab_size);
    });
  }
  ExpectSize(y, 0, ids.shape[0]);
  ExpectSize(y, 1, width);
  for (int64_t r = 0; r < num_rows; ++r) {
    const int32_t id = ids.As<int32_t>()[r];
    Expect(id >= 0 && id < vocab_size, [&] {
      return "token id " + std::to_string(id) + " in row " + std::to_string(r) +
             " is outside the vocabulary of " + std::to_string(vocab_size);
    });
  }
  const KernelTable& kernels = Kernels();
  // The table may be a part of a mapped file: its elements need not be aligned.
#pragma omp parallel for schedule(static) if (num_rows * width > 65536)
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t row = ids.As<int32_t>()[r] - first_id;
    float* out = y.As<float>() + r * width;
    if (row < 0 || row >= part_size) {
      std::fill_n(out, width, 0.0f);
      continue;
    }
    const char* source = table.As<char>() + row * width * SizeOf(table.dtype);
    kernels.convert(out, DType::kF32, source, table.dtype, width);
  }
}

}  // namespace
}  // namespace glm

GLM_OPERATOR(glm_embedding, glm::Embedding(call))
