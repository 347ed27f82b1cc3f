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
INLINE __m256i rounded_sums(F sums) {
  __m256i rounded;
  asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(sums));
  return rounded;
}
INLINE void put_sums(uint16_t* out, __mmask16 there, F sums) {
  _mm256_mask_storeu_epi16(out, there, rounded_sums(sums));
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

// out [n_rows, n_columns] of rows `stride` apart, over n pairs. Rows of a are `a_row` units apart, for strips ROWS of
// them a_row · ROWS; strips of b `b_strip` pairs. Rows as they lie are read up to a multiple of ROWS.
template <bool IS_STRIP, class Number>
inline void bf16_product(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_strip, int64_t n,
                         int64_t n_rows, int64_t n_columns, Number* out, int64_t stride) {
  for (int64_t c = 0; c < n_columns; c += Strips::COLUMNS, b += b_strip * Strips::COLUMNS)
    for (int64_t r = 0; r < n_rows; r += Strips::ROWS)
      strip_product<IS_STRIP>(a + r * a_row, a_row, b, n, n_rows - r, n_columns - c, out + r * stride + c, stride);
}

// A long inner dimension is summed in stretches, so that a strip of them stays in the second-level cache while all rows
// meet it: out of `sums` [n_rows, n_columns], which body(begin, end) adds to, or without them where one stretch is all.
constexpr int64_t STRETCH = 512;  // pairs
INLINE bool is_one_stretch(int64_t n_pairs) { return n_pairs <= 2 * STRETCH; }
template <class Body>
inline void each_stretch(int64_t n_pairs, Body&& body) {
  if (is_one_stretch(n_pairs)) return body((int64_t)0, n_pairs);
  for (int64_t k = 0; k < n_pairs; k += STRETCH) body(k, std::min(k + STRETCH, n_pairs));
}
inline void round_sums(const float* sums, int64_t n_rows, int64_t n_columns, uint16_t* out, int64_t stride) {
  for (int64_t r = 0; r < n_rows; r++)
    for (int64_t c = 0; c < n_columns; c += W) {
      const __mmask16 there = lanes(n_columns - c);
      put_sums(out + r * stride + c, there, _mm512_maskz_loadu_ps(there, sums + r * n_columns + c));
    }
}

// A row of so many units in memory of our own: an odd number of cache lines, so that the rows of a tile, which are read
// side by side, lie in different sets.
INLINE int64_t apart(int64_t units) { return (ceil_div(units, W) | 1) * W; }

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

// Columns of x [n, columns], rows `stride` apart, as pairs of its rows, zeros after the last: from pair `first` on of
// strips of n_pairs.
template <int64_t WIDTH>
inline void columns_to_strips(const uint16_t* x, int64_t stride, int64_t n, int64_t columns, uint32_t* out,
                              int64_t n_pairs, int64_t first) {
  constexpr int64_t TOGETHER = 4;  // pairs: their rows stay in the first-level cache, and what is written lies together
  const auto widened = [](__m256i numbers) { return _mm512_cvtepu16_epi32(numbers); };
  for (int64_t begin = 0; begin < ceil_div(n, 2); begin += TOGETHER)
    for (int64_t c = 0; c < columns; c += WIDTH) {
      const int64_t end = std::min(begin + TOGETHER, ceil_div(n, 2));
      for (int64_t k = begin; k < end; k++) {
        const uint16_t *even = x + 2 * k * stride + c, *odd = even + stride;
        uint32_t* at = out + c * n_pairs + (first + k) * WIDTH;
        for (int64_t i = 0; i < WIDTH; i += W) {
          if (columns - c - i >= W && 2 * k + 1 < n && (WIDTH - i >= W || k + 1 < end)) {
            // of a narrow strip the next pair overwrites what is too much
            const I low = widened(_mm256_loadu_si256((const __m256i*)(even + i)));
            const I high = widened(_mm256_loadu_si256((const __m256i*)(odd + i)));
            _mm512_storeu_si512(at + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            continue;
          }
          const __mmask16 there = lanes(std::min(columns - c, WIDTH) - i);
          const I low = widened(_mm256_maskz_loadu_epi16(there, even + i));
          const I high = widened(_mm256_maskz_loadu_epi16(2 * k + 1 < n ? there : 0, odd + i));
          _mm512_mask_storeu_epi32(at + i, lanes(WIDTH - i), _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
      }
    }
}

}  // namespace coterie::COTERIE_ISA
#endif
