// Cuts the attention of one step into items of work that threads take one by one.
#pragma once

#include "../kernel_table.h"
#include "attention_operands.h"
#include "softmax_state.h"

namespace glm::GLM_ISA {

constexpr int64_t kAllSplits = -1;

// Queries (rows x heads of one group) of one sequence and KV head.
struct WorkItem {
  int64_t seq;
  int64_t kv_head;
  int64_t row_begin, row_end;
  int64_t head_begin, head_end;
  int64_t split;  // or kAllSplits
};

// Splits of the longest query among some rows.
inline int64_t NumSplits(const AttentionArgs& args, int64_t row_begin, int64_t row_end) {
  int64_t last = 0;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t position = args.metadata.positions[row];
    last = position > last ? position : last;
  }
  return last / kSplit + 1;
}

// Splits a step into items of at most kMaxQueries queries, and further by cached tokens and by
// heads where asked for. `items` may be nullptr to count only.
inline int64_t ListWork(const AttentionArgs& args, bool is_split, int64_t head_parts,
                        WorkItem* items) {
  const int64_t group = args.num_heads / args.num_kv_heads;
  const int64_t part = CeilDiv(group, head_parts);
  const int64_t heads = part < kMaxQueries ? part : kMaxQueries;
  const int64_t rows = kMaxQueries / heads;
  int64_t count = 0;
  for (int64_t seq = 0; seq < args.metadata.num_seqs; ++seq) {
    const int64_t end = args.metadata.query_start[seq + 1];
    for (int64_t row = args.metadata.query_start[seq]; row < end; row += rows) {
      for (int64_t kv_head = 0; kv_head < args.num_kv_heads; ++kv_head) {
        for (int64_t head = 0; head < group; head += heads) {
          const int64_t first_head = kv_head * group;
          WorkItem item = {seq,
                           kv_head,
                           row,
                           row + rows < end ? row + rows : end,
                           first_head + head,
                           first_head + (head + heads < group ? head + heads : group),
                           is_split ? 0 : kAllSplits};
          const int64_t num_splits = is_split ? NumSplits(args, item.row_begin, item.row_end) : 1;
          for (int64_t split = 0; split < num_splits; ++split, ++count) {
            if (is_split) item.split = split;
            if (items != nullptr) items[count] = item;
          }
        }
      }
    }
  }
  return count;
}

}  // namespace glm::GLM_ISA
