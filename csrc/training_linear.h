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

inline void product(Pool& pool, const ProductCall& c) {
  constexpr int64_t ROWS = 5 * Strips::ROWS;
  each_piece(pool, ceil_div(c.T, ROWS), [&](int64_t i, int thread) {
    const int64_t begin = i * ROWS, n = std::min(ROWS, c.T - begin), whole = n / Strips::ROWS * Strips::ROWS;
    const uint16_t* x = c.x + begin * c.K;
    uint16_t* out = c.out + begin * c.N;
    if (whole) bf16_product<false>((const uint32_t*)x, c.K / 2, c.strips, c.K / 2, whole, c.N, out, c.N);
    if (whole == n) return;
    auto* last = (uint16_t*)pool.scratch(thread, OF_ROWS, Strips::ROWS * c.K * 2);  // a tile is read whole
    std::memcpy(last, x + whole * c.K, (size_t)((n - whole) * c.K) * 2);
    bf16_product<false>((const uint32_t*)last, c.K / 2, c.strips, c.K / 2, n - whole, c.N, out + whole * c.N, c.N);
  });
}

inline void transposed_product(Pool& pool, const TransposedProductCall& c) {
  constexpr int64_t PAIRS = 64, PIECE = 10 * Strips::ROWS;
  const int64_t n_pairs = ceil_div(c.n, 2);
  auto* left = (uint32_t*)pool.scratch(0, OF_LEFT, Strips::rows(c.M, n_pairs) * 4);
  auto* right = (uint32_t*)pool.scratch(0, OF_RIGHT, Strips::columns(c.N, n_pairs) * 4);
  each_piece(pool, ceil_div(n_pairs, PAIRS), [&](int64_t i, int) {
    const int64_t begin = 2 * PAIRS * i, n = std::min(2 * PAIRS, c.n - begin);
    columns_to_strips<Strips::ROWS>(c.a + begin * c.M, n, c.M, left, n_pairs, PAIRS * i);
    columns_to_strips<Strips::COLUMNS>(c.b + begin * c.N, n, c.N, right, n_pairs, PAIRS * i);
  });
  each_piece(pool, ceil_div(c.M, PIECE), [&](int64_t i, int) {
    const int64_t begin = i * PIECE, n = std::min(PIECE, c.M - begin), at = begin * c.N;
    const uint32_t* strips = left + begin * n_pairs;
    if (c.sums)
      bf16_product<true>(strips, 0, right, n_pairs, n, c.N, c.sums + at, c.N);
    else
      bf16_product<true>(strips, 0, right, n_pairs, n, c.N, c.out + at, c.N);
  });
}

#endif

}  // namespace coterie::COTERIE_ISA
