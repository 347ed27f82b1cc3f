// What causal attention of training is made of: products of tiles, and heads laid out for them.
//
// Numbers of a product come in units of 32 bits: a float, or two bf16 that lie beside each other along the inner
// dimension.
#pragma once

#include "multiply.h"
#include "training_rows.h"

namespace coterie::COTERIE_ISA {

constexpr int TILE_ROWS = FLOAT_ROWS, TILE_COLUMNS = (int)PANEL * TOGETHER;
constexpr int64_t BLOCK_KEYS = 192, KEY_STRIDE = BLOCK_KEYS + 16;  // a multiple of 12 and of 32; rows in other sets
constexpr int64_t WIDEST_HEAD = 256, WIDTH_STRIDE = WIDEST_HEAD + 16;
static_assert(BLOCK_KEYS % TILE_ROWS == 0 && BLOCK_KEYS % TILE_COLUMNS == 0);

enum CausalScratch { OF_KEYS = 2, OF_BLOCK = 3, OF_SUMS = 4, OF_SHARED_SUMS = 5, OF_ROWS = 6, OF_LEFT = 2, OF_RIGHT = 3 };

INLINE int64_t round_up(int64_t n, int64_t step) { return ceil_div(n, step) * step; }
INLINE void fill_zero(float* x, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += W) store(x + i, zero());
}

struct FloatMath {
  using Unit = float;
  static constexpr int NUMBERS = 1, DEGREE = 6;
  static INLINE F dot(F b, const float* a, F sum) { return fma(b, set1(*a), sum); }
  // n numbers (a multiple of TILE_COLUMNS) of a row as units along it
  static INLINE void along(float* out, const float* row, int64_t n) {
    for (int64_t i = 0; i < n; i += W) store(out + i, load(row + i));
  }
  // one or two rows as units across them
  static INLINE void across(float* out, const float* row, const float*, int64_t n) { along(out, row, n); }
};

#if defined(COTERIE_AVX512)
// By their names in assembly, since the templates are compiled for processors without them too.
struct Bf16Math {
  using Unit = uint32_t;
  static constexpr int NUMBERS = 2, DEGREE = 4;
  static INLINE F dot(F b, const uint32_t* a, F sum) {
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a));
    return sum;
  }
  static INLINE I rounded(F low, F high) {
    I both;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(low), "v"(high));
    return both;
  }
  static INLINE void along(uint32_t* out, const float* row, int64_t n) {
    for (int64_t i = 0; i < n; i += 2 * W) _mm512_storeu_si512(out + i / 2, rounded(load(row + i), load(row + i + W)));
  }
  static INLINE void across(uint32_t* out, const float* even, const float* odd, int64_t n) {
    const I place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const I order = _mm512_or_si512(place, _mm512_slli_epi32(_mm512_add_epi32(place, _mm512_set1_epi32(W)), 16));
    for (int64_t i = 0; i < n; i += W)
      _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(order, rounded(load(even + i), load(odd + i))));
  }
};
#endif

// c [TILE_ROWS][TILE_COLUMNS] = (or +=) a · b over n units; unit k of row r of a is at r · A_ROW + k · A_K, that of b
// at k · b_stride.
template <class M, int64_t A_ROW, int64_t A_K, bool ADDS>
ALONE void tile_product(const typename M::Unit* a, const typename M::Unit* b, int64_t b_stride, int64_t n, float* c,
                        int64_t c_stride) {
  constexpr int R = TILE_ROWS, N = TILE_COLUMNS / W;
  F sums[R][N];
  // indices that the compiler knows keep the sums in registers
  const auto each_sum = [&](auto body) __attribute__((always_inline)) {
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<N>([&](auto j) __attribute__((always_inline)) { body(r, j, sums[r][j]); });
    });
  };
  each_sum([&](auto r, auto j, F& sum)
               __attribute__((always_inline)) { sum = ADDS ? load(c + r * c_stride + j * W) : zero(); });
  for (int64_t k = 0; k < n; k++, a += A_K, b += b_stride) {
    F columns[N];
    unroll<N>([&](auto j) __attribute__((always_inline)) { columns[j] = load((const float*)b + j * W); });
    each_sum([&](auto r, auto j, F& sum)
                 __attribute__((always_inline)) { sum = M::dot(columns[j], a + r * A_ROW, sum); });
  }
  each_sum([&](auto r, auto j, F& sum) __attribute__((always_inline)) { store(c + r * c_stride + j * W, sum); });
}

// Sizes of a call, and its pieces: some queries of one key head of one sequence, the last ones first since they see the
// most keys. How many pieces there are depends on the sizes alone, so sums have the same bits with any number of
// threads.
struct CausalSizes {
  // padded: P up to whole columns; units: of so many; width: of a row of qkv; part: queries of a piece
  int64_t r, P, padded, units, width, n_parts, part;

