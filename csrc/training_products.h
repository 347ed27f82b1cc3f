// Products of bf16 matrices in the processor's own instruction, and the layouts that they read.
//
// Numbers come in pairs that lie beside each other along the inner dimension, 32 bits each. The right side of a product
// is strips of COLUMNS numbers, the left side strips of ROWS or panels; a strip has all its pairs one after the other.
// Example, COLUMNS = 2: the columns (1 2 3 4) and (5 6 7 8) are the strip 12 56 34 78. A panel has a few pairs of all
// rows, each row by itself: so rows are the same distance apart in every product, which the compiler knows.
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
INLINE __mmask32 both_lanes(int64_t n) { return lanes(n) | (__mmask32)lanes(n - W) << 16; }
INLINE void put_numbers(uint16_t* out, int64_t n, I numbers) {
  if (n >= 2 * W)
    _mm512_storeu_si512(out, numbers);
  else
    _mm512_mask_storeu_epi16(out, both_lanes(n), numbers);
}

// Where the sums of a product go: put(r, n, left, right) gets those of row r, n columns of two vectors. As bf16
// numbers, or added to float32 ones.
struct Rounded {
  uint16_t* out;
  int64_t stride;
  Rounded from(int64_t row, int64_t column) const { return {out + row * stride + column, stride}; }
  INLINE void put(int64_t r, int64_t n, F left, F right) const {
    put_numbers(out + r * stride, n, Bf16Math::rounded(left, right));
  }
};
struct Added {
  float* out;
  int64_t stride;
  Added from(int64_t row, int64_t column) const { return {out + row * stride + column, stride}; }
  INLINE void put(int64_t r, int64_t n, F left, F right) const {
    float* at = out + r * stride;
    if (n >= 2 * W) return store(at, add(load(at), left)), store(at + W, add(load(at + W), right));
    const __mmask16 first = lanes(n), second = lanes(n - W);
    _mm512_mask_storeu_ps(at, first, add(_mm512_maskz_loadu_ps(first, at), left));
    _mm512_mask_storeu_ps(at + W, second, add(_mm512_maskz_loadu_ps(second, at + W), right));
  }
};

// A left side in strips of n_pairs, and one in panels [panel][rows][ROW]. The inner dimension of the second may have
// several parts of so many pairs, each of which begins a panel. each_run(n, body): body(a, length) for runs of its n
// pairs; pair k of row r is at a + k · STEP + place(r).
struct LeftStrips {
  static constexpr int64_t STEP = Strips::ROWS;
  const uint32_t* x;
  int64_t n_pairs;

  static constexpr int64_t place(int64_t r) { return r; }
  LeftStrips from(int64_t row) const { return {x + row * n_pairs, n_pairs}; }
  template <class Body>
  INLINE void each_run(int64_t n, Body&& body) const {
    body(x, n);
  }
};
struct Panels {
  static constexpr int64_t PAIRS = 128, STEP = 1;
  static constexpr int64_t ROW = PAIRS + W;  // an odd number of cache lines: rows side by side lie in different sets
  uint32_t* x;
  int32_t rows, part;  // of 32 bits, so that a product gets it all in registers: measured, a twentieth of its time

  Panels(uint32_t* x, int64_t rows, int64_t part) : x(x), rows((int32_t)rows), part((int32_t)part) {}
  static constexpr int64_t place(int64_t r) { return r * ROW; }
  static int64_t units(int64_t rows, int64_t part) { return ceil_div(part, PAIRS) * rows * ROW; }
  Panels from(int64_t row) const { return {x + row * ROW, rows, part}; }
  template <class Body>
  INLINE void each_run(int64_t n, Body&& body) const {
    const uint32_t* a = x;
    for (; n > 0; n -= part)
      for (int64_t k = 0; k < part; k += PAIRS, a += (int64_t)rows * ROW) body(a, std::min<int64_t>(PAIRS, part - k));
  }
  // number i of a row of a part
  INLINE uint16_t* at(int64_t r, int64_t i, int64_t parts_before = 0) const {
    const int64_t panel = parts_before * ceil_div(part, PAIRS) + i / (2 * PAIRS);
    return (uint16_t*)(x + (panel * rows + r) * ROW) + i % (2 * PAIRS);
  }
  void copy(int64_t r, const uint16_t* row) const {
    for (int64_t i = 0; i < 2 * part; i += 2 * PAIRS)
      std::memcpy(at(r, i), row + i, (size_t)std::min<int64_t>(2 * PAIRS, 2 * part - i) * 2);
  }
};

