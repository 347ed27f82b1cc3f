// Products of bf16 matrices in the processor's own instruction, and the layouts that they read.
//
// Numbers come in pairs that lie beside each other along the inner dimension, 32 bits each. The left side of a product
// is rows as they lie in memory or strips of ROWS numbers, the right side strips of COLUMNS; a strip has all its pairs
// one after the other. Example, COLUMNS = 2: the columns (1 2 3 4) and (5 6 7 8) are the strip 12 56 34 78.
#pragma once

#include "training_tiles.h"

#if defined(COTERIE_AVX512)
namespace coterie::COTERIE_ISA {

struct Strips {  // 28 sums, two vectors of the right side and one of the left: all 32 registers but one
  static constexpr int64_t ROWS = 14, COLUMNS = 2 * W;
  static int64_t rows(int64_t n, int64_t n_pairs) { return round_up(n, ROWS) * n_pairs; }
  static int64_t columns(int64_t n, int64_t n_pairs) { return round_up(n, COLUMNS) * n_pairs; }
};

INLINE __mmask16 lanes(int64_t n) { return (__mmask16)(n >= W ? 0xFFFF : (1u << std::max<int64_t>(n, 0)) - 1); }

// Sums as bf16 numbers, or added to float32 ones.
INLINE void put_sums(uint16_t* out, __mmask16 there, F sums) {
  __m256i rounded;
  asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(sums));
  _mm256_mask_storeu_epi16(out, there, rounded);
}
INLINE void put_sums(float* out, __mmask16 there, F sums) {
  _mm512_mask_storeu_ps(out, there, add(_mm512_maskz_loadu_ps(there, out), sums));
}

// out [ROWS][2W], so many rows and columns of it, from a · b over n pairs; pair k of row r of a is at r · a_row + k, or
// for strips at k · ROWS + r.
template <bool IS_STRIP, class Number>
inline void strip_product(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t n, int64_t n_rows,
                          int64_t n_columns, Number* out, int64_t stride) {
  constexpr int R = (int)Strips::ROWS;
  F sums[R][2];
  unroll<R>([&](auto r) __attribute__((always_inline)) { sums[r][0] = sums[r][1] = zero(); });
  for (int64_t k = 0; k < n; k++, a += IS_STRIP ? R : 1, b += Strips::COLUMNS) {
    const F left = load((const float*)b), right = load((const float*)b + W);
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      const F pair = set1(*(const float*)(IS_STRIP ? a + r : a + r * a_row));
      asm("vdpbf16ps %2, %1, %0" : "+v"(sums[r][0]) : "v"(left), "v"(pair));
      asm("vdpbf16ps %2, %1, %0" : "+v"(sums[r][1]) : "v"(right), "v"(pair));
    });
  }
  const __mmask16 first = lanes(n_columns), second = lanes(n_columns - W);
  unroll<R>([&](auto r) __attribute__((always_inline)) {
    if (r >= n_rows) return;
    put_sums(out + r * stride, first, sums[r][0]);
    put_sums(out + r * stride + W, second, sums[r][1]);
  });
}

// out [n_rows, n_columns] of rows `stride` apart. Rows as they lie are read up to a multiple of ROWS.
template <bool IS_STRIP, class Number>
inline void bf16_product(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t n_pairs, int64_t n_rows,
                         int64_t n_columns, Number* out, int64_t stride) {
  for (int64_t c = 0; c < n_columns; c += Strips::COLUMNS, b += n_pairs * Strips::COLUMNS)
    for (int64_t r = 0; r < n_rows; r += Strips::ROWS)
      strip_product<IS_STRIP>(a + r * (IS_STRIP ? n_pairs : a_row), a_row, b, n_pairs, n_rows - r, n_columns - c,
                              out + r * stride + c, stride);
}

// Rows of x [n, K], K even, as the columns of a right side.
inline void rows_to_strips(const uint16_t* x, int64_t n, int64_t K, uint32_t* out) {
  const int64_t n_pairs = K / 2;
  alignas(64) uint32_t copies[PANEL][W] = {};
  const uint32_t* sources[PANEL];
  for (int64_t r = 0; r < n; r += PANEL)
    for (int64_t k = 0; k < n_pairs; k += W) {
      const int64_t there = std::min<int64_t>(W, n_pairs - k);
      const bool is_whole = r + PANEL <= n && there == W;
      for (int64_t i = 0; i < PANEL; i++) {
        const auto* source = (const uint32_t*)(x + std::min(r + i, n - 1) * K) + k;
        sources[i] = is_whole ? source : copies[i];
        if (!is_whole) _mm512_store_si512(copies[i], _mm512_maskz_loadu_epi32(r + i < n ? lanes(there) : 0, source));
      }
      alignas(64) uint32_t turned[W * W];
      uint32_t* at = out + r / Strips::COLUMNS * n_pairs * Strips::COLUMNS + k * Strips::COLUMNS + r % Strips::COLUMNS;
      if (there == W) {
        transpose(sources, at, Strips::COLUMNS);
        continue;
      }
      transpose(sources, turned, W);
      for (int64_t i = 0; i < there; i++) std::memcpy(at + i * Strips::COLUMNS, turned + i * W, W * 4);
    }
  if (round_up(n, Strips::COLUMNS) - round_up(n, PANEL) > 0) {  // the last strip is half empty
    uint32_t* at = out + n / Strips::COLUMNS * n_pairs * Strips::COLUMNS + PANEL;
    for (int64_t k = 0; k < n_pairs; k++) std::memset(at + k * Strips::COLUMNS, 0, PANEL * 4);
  }
}

// Columns of x [n, columns] as pairs of its rows, zeros after the last: from pair `first` on of strips of n_pairs.
template <int64_t WIDTH>
inline void columns_to_strips(const uint16_t* x, int64_t n, int64_t columns, uint32_t* out, int64_t n_pairs,
                              int64_t first) {
  constexpr int64_t TOGETHER = 4;  // pairs: their rows stay in the first-level cache, and what is written lies together
  for (int64_t begin = 0; begin < ceil_div(n, 2); begin += TOGETHER)
    for (int64_t c = 0; c < columns; c += WIDTH)
      for (int64_t k = begin; k < std::min(begin + TOGETHER, ceil_div(n, 2)); k++) {
        const uint16_t *even = x + 2 * k * columns + c, *odd = even + columns;
        uint32_t* at = out + c * n_pairs + (first + k) * WIDTH;
        for (int64_t i = 0; i < WIDTH; i += W) {
          const __mmask16 there = lanes(std::min(columns - c, WIDTH) - i);
          const I low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, even + i));
          const I high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(2 * k + 1 < n ? there : 0, odd + i));
          _mm512_mask_storeu_epi32(at + i, lanes(WIDTH - i), _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
      }
}

}  // namespace coterie::COTERIE_ISA
#endif
