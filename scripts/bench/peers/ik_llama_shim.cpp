// A C interface of few numbers over ik_llama.cpp's llama.h, whose structs change from one month to
// the next: build_ik_llama.sh compiles it with the header of the tree that it is linked to.
#include <cstdint>
#include <cstring>

#include "llama.h"

namespace {

struct Peer {
  llama_model* model;
  llama_context* context;
  llama_batch batch;
};

void Ignore(ggml_log_level, const char*, void*) {}

}  // namespace

extern "C" {

// Null if the model cannot be loaded. `repack` asks for weights in the fork's interleaved layouts.
void* shim_open(const char* path, int threads, int sequences, int context_len, int max_batch,
                int repack) {
  llama_log_set(Ignore, nullptr);
  llama_backend_init();
  llama_model_params model_settings = llama_model_default_params();
  model_settings.n_gpu_layers = 0;
  model_settings.repack_tensors = repack != 0;
  model_settings.use_mmap = repack == 0;  // a mapped file cannot be repacked
  llama_model* model = llama_model_load_from_file(path, model_settings);
  if (model == nullptr) return nullptr;
  llama_context_params settings = llama_context_default_params();
  settings.n_ctx = static_cast<uint32_t>(context_len);
  settings.n_batch = settings.n_ubatch = static_cast<uint32_t>(max_batch);
  settings.n_seq_max = static_cast<uint32_t>(sequences);
  settings.n_threads = settings.n_threads_batch = static_cast<uint32_t>(threads);
  llama_context* context = llama_init_from_model(model, settings);
  if (context == nullptr) return nullptr;
  return new Peer{model, context, llama_batch_init(max_batch, 0, 1)};
}

void shim_clear(void* peer) { llama_kv_cache_clear(static_cast<Peer*>(peer)->context); }

// Feeds rows of one batch; what llama_decode returns, 0 for success.
int shim_feed(void* handle, int rows, const int32_t* tokens, const int32_t* positions,
              const int32_t* sequences, const int8_t* wants_logits) {
  Peer* peer = static_cast<Peer*>(handle);
  llama_batch& batch = peer->batch;
  batch.n_tokens = rows;
  for (int i = 0; i < rows; ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = positions[i];
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = sequences[i];
    batch.logits[i] = wants_logits[i];
  }
  return llama_decode(peer->context, batch);
}

// Waits for the result.
const float* shim_logits(void* peer, int row) {
  return llama_get_logits_ith(static_cast<Peer*>(peer)->context, row);
}

const char* shim_describe() { return llama_print_system_info(); }

}  // extern "C"
