// Element types of tensors and their scalar conversions.
#pragma once

#include <cstdint>
#include <cstring>

namespace glm {

enum class DType : int { kF32 = 0, kBF16 = 1, kF16 = 2, kI32 = 3, kU8 = 4, kOther = 5 };

// Storage-only types: arithmetic is always done in float.
struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};

constexpr float kMaxF16 = 65504.0f;

inline int64_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kU8:
      return 1;
    default:
      return 0;
  }
}

inline DType ParseDType(const char* name) {
  if (std::strcmp(name, "float32") == 0) return DType::kF32;
  if (std::strcmp(name, "bfloat16") == 0) return DType::kBF16;
  if (std::strcmp(name, "float16") == 0) return DType::kF16;
  if (std::strcmp(name, "int32") == 0) return DType::kI32;
  if (std::strcmp(name, "uint8") == 0) return DType::kU8;
  return DType::kOther;
}

inline float BitsToFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t FloatToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float ToFloat(float value) { return value; }
inline float ToFloat(bf16_t value) { return BitsToFloat(static_cast<uint32_t>(value.bits) << 16); }
inline float ToFloat(f16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    return BitsToFloat(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  }
  // Subnormal numbers go through an integer: as subnormal floats they would be taken for zero in
  // threads where a library has switched those off (MindSpore's main thread is one).
  const float scaled = magnitude < 0x400 ? static_cast<float>(static_cast<int32_t>(magnitude)) *
                                               BitsToFloat((127 - 24) << 23)
                                         : BitsToFloat((magnitude << 13) + ((127 - 15) << 23));
  return BitsToFloat(sign | FloatToBits(scaled));
}

// Round to nearest, ties to even; NaN stays NaN; too large becomes infinity, as IEEE 754 says.
inline void FromFloat(float value, float* out) { *out = value; }
inline void FromFloat(float value, bf16_t* out) {
  const uint32_t bits = FloatToBits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) {
    out->bits = static_cast<uint16_t>(bits >> 16 | 0x40);  // keep it a NaN, and a quiet one
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}
inline void FromFloat(float value, f16_t* out) {
  const uint32_t bits = FloatToBits(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00 | (magnitude >> 13 & 0x3ff);
  } else if (magnitude >= 0x477ff000) {  // 65520 and above round to infinity
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // below 2**-14: subnormal; the addition does the rounding
    half = FloatToBits(BitsToFloat(magnitude) + 0.5f) - FloatToBits(0.5f);
  } else {
    half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace glm