// out [ROWS][2W], so many rows and columns of it, from a · b over n pairs. Meanwhile the n lines of the cache from
// `next` on come nearer.
template <class Left, class Out>
ALONE void strip_product(const Left a, const uint32_t* b, const uint32_t* next, int64_t n, int64_t n_rows,
                         int64_t n_columns, const Out out) {
  constexpr int R = (int)Strips::ROWS;
  F sums[R][2];
  unroll<R>([&](auto r) __attribute__((always_inline)) { sums[r][0] = sums[r][1] = zero(); });
  a.each_run(n, [&](const uint32_t* x, int64_t length) __attribute__((always_inline)) {
    for (int64_t k = 0; k < length; k++, x += Left::STEP, b += Strips::COLUMNS, next += W) {
      const F left = load((const float*)b), right = load((const float*)b + W);
      __builtin_prefetch(next, 0, 2);
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const F pair = set1(*(const float*)(x + Left::place(r)));
        asm("vdpbf16ps %2, %1, %0" : "+v"(sums[r][0]) : "v"(left), "v"(pair));
        asm("vdpbf16ps %2, %1, %0" : "+v"(sums[r][1]) : "v"(right), "v"(pair));
      });
    }
  });
  unroll<R>([&](auto r) __attribute__((always_inline)) {
    if (r < n_rows) out.put(r, n_columns, sums[r][0], sums[r][1]);
  });
}

// out [n_rows, n_columns] over n pairs; strips of b have `b_strip` pairs. Rows of a are read up to a multiple of ROWS. A
// strip of b has two lines of the cache for each pair, which the first two tiles of the strip before it fetch.
template <class Left, class Out>
inline void bf16_product(const Left& a, const uint32_t* b, int64_t b_strip, int64_t n, int64_t n_rows,
                         int64_t n_columns, const Out& out) {
  for (int64_t c = 0; c < n_columns; c += Strips::COLUMNS, b += b_strip * Strips::COLUMNS)
    for (int64_t r = 0; r < n_rows; r += Strips::ROWS) {
      const bool fetches = r < 2 * Strips::ROWS && c + Strips::COLUMNS < n_columns;
      const uint32_t* next = fetches ? b + b_strip * Strips::COLUMNS + r / Strips::ROWS * n * W : b;
      strip_product(a.from(r), b, next, n, n_rows - r, n_columns - c, out.from(r, c));
    }
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
    for (int64_t c = 0; c < n_columns; c += 2 * W) {
      const float* at = sums + r * n_columns + c;
      const __mmask16 first = lanes(n_columns - c), second = lanes(n_columns - c - W);
      put_numbers(out + r * stride + c, n_columns - c,
                  Bf16Math::rounded(_mm512_maskz_loadu_ps(first, at), _mm512_maskz_loadu_ps(second, at + W)));
    }
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

// Columns of the n rows row(0), row(1), .. as pairs of them, zeros after the last: from pair `first` on of strips of
// n_pairs.
template <int64_t WIDTH, class Row>
inline void columns_to_strips(Row&& row, int64_t n, int64_t columns, uint32_t* out, int64_t n_pairs, int64_t first) {
  constexpr int64_t TOGETHER = 4;  // pairs: their rows stay in the first-level cache, and what is written lies together
  const auto widened = [](__m256i numbers) { return _mm512_cvtepu16_epi32(numbers); };
  for (int64_t begin = 0; begin < ceil_div(n, 2); begin += TOGETHER) {
    const int64_t end = std::min(begin + TOGETHER, ceil_div(n, 2));
    const uint16_t* rows[2 * TOGETHER];
    for (int64_t i = 2 * begin; i < 2 * end; i++) rows[i - 2 * begin] = row(std::min(i, n - 1));
    for (int64_t c = 0; c < columns; c += WIDTH)
      for (int64_t k = begin; k < end; k++) {
        const uint16_t *even = rows[2 * (k - begin)] + c, *odd = rows[2 * (k - begin) + 1] + c;
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
// The same of the rows of a matrix that lie one after the other.
template <int64_t WIDTH>
inline void columns_to_strips(const uint16_t* x, int64_t n, int64_t columns, uint32_t* out, int64_t n_pairs,
                              int64_t first) {
  columns_to_strips<WIDTH>([&](int64_t i) { return x + i * columns; }, n, columns, out, n_pairs, first);
}

}  // namespace coterie::COTERIE_ISA
#endif
