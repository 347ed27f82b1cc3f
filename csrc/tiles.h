// The rows that meet a matrix, laid out in the order in which the products read them.
//
// Rows stand in tiles of up to R together. For packed weights a row is quantized: every 32 inputs become whole numbers
// q times one float32 scale, signed bytes (scale = largest magnitude / 127), or beside 8-bit weights, where they would
// be most of the error, q = 255·high + low in two signed bytes (largest magnitude / 32512). A tile's record of one span
// of 32 inputs is
//     high or only bytes [8][R][4] · low bytes, if any · scales f32 [R] · for each unit: -sum of q, int32 [R] · sum of
//     q times the scale, f32 [R]
// so the broadcast of four bytes that `dot` wants is one load, and a tile is read from front to end.
// For plain weights a record is numbers: f32 [K][R], or bf16 pairs [K/2][R][2].
#pragma once

#include "packed.h"
#include "simd.h"

namespace coterie::COTERIE_ISA {

enum class Kind { INT8_32, INT8_16, INT16_32, FLOAT, BF16_PAIRS };  // the first three by the weights' unit

#if defined(COTERIE_AVX512)
constexpr int INT_ROWS = 6, FLOAT_ROWS = 12, TOGETHER = 2;  // rows of a tile, panels of a product
#elif defined(COTERIE_AVX2)
constexpr int INT_ROWS = 4, FLOAT_ROWS = 6, TOGETHER = 1;
#else
constexpr int INT_ROWS = 4, FLOAT_ROWS = 6, TOGETHER = 1;
#endif

inline Kind kind_of(const Matrix& m, Type rows) {
  if (m.layout == Layout::PACKED || m.layout == Layout::GGML)
    return m.format.unit == 16 ? Kind::INT8_16 : m.format.bits == 8 ? Kind::INT16_32 : Kind::INT8_32;
#if defined(COTERIE_AVX512)
  if (m.layout == Layout::ROWS_BF16 && rows == Type::BF16 && use_bf16_instructions) return Kind::BF16_PAIRS;
#endif
  return Kind::FLOAT;
}

inline bool is_int(Kind kind) { return kind <= Kind::INT16_32; }
inline int most_rows(Kind kind) { return is_int(kind) ? INT_ROWS : FLOAT_ROWS; }

struct Tiles {
  Kind kind;
  int64_t n_rows, K;
  uint8_t* data;

