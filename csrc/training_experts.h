// The sparse block of training in bf16, whole: see training.h.
//
// A thread takes BLOCK rows of one expert through all its products, so that what lies between them stays in its cache
// and nobody waits for anybody; the gradients of weights, sums over all rows of an expert, follow in pieces of their
// own. Each number is summed by one thread in one order: the bits do not depend on the threads.
#pragma once

#include "training_blocks.h"
#include "training_gates.h"
#include "training_order.h"

namespace coterie::COTERIE_ISA {

#if defined(COTERIE_AVX512)

constexpr int64_t BLOCK = 9 * Strips::ROWS;           // even; what lies between products stays in a second-level cache
constexpr int64_t HELD_PAIRS = 8;                     // pairs of rows that enter strips at once
constexpr int64_t WEIGHT_ROWS = 8 * Strips::COLUMNS;  // of an expert's weights that are laid out in one piece
constexpr int64_t GRADIENT_ROWS = 10 * Strips::ROWS;  // of an expert's weights whose gradient is one piece

// The pieces of a call, and where strips lie in its scratch: those of the weights of SLOTS experts, then those of rows,
// which are grad and grad_h (left sides), the activations and x (right sides), of SLOTS experts or of all, whichever is
// less.
struct SparseLayout {
  const SparseCall& c;
  int64_t D, F, slots, second, weights;  // units of an expert's weights; `second`: where the second of the two begins
  int64_t most = 0, total = 0;           // pairs of rows: of one expert, of all
  std::vector<int64_t> first_row, n_pairs, first_pair, pieces[3];
  bool is_backward;

  SparseLayout(const SparseCall& call, bool is_back)
      : c(call), D(call.D), F(call.F), slots(std::min(call.E, SparseOrder::SLOTS)), is_backward(is_back) {
    second = is_backward ? Strips::columns(D, F) : Strips::columns(2 * F, D / 2);
    weights = second + (is_backward ? Strips::columns(F, D / 2) : Strips::columns(D, F / 2));
    int64_t row = 0;
    for (int64_t e = 0; e < c.E; e++) {
      const int64_t n = c.counts[e];
      first_row.push_back(row), first_pair.push_back(total);
      n_pairs.push_back(ceil_div(n, 2) | 1);  // strips of an even number would begin in the same sets of the cache
      row += n, total += n_pairs.back(), most = std::max(most, n_pairs.back());
      pieces[0].push_back(n ? of_gate_up() + ceil_div(D, WEIGHT_ROWS) : 0);
      pieces[1].push_back(ceil_div(n, BLOCK));
      pieces[2].push_back(is_backward ? down_gradients() + gate_up_gradients() : 0);
    }
  }
  int64_t of_gate_up() const { return ceil_div(2 * F, WEIGHT_ROWS); }
  int64_t down_gradients() const { return c.grad_down ? ceil_div(D, GRADIENT_ROWS) : 0; }
  int64_t gate_up_gradients() const { return c.grad_gate_up ? ceil_div(2 * F, GRADIENT_ROWS) : 0; }

  // Units of strips of one row of pairs: those of grad_h follow those of grad, then the activations', then those of x.
  int64_t grad_h_at() const { return round_up(D, Strips::ROWS); }
  int64_t a_at() const { return grad_h_at() + round_up(2 * F, Strips::ROWS); }
  int64_t x_at() const { return a_at() + round_up(F, Strips::COLUMNS); }
  int64_t row_width() const { return is_backward ? x_at() + round_up(D, Strips::COLUMNS) : 0; }
  int64_t units() const { return slots * weights + std::min(slots * most, total) * row_width(); }

