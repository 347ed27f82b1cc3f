// The sparse block of training in bf16, whole: see training.h.
//
// A thread takes BLOCK rows of one expert through all its products, so that what lies between them stays in its cache
// and nobody waits for anybody; the gradients of weights, sums over all rows of an expert, follow in pieces of their
// own. Each number is summed by one thread in one order: the bits do not depend on the threads.
#pragma once

#include "training_blocks.h"
#include "training_linear.h"

namespace coterie::COTERIE_ISA {

#if defined(COTERIE_AVX512)

struct SparseRows {  // rows begin .. begin + n of all, of which `before` are the same expert's
  int64_t expert, begin, n, before;
};

// Where the strips of a call lie in its scratch.
struct SparseLayout {
  static constexpr int64_t BLOCK = 9 * Strips::ROWS;  // even; what lies between products stays in a second-level cache
  int64_t D, F, gate_up, weights;                       // strips of an expert's gate and up, and of all its weights
  std::vector<SparseRows> blocks;
  std::vector<int64_t> pairs, first_pair;  // of each expert

  SparseLayout(const SparseCall& c, bool is_backward)
      : D(c.D),
        F(c.F),
        gate_up(is_backward ? Strips::columns(D, F) : Strips::columns(2 * F, D / 2)),
        weights(gate_up + (is_backward ? Strips::columns(F, D / 2) : Strips::columns(D, F / 2))) {
    int64_t row = 0, pair = 0;
    for (int64_t e = 0; e < c.E; e++) {
      const int64_t n = c.counts[e];
      for (int64_t at = 0; at < n; at += BLOCK) blocks.push_back({e, row + at, std::min(BLOCK, n - at), at});
      pairs.push_back(ceil_div(n, 2)), first_pair.push_back(pair);
      row += n, pair += pairs.back();
    }
  }
  // Strips of grad (left), of grad_h (left), of the activations and of x (right), a row of pairs of them
  int64_t grad_width() const { return round_up(D, Strips::ROWS); }
  int64_t grad_h_width() const { return round_up(2 * F, Strips::ROWS); }
  int64_t a_width() const { return round_up(F, Strips::COLUMNS); }
  int64_t x_width() const { return round_up(D, Strips::COLUMNS); }
  int64_t row_width() const { return grad_width() + grad_h_width() + a_width() + x_width(); }
  int64_t units(const SparseCall& c, bool is_backward) const {
    return c.E * weights + (is_backward ? (first_pair.back() + pairs.back()) * row_width() : 0);
  }
};

INLINE void gather(const uint16_t* x, const int64_t* tokens, int64_t n, int64_t D, uint16_t* out) {
  for (int64_t i = 0; i < n; i++) std::memcpy(out + i * D, x + tokens[i] * D, (size_t)D * 2);
}

inline int64_t sparse_scratch(const SparseCall& c, bool is_backward) { return SparseLayout(c, is_backward).units(c, is_backward); }

inline void sparse_forward(Pool& pool, const SparseCall& c) {
  const SparseLayout layout(c, false);
  const int64_t D = c.D, F = c.F;
  each_piece(pool, 2 * c.E, [&](int64_t i, int) {
    const int64_t e = i / 2;
    uint32_t* strips = c.scratch + e * layout.weights;
    if (!c.counts[e]) return;
    if (i % 2 == 0) return rows_to_strips(c.gate_up + e * 2 * F * D, 2 * F, D, strips);
    rows_to_strips(c.down + e * D * F, D, F, strips + layout.gate_up);
  });
  each_piece(pool, (int64_t)layout.blocks.size(), [&](int64_t i, int thread) {
    const SparseRows& rows = layout.blocks[(size_t)i];
    const uint32_t* strips = c.scratch + rows.expert * layout.weights;
    auto* a = (uint16_t*)pool.scratch(thread, OF_ROWS, (SparseLayout::BLOCK + Strips::ROWS) * (F + D) * 2);
    uint16_t *x = a + (SparseLayout::BLOCK + Strips::ROWS) * F, *h = c.h + rows.begin * 2 * F;
    gather(c.x, c.tokens + rows.begin, rows.n, D, x);
    std::memcpy(c.x_rows + rows.begin * D, x, (size_t)(rows.n * D) * 2);
    bf16_product<false>((const uint32_t*)x, D / 2, strips, D / 2, rows.n, 2 * F, h, 2 * F);
    for (int64_t t = 0; t < rows.n; t++) swiglu_row<Type::BF16>(h + t * 2 * F, F, a + t * F);
    bf16_product<false>((const uint32_t*)a, F / 2, strips + layout.gate_up, F / 2, rows.n, D, c.y + rows.begin * D, D);
  });
}

// One piece of the gradient of an expert's weights: out [rows of a piece, columns] = leftᵀ · right over all its rows.
inline void weight_gradient(const uint32_t* left, const uint32_t* right, int64_t n_pairs, int64_t begin, int64_t n_rows,
                            int64_t n_columns, uint16_t* out) {
  if (n_pairs == 0) return (void)std::memset(out + begin * n_columns, 0, (size_t)(n_rows * n_columns) * 2);
  bf16_product<true>(left + begin * n_pairs, 0, right, n_pairs, n_rows, n_columns, out + begin * n_columns, n_columns);
}

inline void sparse_backward(Pool& pool, const SparseCall& c) {
  const SparseLayout layout(c, true);
  const int64_t D = c.D, F = c.F, stride = SparseLayout::BLOCK + Strips::ROWS;
  each_piece(pool, 2 * c.E, [&](int64_t i, int) {
    const int64_t e = i / 2;
    uint32_t* strips = c.scratch + e * layout.weights;
    if (!c.counts[e]) return;
    if (i % 2) return columns_to_strips<Strips::COLUMNS>(c.down + e * D * F, D, F, strips + layout.gate_up, D / 2, 0);
    if (c.grad_x) columns_to_strips<Strips::COLUMNS>(c.gate_up + e * 2 * F * D, 2 * F, D, strips, F, 0);
  });
  uint32_t* const of_rows = c.scratch + c.E * layout.weights;
  const auto strips_of = [&](int64_t e) { return of_rows + layout.first_pair[(size_t)e] * layout.row_width(); };
  const int64_t grad_h_at = layout.grad_width(), a_at = grad_h_at + layout.grad_h_width(), x_at = a_at + layout.a_width();
  each_piece(pool, (int64_t)layout.blocks.size(), [&](int64_t i, int thread) {
    const SparseRows& rows = layout.blocks[(size_t)i];
    const int64_t n = rows.n, n_pairs = layout.pairs[(size_t)rows.expert], first = rows.before / 2;
    uint32_t *weights = c.scratch + rows.expert * layout.weights, *strips = strips_of(rows.expert);
    auto* grad = (uint16_t*)pool.scratch(thread, OF_ROWS, stride * (D + 3 * F) * 2);
    uint16_t *grad_a = grad + stride * D, *grad_h = grad_a + stride * F;
    gather(c.grad, c.tokens + rows.begin, n, D, grad);
    bf16_product<false>((const uint32_t*)grad, D / 2, weights + layout.gate_up, D / 2, n, F, grad_a, F);
    for (int64_t t = 0; t < n; t++)  // grad_a becomes weight · a
      c.dots[rows.begin + t] = swiglu_backward_row<Type::BF16>(c.h + (rows.begin + t) * 2 * F, F, c.weights[rows.begin + t],
                                                               grad_a + t * F, grad_h + t * 2 * F);
    if (c.grad_x)
      bf16_product<false>((const uint32_t*)grad_h, F, weights, F, n, D, c.grad_x + rows.begin * D, D);
    if (c.grad_down) {
      columns_to_strips<Strips::ROWS>(grad, n, D, strips, n_pairs, first);
      columns_to_strips<Strips::COLUMNS>(grad_a, n, F, strips + a_at * n_pairs, n_pairs, first);
    }
    if (c.grad_gate_up) {
      columns_to_strips<Strips::ROWS>(grad_h, n, 2 * F, strips + grad_h_at * n_pairs, n_pairs, first);
      columns_to_strips<Strips::COLUMNS>(c.x_rows + rows.begin * D, n, D, strips + x_at * n_pairs, n_pairs, first);
    }
  });
  constexpr int64_t PIECE = 10 * Strips::ROWS;
  const int64_t of_gate_up = c.grad_gate_up ? ceil_div(2 * F, PIECE) : 0, of_down = c.grad_down ? ceil_div(D, PIECE) : 0;
  each_piece(pool, c.E * (of_gate_up + of_down), [&](int64_t i, int) {
    const int64_t e = i / (of_gate_up + of_down), piece = i % (of_gate_up + of_down), n_pairs = layout.pairs[(size_t)e];
    const uint32_t* strips = strips_of(e);
    if (piece < of_gate_up) {
      const int64_t begin = piece * PIECE;
      weight_gradient(strips + grad_h_at * n_pairs, strips + x_at * n_pairs, n_pairs, begin,
                      std::min(PIECE, 2 * F - begin), D, c.grad_gate_up + e * 2 * F * D);
    } else {
      const int64_t begin = (piece - of_gate_up) * PIECE;
      weight_gradient(strips, strips + a_at * n_pairs, n_pairs, begin, std::min(PIECE, D - begin), F,
                      c.grad_down + e * D * F);
    }
  });
}

#endif

}  // namespace coterie::COTERIE_ISA