  int most() const { return most_rows(kind); }
  int64_t count() const { return ceil_div(n_rows, most()); }
  int rows(int64_t tile) const { return (int)(tile + 1 < count() ? most() : n_rows - tile * most()); }
  // bytes of one row of a tile in a span of 32 inputs
  int64_t span_bytes() const {
    constexpr int64_t bytes[] = {44, 52, 76, 128, 64};  // by kind
    return bytes[(int)kind];
  }
  int64_t row_bytes() const { return ceil_div(K, SPAN) * span_bytes(); }
  int64_t bytes() const { return n_rows * row_bytes(); }
  uint8_t* tile(int64_t t) const { return data + t * most() * row_bytes(); }
  uint8_t* span(int64_t t, int64_t s) const { return tile(t) + s * rows(t) * span_bytes(); }
};

INLINE void put_bytes(uint8_t* record, int r, int R, const int32_t q[32]) {
  for (int j = 0; j < 8; j++) {
    const uint32_t four =
        (q[4 * j] & 255) | (q[4 * j + 1] & 255) << 8 | (q[4 * j + 2] & 255) << 16 | (uint32_t)q[4 * j + 3] << 24;
    std::memcpy(record + (j * R + r) * 4, &four, 4);
  }
}

// 32 numbers of one row to their place in the record of a span.
template <bool IS_WIDE>
INLINE void put_int(uint8_t* record, int r, int R, int n_units, const float* x) {
  constexpr float LARGEST = IS_WIDE ? 32512.0f : 127.0f;
  constexpr int BYTES = IS_WIDE ? 64 : 32;
  F most = zero();
  for (int i = 0; i < 32; i += W) most = max(most, abs(load(x + i)));
  const float largest = max_lanes(most), scale = largest / LARGEST, inverse = largest > 0 ? LARGEST / largest : 0.0f;
  alignas(64) int32_t q[32];
  for (int i = 0; i < 32; i += W) store_int(q + i, to_int(mul(load(x + i), set1(inverse))));
  auto* scales = (float*)(record + BYTES * R);
  auto* sums = (int32_t*)(record + (BYTES + 4) * R);
  auto* scaled = (float*)(record + (BYTES + 4) * R + 4 * R * n_units);
  scales[r] = scale;
  if constexpr (IS_WIDE) {
    alignas(64) int32_t high[32], low[32];
    for (int i = 0; i < 32; i++) {  // -127 <= low <= 127: the quotient is rounded, away from zero
      high[i] = (q[i] + (q[i] < 0 ? -127 : 127)) / 255, low[i] = q[i] - 255 * high[i];
    }
    put_bytes(record, r, R, high);
    put_bytes(record + 32 * R, r, R, low);
  } else {
    put_bytes(record, r, R, q);
  }
  for (int u = 0; u < n_units; u++) {
    int32_t sum = 0;
    for (int i = 0; i < 32 / n_units; i++) sum += q[u * (32 / n_units) + i];
    sums[u * R + r] = -sum;
    scaled[u * R + r] = (float)sum * scale;
  }
}

INLINE void put_float(uint8_t* record, int r, int R, const float* x) {
  auto* numbers = (float*)record;
  for (int i = 0; i < 32; i++) numbers[i * R + r] = x[i];
}

INLINE void put_bf16(uint8_t* record, int r, int R, const float* x) {
  alignas(64) uint16_t rounded[32];
  for (int i = 0; i < 32; i += W) store_bf16(rounded + i, load(x + i));
  for (int i = 0; i < 16; i++) std::memcpy(record + (i * R + r) * 4, rounded + 2 * i, 4);
}

INLINE void put(const Tiles& tiles, int64_t t, int r, int64_t span, const float* x) {
  uint8_t* record = tiles.span(t, span);
  const int R = tiles.rows(t);
  switch (tiles.kind) {
    case Kind::INT8_32:
      return put_int<false>(record, r, R, 1, x);
    case Kind::INT8_16:
      return put_int<false>(record, r, R, 2, x);
    case Kind::INT16_32:
      return put_int<true>(record, r, R, 1, x);
    case Kind::FLOAT:
      return put_float(record, r, R, x);
    case Kind::BF16_PAIRS:
      return put_bf16(record, r, R, x);
  }
}

// Numbers of any type to float32, W at a time, and back.
INLINE F load_any(const void* p, Type type, int64_t i) {
  switch (type) {
    case Type::F16:
      return load_f16((const uint16_t*)p + i);
    case Type::BF16:
      return load_bf16((const uint16_t*)p + i);
    default:
      return load((const float*)p + i);
  }
}
INLINE void store_any(void* p, Type type, int64_t i, F x) {
  switch (type) {
    case Type::F16:
      return store_f16((uint16_t*)p + i, x);
    case Type::BF16:
      return store_bf16((uint16_t*)p + i, x);
    default:
      return store((float*)p + i, x);
  }
}
inline int64_t size_of(Type type) { return type == Type::F32 ? 4 : 2; }

// n numbers from position i of p as float32 into out; what is missing to a full vector is 0.
inline void to_floats(float* out, const void* p, Type type, int64_t i, int64_t n) {
  int64_t at = 0;
  for (; at + W <= n; at += W) store(out + at, load_any(p, type, i + at));
  if (at < n) {
    alignas(64) uint8_t rest[4 * W] = {};
    std::memcpy(rest, (const uint8_t*)p + (i + at) * size_of(type), (size_t)((n - at) * size_of(type)));
    store(out + at, load_any(rest, type, 0));
  }
}
// n float32 numbers to position i of p, rounded to its type.
inline void from_floats(void* p, Type type, int64_t i, const float* x, int64_t n) {
  int64_t at = 0;
  for (; at + W <= n; at += W) store_any(p, type, i + at, load(x + at));
  if (at < n) {
    alignas(64) float last[W] = {};
    alignas(64) uint8_t rest[4 * W];
    std::memcpy(last, x + at, (size_t)(n - at) * 4);
    store_any(rest, type, 0, load(last));
    std::memcpy((uint8_t*)p + (i + at) * size_of(type), rest, (size_t)((n - at) * size_of(type)));
  }
}

// row · weight / sqrt(mean(row²) + eps), the quotient rounded to the row's type before the product, and the product
// too; `row` and `weight` are float32 and hold K numbers and zeros up to a full vector.
inline void normalise(float* row, const float* weight, int64_t K, float eps, Type type) {
  F squares = zero();
  for (int64_t k = 0; k < K; k += W) squares = fma(load(row + k), load(row + k), squares);
  const F factor = set1(1.0f / std::sqrt(sum_lanes(squares) / (float)K + eps));
  for (int64_t k = 0; k < K; k += W) {
    F x = mul(load(row + k), factor);
    if (type != Type::F32) {
      alignas(64) uint8_t rounded[4 * W];
      store_any(rounded, type, 0, x);
      store_any(rounded, type, 0, mul(load_any(rounded, type, 0), load(weight + k)));
      x = load_any(rounded, type, 0);
    } else {
      x = mul(x, load(weight + k));
    }
    store(row + k, x);
  }
}

}  // namespace coterie::COTERIE_ISA
