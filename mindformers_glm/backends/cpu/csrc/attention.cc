// RoPE, KV cache write and paged causal attention of one step, prefill and decode rows mixed; or
// RoPE and KV cache write alone.
#include <stdexcept>
#include <string>

#include "aot.h"
#include "kernel_table.h"

namespace glm {
namespace {

constexpr int64_t kHeaderSize = 8;

std::string Row(int64_t row) { return " of row " + std::to_string(row); }

// Parses the vector of backends/cpu/attn_metadata.py and proves that nothing in it leads outside the
// caches.
AttnMetadata ParseMetadata(const Tensor& tensor, int64_t max_rows, int64_t num_positions,
                           int64_t num_blocks, int64_t block_size) {
  const int64_t length = tensor.shape[0];
  const int32_t* p = tensor.As<int32_t>();
  Expect(length >= kHeaderSize, "attn_metadata is shorter than its header");
  AttnMetadata m{};
  m.num_rows = p[0];
  m.num_seqs = p[1];
  const int64_t capacity_rows = p[2], capacity_seqs = p[3];
  m.max_blocks_per_seq = p[4];
  Expect(capacity_rows >= 0 && capacity_seqs >= 0 && m.max_blocks_per_seq >= 0 &&
             length == kHeaderSize + 2 * capacity_rows + 2 * capacity_seqs + 1 +
                           capacity_seqs * m.max_blocks_per_seq,
         [&] {
           return "attn_metadata has " + std::to_string(length) +
                  " entries, which its header denies";
         });
  Expect(m.num_rows >= 0 && m.num_rows <= capacity_rows && m.num_rows <= max_rows, [&] {
    return "attn_metadata has " + std::to_string(m.num_rows) + " rows, more than there is room for";
  });
  Expect(m.num_seqs >= 0 && m.num_seqs <= capacity_seqs, [&] {
    return "attn_metadata has " + std::to_string(m.num_seqs) +
           " sequences, more than there is room for";
  });
  m.positions = p + kHeaderSize;
  m.slot_mapping = m.positions + capacity_rows;
  m.query_start = m.slot_mapping + capacity_rows;
  m.seq_lens = m.query_start + capacity_seqs + 1;
  m.block_tables = m.seq_lens + capacity_seqs;

  Expect(m.query_start[0] == 0 && m.query_start[m.num_seqs] == m.num_rows,
         "query_start does not cover the rows");
  for (int64_t s = 0; s < m.num_seqs; ++s) {
    const int64_t seq_len = m.seq_lens[s];
    Expect(seq_len >= 0 && seq_len <= m.max_blocks_per_seq * block_size, [&] {
      return "seq_lens of sequence " + std::to_string(s) + " does not fit its block table";
    });
    for (int64_t b = 0; b * block_size < seq_len; ++b) {
      const int32_t block = m.block_tables[s * m.max_blocks_per_seq + b];
      Expect(block >= 0 && block < num_blocks, [&] {
        return "block table of sequence " + std::to_string(s) + " names block " +
               std::to_string(block) + " of " + std::to_string(num_blocks);
      });
    }
    Expect(m.query_start[s] <= m.query_start[s + 1], "query_start decreases");
    for (int64_t r = m.query_start[s]; r < m.query_start[s + 1]; ++r) {
      Expect(m.positions[r] >= 0 && m.positions[r] < seq_len && m.positions[r] < num_positions,
             [&] {
               return "position " + std::to_string(m.positions[r]) + Row(r) +
                      " is outside its sequence or the rotary table";
             });
      Expect(m.slot_mapping[r] >= 0 && m.slot_mapping[r] < num_blocks * block_size, [&] {
        return "slot " + std::to_string(m.slot_mapping[r]) + Row(r) + " is outside the cache";
      });
    }
  }
  return m;
}

// The scales of an int8 cache, by the number of operands: for each token, or for each channel.
constexpr int kParamsOfFloats = 6, kParamsOfTokens = 8, kParamsOfChannels = 10;

CacheChannels GetChannels(const AotCall& call, int index, const AttentionArgs& args) {
  CacheChannels channels{};
  for (const bool is_scale : {true, false}) {
    const char* name = is_scale ? "a channel's scale" : "a channel's offset";
    const Tensor tensor = call.Get(is_scale ? index : index + 1, name, 1, {DType::kF32});
    ExpectSize(tensor, 0, args.num_kv_heads * args.head_dim);
    (is_scale ? channels.scale : channels.offset) = tensor.As<float>();
  }
  return channels;
}

void ReadScales(const AotCall& call, int64_t num_blocks, AttentionArgs& args) {
  const bool has_scales = call.num_params() != kParamsOfFloats;
  Expect(has_scales == (args.cache_dtype == DType::kU8),
         "scales belong to a cache of int8, which has some");
  if (!has_scales) return;
  Expect(args.head_dim <= kMaxInt8HeadDim, [&] {
    return "an int8 cache takes heads of at most " + std::to_string(kMaxInt8HeadDim) +
           " elements, got " + std::to_string(args.head_dim);
  });
  if (call.num_params() == kParamsOfChannels) {
    args.key_channels = GetChannels(call, 5, args);
    args.value_channels = GetChannels(call, 7, args);
    return;
  }
  Expect(call.num_params() == kParamsOfTokens, "scales are two operands or four");
  for (const bool is_key : {true, false}) {
    const char* name = is_key ? "key_scales" : "value_scales";
    const Tensor scales = call.Get(is_key ? 5 : 6, name, 3, {DType::kF32});
    ExpectSize(scales, 0, num_blocks);
    ExpectSize(scales, 1, args.num_kv_heads);
    ExpectSize(scales, 2, args.block_size);
    (is_key ? args.key_scales : args.value_scales) = scales.As<float>();
  }
}

// Everything but the output, checked.
AttentionArgs ReadOperands(const AotCall& call) {
  call.ExpectParams(kParamsOfFloats, kParamsOfChannels);
  const std::initializer_list<DType> types = {DType::kF32, DType::kBF16, DType::kF16, DType::kU8};
  const Tensor qkv = call.Get(0, "qkv", 2, {DType::kF32});
  const Tensor cos_sin = call.Get(1, "cos_sin", 2, {DType::kF32});
  const Tensor key_cache = call.Get(2, "key_cache", 4, types);
  const Tensor value_cache = call.Get(3, "value_cache", 4, types);
  const Tensor metadata = call.Get(4, "attn_metadata", 1, {DType::kI32});

  const int64_t num_blocks = key_cache.shape[0];
  AttentionArgs args{};
  args.qkv = qkv.As<float>();
  args.cos_sin = cos_sin.As<float>();
  args.rotary_dim = cos_sin.shape[1];
  args.key_cache = key_cache.data;
  args.value_cache = value_cache.data;
  args.cache_dtype = key_cache.dtype;
  args.num_kv_heads = key_cache.shape[1];
  args.block_size = key_cache.shape[2];
  args.head_dim = key_cache.shape[3];
  for (int axis = 0; axis < 4; ++axis) ExpectSize(value_cache, axis, key_cache.shape[axis]);
  Expect(value_cache.dtype == key_cache.dtype, "key_cache and value_cache differ in type");
  Expect(args.num_kv_heads > 0 && args.block_size > 0 && args.head_dim > 0,
         "key_cache has an empty axis");
  const int64_t query_size = qkv.shape[1] - 2 * args.num_kv_heads * args.head_dim;
  Expect(query_size > 0 && query_size % (args.num_kv_heads * args.head_dim) == 0, [&] {
    return "the width " + std::to_string(qkv.shape[1]) + " of qkv is not that of " +
           std::to_string(args.num_kv_heads) + " KV heads of " + std::to_string(args.head_dim) +
           " and a multiple of their queries";
  });
  args.num_heads = query_size / args.head_dim;
  Expect(args.rotary_dim % 2 == 0 && args.rotary_dim <= args.head_dim, [&] {
    return "rotary_dim " + std::to_string(args.rotary_dim) + " must be even and at most head_dim";
  });
  ReadScales(call, num_blocks, args);
  args.metadata =
      ParseMetadata(metadata, qkv.shape[0], cos_sin.shape[0], num_blocks, args.block_size);
  return args;
}

// qkv f32[M, (Q + 2 KV) D], cos_sin f32[P, rotary_dim], key_cache, value_cache
// [num_blocks, KV, block_size, D] (written), attn_metadata i32[...] -> f32[M, Q D]
// Where the caches are u8 (int8), further: key_scales, value_scales f32[num_blocks, KV, block_size]
// (written); or scale and offset of keys, scale and offset of values, all f32[KV D].
void Attention(const AotCall& call) {
  AttentionArgs args = ReadOperands(call);
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  ExpectSize(y, 0, call.Get(0, "qkv", 2, {DType::kF32}).shape[0]);
  ExpectSize(y, 1, args.num_heads * args.head_dim);
  args.y = y.As<float>();
  if (args.metadata.num_rows > 0) Kernels().attention(args);
}

// The same operands -> f32[M, 1], which is not written: MindSpore wants a result of every operator.
void WriteKvCache(const AotCall& call) {
  const AttentionArgs args = ReadOperands(call);
  if (args.metadata.num_rows > 0) Kernels().attention(args);
}

}  // namespace
}  // namespace glm

GLM_OPERATOR(glm_attention, glm::Attention(call))
GLM_OPERATOR(glm_write_kv_cache, glm::WriteKvCache(call))
