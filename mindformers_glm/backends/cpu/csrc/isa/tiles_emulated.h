// AMX tiles in plain C++, so that the code which uses them is tested on machines without them.
//
// Follows the operation sections of LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBF16PS, TDPBSUD
// and TDPBSSD in the Intel SDM, volume 2. Where the processor would raise #UD or #GP, the process
// is aborted. Only the flushing of subnormal numbers is left out.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../dtype.h"
#include "tiles_amx.h"

namespace glm::GLM_ISA {

struct EmulatedTiles {
  struct State {
    bool is_configured = false;
    TileConfig config;
    alignas(64) uint8_t data[8][16][64];
  };
  static State& Get() {
    static thread_local State state;
    return state;
  }
  static void Require(bool ok, const char* what) {
    if (ok) return;
    std::fprintf(stderr, "mindformers_glm: emulated AMX: %s\n", what);
    std::abort();
  }

  static void Configure(const TileConfig& config) {
    Require(config.palette == 1 && config.start_row == 0, "palette must be 1");
    for (int i = 0; i < 8; ++i) {
      Require(config.rows[i] <= 16 && config.row_bytes[i] <= 64, "a tile is too large");
      Require(config.reserved_rows[i] == 0 && config.reserved_row_bytes[i] == 0,
              "reserved bytes must be zero");
    }
    State& state = Get();
    state.config = config;
    state.is_configured = true;
    std::memset(state.data, 0, sizeof(state.data));
  }
  static void Release() { Get().is_configured = false; }

  template <int T>
  static void Zero() {
    State& state = Get();
    Require(state.is_configured, "tilezero without a configuration");
    std::memset(state.data[T], 0, sizeof(state.data[T]));
  }
  template <int T>
  static void Load(const void* base, int64_t stride) {
    Zero<T>();
    State& state = Get();
    for (int row = 0; row < state.config.rows[T]; ++row) {
      std::memcpy(state.data[T][row], static_cast<const char*>(base) + row * stride,
                  state.config.row_bytes[T]);
    }
  }
  template <int T>
  static void Store(void* base, int64_t stride) {
    State& state = Get();
    Require(state.is_configured, "tilestored without a configuration");
    for (int row = 0; row < state.config.rows[T]; ++row) {
      std::memcpy(static_cast<char*>(base) + row * stride, state.data[T][row],
                  state.config.row_bytes[T]);
    }
  }
  template <int C, int A, int B>
  static void Dot() {
    static_assert(C != A && C != B && A != B, "tdpbf16ps needs three different tiles");
    State& state = Get();
    const TileConfig& config = state.config;
    Require(state.is_configured, "tdpbf16ps without a configuration");
    Require(config.row_bytes[A] % 4 == 0 && config.row_bytes[C] % 4 == 0 &&
                config.rows[A] == config.rows[C] && config.row_bytes[B] == config.row_bytes[C] &&
                config.row_bytes[A] / 4 == config.rows[B],
            "tdpbf16ps of tiles whose shapes do not fit");
    const int num_pairs = config.row_bytes[A] / 4, num_columns = config.row_bytes[C] / 4;
    for (int m = 0; m < config.rows[A]; ++m) {
      // The two elements of a pair have sums of their own, added at the end.
      float even[16] = {}, odd[16] = {};
      for (int k = 0; k < num_pairs; ++k) {
        bf16_t a[2], b[16][2];
        std::memcpy(a, state.data[A][m] + 4 * k, sizeof(a));
        std::memcpy(b, state.data[B][k], sizeof(b));
        for (int n = 0; n < num_columns; ++n) {
          even[n] += ToFloat(a[0]) * ToFloat(b[n][0]);
          odd[n] += ToFloat(a[1]) * ToFloat(b[n][1]);
        }
      }
      float c[16];
      std::memcpy(c, state.data[C][m], sizeof(c));
      for (int n = 0; n < num_columns; ++n) c[n] += even[n] + odd[n];
      std::memcpy(state.data[C][m], c, sizeof(c));
    }
  }
  template <int C, int A, int B>
  static void DotSignedUnsigned() {
    DotBytes<C, A, B, uint8_t>();
  }
  template <int C, int A, int B>
  static void DotSigned() {
    DotBytes<C, A, B, int8_t>();
  }

 private:
  template <int C, int A, int B, typename Weight>
  static void DotBytes() {
    static_assert(C != A && C != B && A != B, "products of bytes need three different tiles");
    State& state = Get();
    const TileConfig& config = state.config;
    Require(state.is_configured, "a product of bytes without a configuration");
    Require(config.row_bytes[A] % 4 == 0 && config.row_bytes[C] % 4 == 0 &&
                config.rows[A] == config.rows[C] && config.row_bytes[B] == config.row_bytes[C] &&
                config.row_bytes[A] / 4 == config.rows[B],
            "a product of bytes of tiles whose shapes do not fit");
    const int num_quads = config.row_bytes[A] / 4, num_columns = config.row_bytes[C] / 4;
    for (int m = 0; m < config.rows[A]; ++m) {
      int32_t c[16];
      std::memcpy(c, state.data[C][m], sizeof(c));
      for (int k = 0; k < num_quads; ++k) {
        for (int n = 0; n < num_columns; ++n) {
          for (int i = 0; i < 4; ++i) {
            c[n] += static_cast<int8_t>(state.data[A][m][4 * k + i]) *
                    static_cast<Weight>(state.data[B][k][4 * n + i]);
          }
        }
      }
      std::memcpy(state.data[C][m], c, sizeof(c));
    }
  }
};

}  // namespace glm::GLM_ISA
