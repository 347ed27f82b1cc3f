// Linear layers of training in bf16: see training.h.
#pragma once

#include "training_products.h"

namespace coterie::COTERIE_ISA {

#if defined(COTERIE_AVX512)

// body(i, thread) for 0 .. n - 1, each taken by whoever is free
template <class Body>
void each_piece(Pool& pool, int64_t n, Body&& body) {
  pool.run(n, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; i++) body(i, thread);
  });
}

inline void strips(Pool& pool, const StripsCall& c) {
  constexpr int64_t ROWS = 4 * Strips::COLUMNS;  // of a piece; even
  each_piece(pool, ceil_div(c.n, ROWS), [&](int64_t i, int) {
    const int64_t begin = i * ROWS, n = std::min(ROWS, c.n - begin);
    if (c.of_rows)
      rows_to_strips(c.x + begin * c.K, n, c.K, c.out + begin * (c.K / 2));
    else
      columns_to_strips<Strips::COLUMNS>(c.x + begin * c.K, n, c.K, c.out, ceil_div(c.n, 2), begin / 2);
  });
}

// A product of M rows and N columns in pieces: some tiles of rows, and some strips of columns where rows alone make few
// pieces, so that all threads end at about the same time.
struct Pieces {
  int64_t M, N, rows, columns, n_across, n;

  Pieces(int64_t M_, int64_t N_, int64_t tiles) : M(M_), N(N_), rows(tiles * Strips::ROWS) {
    constexpr int64_t ENOUGH = 32;
    const int64_t n_down = ceil_div(M, rows), strips = std::max<int64_t>(1, ceil_div(N, Strips::COLUMNS));
    columns = ceil_div(strips, std::min(strips, ceil_div(ENOUGH, std::max<int64_t>(1, n_down)))) * Strips::COLUMNS;
    n_across = ceil_div(N, columns), n = n_down * n_across;
  }
  int64_t row(int64_t i) const { return i / n_across * rows; }
  int64_t column(int64_t i) const { return i % n_across * columns; }
  int64_t n_rows(int64_t i) const { return std::min(rows, M - row(i)); }
  int64_t n_columns(int64_t i) const { return std::min(columns, N - column(i)); }
};

inline void product(Pool& pool, const ProductCall& c) {
  const Pieces pieces(c.T, c.N, 5);
  const int64_t n_pairs = c.K / 2, units = Panels::units(pieces.rows, std::min(n_pairs, 2 * STRETCH));
  each_piece(pool, pieces.n, [&](int64_t i, int thread) {
    const int64_t row = pieces.row(i), column = pieces.column(i), n = pieces.n_rows(i), n_columns = pieces.n_columns(i);
    const uint32_t* strips = c.strips + column * n_pairs;
    const Rounded out{c.out + row * c.N + column, c.N};
    auto* panels = (uint32_t*)pool.scratch(thread, OF_ROWS, units * 4);
    auto* sums = (float*)pool.scratch(thread, OF_SUMS, pieces.rows * pieces.columns * 4);
    if (!is_one_stretch(n_pairs)) std::fill(sums, sums + n * n_columns, 0.0f);
    each_stretch(n_pairs, [&](int64_t begin, int64_t end) {
      const Panels x{panels, pieces.rows, end - begin};
      for (int64_t r = 0; r < n; r++) x.copy(r, c.x + (row + r) * c.K + 2 * begin);
      const uint32_t* b = strips + begin * Strips::COLUMNS;
      if (is_one_stretch(n_pairs))
        bf16_product(x, b, n_pairs, end - begin, n, n_columns, out);
      else
        bf16_product(x, b, n_pairs, end - begin, n, n_columns, Added{sums, n_columns});
    });
    if (!is_one_stretch(n_pairs)) round_sums(sums, n, n_columns, out.out, c.N);
  });
}

inline void transposed_product(Pool& pool, const TransposedProductCall& c) {
  constexpr int64_t PAIRS = 64;
  const int64_t n_pairs = ceil_div(c.n, 2);
  auto* left = (uint32_t*)pool.scratch(0, OF_LEFT, Strips::rows(c.M, n_pairs) * 4);
  auto* right = (uint32_t*)pool.scratch(0, OF_RIGHT, Strips::columns(c.N, n_pairs) * 4);
  each_piece(pool, ceil_div(n_pairs, PAIRS), [&](int64_t i, int) {
    const int64_t begin = 2 * PAIRS * i, n = std::min(2 * PAIRS, c.n - begin);
    columns_to_strips<Strips::ROWS>(c.a + begin * c.M, n, c.M, left, n_pairs, PAIRS * i);
    columns_to_strips<Strips::COLUMNS>(c.b + begin * c.N, n, c.N, right, n_pairs, PAIRS * i);
  });
  const Pieces pieces(c.M, c.N, 10);
  each_piece(pool, pieces.n, [&](int64_t i, int thread) {
    const int64_t row = pieces.row(i), column = pieces.column(i), n = pieces.n_rows(i), n_columns = pieces.n_columns(i);
    const bool is_rounded = !c.sums, is_direct = is_rounded && is_one_stretch(n_pairs);
    auto* sums = is_rounded ? (float*)pool.scratch(thread, OF_SUMS, pieces.rows * pieces.columns * 4)
                            : c.sums + row * c.N + column;
    if (is_rounded && !is_direct) std::fill(sums, sums + n * n_columns, 0.0f);
    each_stretch(n_pairs, [&](int64_t begin, int64_t end) {
      const LeftStrips a{left + row * n_pairs + begin * Strips::ROWS, n_pairs};
      const uint32_t* b = right + column * n_pairs + begin * Strips::COLUMNS;
      if (is_direct)
        bf16_product(a, b, n_pairs, end - begin, n, n_columns, Rounded{c.out + row * c.N + column, c.N});
      else
        bf16_product(a, b, n_pairs, end - begin, n, n_columns, Added{sums, is_rounded ? n_columns : c.N});
    });
    if (is_rounded && !is_direct) round_sums(sums, n, n_columns, c.out + row * c.N + column, c.N);
  });
}

#endif

}  // namespace coterie::COTERIE_ISA