  uint32_t* weights_of(int64_t e) const { return c.scratch + e % slots * weights; }
  uint32_t* rows_of(int64_t e) const {
    const int64_t first = slots * most < total ? e % slots * most : first_pair[(size_t)e];
    return c.scratch + slots * weights + first * row_width();
  }
};

inline int64_t sparse_scratch(const SparseCall& c, bool is_backward) {
  return std::max<int64_t>(1, SparseLayout(c, is_backward).units());
}

// Rows of x [.., D] as they are, `stride` units apart.
INLINE void gather(const uint16_t* x, const int64_t* tokens, int64_t n, int64_t D, uint32_t* out, int64_t stride) {
  for (int64_t i = 0; i < n; i++) std::memcpy(out + i * stride, x + tokens[i] * D, (size_t)D * 2);
}

// One piece of the weights of an expert: as rows, which forward multiplies by, or as columns.
inline void lay_out_weights(const SparseLayout& z, int64_t e, int64_t i) {
  const bool is_down = i >= z.of_gate_up();
  const int64_t n_rows = is_down ? z.D : 2 * z.F, width = is_down ? z.F : z.D,
                begin = (is_down ? i - z.of_gate_up() : i) * WEIGHT_ROWS, n = std::min(WEIGHT_ROWS, n_rows - begin);
  const uint16_t* x = (is_down ? z.c.down : z.c.gate_up) + (e * n_rows + begin) * width;
  uint32_t* strips = z.weights_of(e) + (is_down ? z.second : 0);
  if (!z.is_backward)
    rows_to_strips(x, n, width, strips + begin * (width / 2));
  else if (is_down || z.c.grad_x)
    columns_to_strips<Strips::COLUMNS>(x, width, n, width, strips, n_rows / 2, begin / 2);
}

inline void forward_rows(Pool& pool, const SparseLayout& z, int64_t e, int64_t i, int thread) {
  const SparseCall& c = z.c;
  const int64_t D = z.D, F = z.F, begin = z.first_row[(size_t)e] + i * BLOCK,
                n = std::min(BLOCK, c.counts[e] - i * BLOCK), x_row = apart(D / 2), a_row = apart(F / 2);
  const uint32_t* weights = z.weights_of(e);
  auto* x = (uint32_t*)pool.scratch(thread, OF_ROWS, BLOCK * (x_row + a_row) * 4);
  uint32_t* a = x + BLOCK * x_row;
  uint16_t* h = c.h + begin * 2 * F;
  gather(c.x, c.tokens + begin, n, D, x, x_row);
  for (int64_t t = 0; t < n; t++) std::memcpy(c.x_rows + (begin + t) * D, x + t * x_row, (size_t)D * 2);
  bf16_product<false>(x, x_row, weights, D / 2, D / 2, n, 2 * F, h, 2 * F);
  for (int64_t t = 0; t < n; t++) gate_row(h + t * 2 * F, F, (uint16_t*)(a + t * a_row));
  bf16_product<false>(a, a_row, weights + z.second, F / 2, F / 2, n, D, c.y + begin * D, D);
}

inline void sparse_forward(Pool& pool, const SparseCall& c) {
  const SparseLayout z(c, false);
  SparseOrder(z.pieces).run(pool, [&](const SparsePiece& piece, int thread) {
    if (piece.work == SparseWork::WEIGHTS)
      lay_out_weights(z, piece.expert, piece.i);
    else
      forward_rows(pool, z, piece.expert, piece.i, thread);
  });
}

inline void backward_rows(Pool& pool, const SparseLayout& z, int64_t e, int64_t i, int thread) {
  const SparseCall& c = z.c;
  const int64_t D = z.D, F = z.F, begin = z.first_row[(size_t)e] + i * BLOCK,
                n = std::min(BLOCK, c.counts[e] - i * BLOCK), first = i * BLOCK / 2, n_pairs = z.n_pairs[(size_t)e],
                grad_row = apart(D / 2), a_row = apart(F / 2), h_row = apart(F);
  const uint32_t* weights = z.weights_of(e);
  uint32_t *strips = z.rows_of(e),
           *grad =
               (uint32_t*)pool.scratch(thread, OF_ROWS, (BLOCK * (grad_row + a_row + h_row) + HELD_PAIRS * 2 * F) * 4),
           *grad_a = grad + BLOCK * grad_row, *grad_h = grad_a + BLOCK * a_row, *pairs = grad_h + BLOCK * h_row;
  gather(c.grad, c.tokens + begin, n, D, grad, grad_row);
  bf16_product<false>(grad, grad_row, weights + z.second, D / 2, D / 2, n, F, (uint16_t*)grad_a, 2 * a_row);
  for (int64_t t = 0; t < n; t += 2) {
    GateRows rows;
    for (int64_t row = 0; row < 2; row++) {
      const int64_t there = std::min(t + row, n - 1);  // an odd row beside itself with a weight of 0
      rows.h[row] = c.h + (begin + there) * 2 * F;
      rows.grad[row] = (uint16_t*)(grad_a + there * a_row);
      rows.weight[row] = t + row < n ? c.weights[begin + t + row] : 0.0f;
      rows.grad_h[row] = (uint16_t*)(grad_h + (t + row) * h_row);
    }
    const int64_t k = first + t / 2, held = t / 2 % HELD_PAIRS;
    gate_backward_rows(rows, F, strips + z.a_at() * n_pairs + k * Strips::COLUMNS, n_pairs * Strips::COLUMNS,
                       pairs + held * 2 * F);
    for (int64_t row = 0; row < std::min<int64_t>(2, n - t); row++) c.dots[begin + t + row] = rows.dot[row];
    if (held + 1 == HELD_PAIRS || t + 2 >= n)
      pairs_to_strips(pairs, held + 1, 2 * F, strips + z.grad_h_at() * n_pairs + (k - held) * Strips::ROWS,
                      n_pairs * Strips::ROWS);
  }
  if (c.grad_x) bf16_product<false>(grad_h, h_row, weights, F, F, n, D, c.grad_x + begin * D, D);
  if (c.grad_down) columns_to_strips<Strips::ROWS>((uint16_t*)grad, 2 * grad_row, n, D, strips, n_pairs, first);
  if (c.grad_gate_up)
    columns_to_strips<Strips::COLUMNS>(c.x_rows + begin * D, D, n, D, strips + z.x_at() * n_pairs, n_pairs, first);
}

// Rows of the gradient of an expert's weights, the wide ones first, so that the last pieces are short.
inline void weight_gradient(const SparseLayout& z, int64_t e, int64_t i) {
  const bool is_down = i < z.down_gradients();
  const int64_t n_rows = is_down ? z.D : 2 * z.F, width = is_down ? z.F : z.D, stride = z.n_pairs[(size_t)e],
                begin = (is_down ? i : i - z.down_gradients()) * GRADIENT_ROWS,
                n = std::min(GRADIENT_ROWS, n_rows - begin), n_pairs = ceil_div(z.c.counts[e], 2);
  const uint32_t *strips = z.rows_of(e), *left = strips + (is_down ? 0 : z.grad_h_at()) * stride + begin * stride,
                 *right = strips + (is_down ? z.a_at() : z.x_at()) * stride;
  uint16_t* out = (is_down ? z.c.grad_down : z.c.grad_gate_up) + (e * n_rows + begin) * width;
  if (n_pairs == 0) return (void)std::memset(out, 0, (size_t)(n * width) * 2);
  bf16_product<true>(left, stride, right, stride, n_pairs, n, width, out, width);
}

inline void sparse_backward(Pool& pool, const SparseCall& c) {
  const SparseLayout z(c, true);
  SparseOrder(z.pieces).run(pool, [&](const SparsePiece& piece, int thread) {
    if (piece.work == SparseWork::WEIGHTS)
      lay_out_weights(z, piece.expert, piece.i);
    else if (piece.work == SparseWork::ROWS)
      backward_rows(pool, z, piece.expert, piece.i, thread);
    else
      weight_gradient(z, piece.expert, piece.i);
  });
}

#endif

}  // namespace coterie::COTERIE_ISA