  CausalSizes(const CausalCall& c, int numbers)
      : r(c.H / c.G), P(c.P), padded(round_up(P, TILE_COLUMNS)), units(padded / numbers), width((c.H + 2 * c.G) * P) {
    constexpr int64_t FEW_PIECES = 32, LEAST = 512;
    n_parts = std::max<int64_t>(1, std::min(FEW_PIECES / (c.B * c.G), c.S / LEAST));
    part = ceil_div(c.S, n_parts);
    n_parts = ceil_div(c.S, part);
  }
};
struct CausalPiece {
  int64_t b, g, begin, end;  // queries begin .. end - 1

  CausalPiece(const CausalCall& c, const CausalSizes& sizes, int64_t i)
      : b(i / c.G % c.B),
        g(i % c.G),
        begin((sizes.n_parts - 1 - i / (c.B * c.G)) * sizes.part),
        end(std::min(begin + sizes.part, c.S)) {}
};

// x [P] turned by cos and signed sin, or back by the transposed turn, times a scale.
inline void turn(float* x, int64_t P, const float* cos, const float* sin, float scale, bool is_back) {
  const int64_t half = P / 2;
  const float *sin_a = is_back ? sin + half : sin, *sin_b = is_back ? sin : sin + half;
  each(half, LANES {
    const F a = read<Type::F32>(x, i, n), b = read<Type::F32>(x, half + i, n);
    const F turned_a = fma(a, read<Type::F32>(cos, i, n), mul(b, read<Type::F32>(sin_a, i, n)));
    const F turned_b = fma(b, read<Type::F32>(cos, half + i, n), mul(a, read<Type::F32>(sin_b, i, n)));
    write<Type::F32>(x, i, n, mul(turned_a, set1(scale)));
    write<Type::F32>(x, half + i, n, mul(turned_b, set1(scale)));
  });
}

// One head of row t of qkv, turned if it is no value, with zeros up to `padded` numbers.
inline void read_head(const CausalCall& c, const CausalSizes& z, int64_t t, int64_t head, float scale, float* out) {
  fill_zero(out, z.P / W * W, z.padded);
  to_floats(out, c.qkv, c.type, t * z.width + head * z.P, z.P);
  if (head < c.H + c.G) turn(out, z.P, c.cos + t * z.P, c.sin + t * z.P, scale, false);
}

// Towards the second-level cache.
INLINE void prefetch(const void* p, Type type, int64_t i, int64_t n) {
  const auto* at = (const uint8_t*)p + i * size_of(type);
  for (int64_t byte = 0; byte < n * size_of(type); byte += 64) __builtin_prefetch(at + byte, 0, 2);
}

// Keys or values of the first n positions: `by_column` [n / TILE_COLUMNS][units of `padded`][TILE_COLUMNS], which
// queries are multiplied by, and `by_row` [units of n][padded], which probabilities are. Zeros up to a whole block; a
// null one is left out.
template <class M>
void lay_out(const CausalCall& c, const CausalSizes& z, int64_t b, int64_t head, int64_t n, typename M::Unit* by_column,
             typename M::Unit* by_row) {
  alignas(64) float lines[PANEL][WIDEST_HEAD];
  alignas(64) typename M::Unit units[PANEL][WIDEST_HEAD / M::NUMBERS];
  const uint32_t* sources[PANEL];
  for (int64_t s = 0; s < round_up(n, BLOCK_KEYS); s += PANEL) {
    for (int64_t i = 0; i < PANEL; i++) {
      if (s + i < n)
        read_head(c, z, b * c.S + s + i, head, 1.0f, lines[i]);
      else
        fill_zero(lines[i], 0, z.padded);
      if (by_column) M::along(units[i], lines[i], z.padded);
      if (by_row && i % M::NUMBERS == M::NUMBERS - 1)
        M::across(by_row + (s + i) / M::NUMBERS * z.padded, lines[i - M::NUMBERS + 1], lines[i], z.padded);
    }
    if (!by_column) continue;
    auto* columns = (uint32_t*)by_column + s / TILE_COLUMNS * z.units * TILE_COLUMNS + s % TILE_COLUMNS;
    for (int64_t u = 0; u < z.units; u += PANEL) {
      for (int64_t i = 0; i < PANEL; i++) sources[i] = (const uint32_t*)units[i] + u;
      transpose(sources, columns + u * TILE_COLUMNS, TILE_COLUMNS);
    }
  }
}

}  // namespace coterie::COTERIE_ISA
