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
  int64_t D, F, slots, up, down, weights;  // units of an expert's weights, where up (forward) and down begin in them
  int64_t most = 0, total = 0;           // pairs of rows: of one expert, of all
  std::vector<int64_t> first_row, n_pairs, first_pair, pieces[3];
  bool is_backward;

  SparseLayout(const SparseCall& call, bool is_back)
      : c(call), D(call.D), F(call.F), slots(std::min(call.E, SparseOrder::SLOTS)), is_backward(is_back) {
    up = Strips::columns(F, D / 2), down = is_backward ? Strips::columns(D, F) : 2 * up;
    weights = down + (is_backward ? Strips::columns(F, D / 2) : Strips::columns(D, F / 2));
    int64_t row = 0;
    for (int64_t e = 0; e < c.E; e++) {
      const int64_t n = c.counts[e];
      first_row.push_back(row), first_pair.push_back(total);
      n_pairs.push_back(ceil_div(n, 2) | 1);  // strips of an even number would begin in the same sets of the cache
      row += n, total += n_pairs.back(), most = std::max(most, n_pairs.back());
      pieces[0].push_back(n ? 2 * of_gate() + ceil_div(D, WEIGHT_ROWS) : 0);
      pieces[1].push_back(ceil_div(n, BLOCK));
      pieces[2].push_back(is_backward ? down_gradients() + gate_up_gradients() : 0);
    }
  }
  int64_t of_gate() const { return ceil_div(F, WEIGHT_ROWS); }
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

// One piece of the weights of an expert, of gate, up or down: as rows, which forward multiplies by, or as columns.
inline void lay_out_weights(const SparseLayout& z, int64_t e, int64_t i) {
  const int64_t part = std::min<int64_t>(2, i / z.of_gate());
  const bool is_down = part == 2;
  const int64_t n_rows = is_down ? z.D : z.F, width = is_down ? z.F : z.D, before = is_down ? 0 : part * z.F,
                begin = (i - part * z.of_gate()) * WEIGHT_ROWS, n = std::min(WEIGHT_ROWS, n_rows - begin);
  const uint16_t* x = is_down ? z.c.down + (e * n_rows + begin) * width
                              : z.c.gate_up + (e * 2 * n_rows + before + begin) * width;
  uint32_t* strips = z.weights_of(e) + (is_down ? z.down : 0);
  if (!z.is_backward)
    rows_to_strips(x, n, width, strips + (part == 1 ? z.up : 0) + begin * (width / 2));
  else if (is_down || z.c.grad_x)
    columns_to_strips<Strips::COLUMNS>(x, n, width, strips, is_down ? z.D / 2 : z.F, (before + begin) / 2);
}

inline void forward_rows(Pool& pool, const SparseLayout& z, int64_t e, int64_t i, int thread) {
  const SparseCall& c = z.c;
  const int64_t D = z.D, F = z.F, begin = z.first_row[(size_t)e] + i * BLOCK,
                n = std::min(BLOCK, c.counts[e] - i * BLOCK), x_units = Panels::units(BLOCK, D / 2),
                a_units = Panels::units(BLOCK, F / 2);
  const uint32_t* weights = z.weights_of(e);
  auto* scratch = (uint32_t*)pool.scratch(thread, OF_ROWS, (x_units + a_units + BLOCK * W) * 4);
  const Panels x{scratch, BLOCK, D / 2}, a{scratch + x_units, BLOCK, F / 2};
  auto* gates = (uint16_t*)(scratch + x_units + a_units);
  for (int64_t t = 0; t < n; t++) x.copy(t, c.x + c.tokens[begin + t] * D);
  for (int64_t f = 0; f < F; f += Strips::COLUMNS) {
    const uint32_t* strip = weights + f * (D / 2);
    uint16_t* h = c.h + begin * 2 * F + f;
    const int64_t n_columns = std::min(Strips::COLUMNS, F - f);
    bf16_product(x, strip, D / 2, D / 2, n, n_columns, GateColumns{h, gates, 2 * F});
    bf16_product(x, strip + z.up, D / 2, D / 2, n, n_columns, UpColumns{h + F, gates, 2 * F, a.at(0, f)});
  }
  bf16_product(a, weights + z.down, F / 2, F / 2, n, D, Rounded{c.y + begin * D, D});
  _mm_sfence();  // what went past the cache is there before the piece counts as done
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
                grad_units = Panels::units(BLOCK, D / 2), grad_h_units = 2 * Panels::units(BLOCK, F / 2);
  const uint32_t* weights = z.weights_of(e);
  uint32_t *strips = z.rows_of(e),
           *scratch = (uint32_t*)pool.scratch(
               thread, OF_ROWS, (grad_units + grad_h_units + BLOCK * (F / 2) + HELD_PAIRS * 2 * F) * 4);
  const Panels grad{scratch, BLOCK, D / 2}, grad_h{scratch + grad_units, BLOCK, F / 2};
  uint32_t* pairs = scratch + grad_units + grad_h_units;
  auto* grad_a = (uint16_t*)(pairs + HELD_PAIRS * 2 * F);
  const auto row_of = [&](const uint16_t* x) { return [=](int64_t t) { return x + c.tokens[begin + t] * D; }; };
  for (int64_t t = 0; t < n; t++) grad.copy(t, row_of(c.grad)(t));
  bf16_product(grad, weights + z.down, D / 2, D / 2, n, F, Rounded{grad_a, F});
  for (int64_t t = 0; t < n; t += 2) {
    GateRows rows;
    for (int64_t row = 0; row < 2; row++) {
      const int64_t there = std::min(t + row, n - 1);  // an odd row beside itself with a weight of 0
      rows.h[row] = c.h + (begin + there) * 2 * F;
      rows.grad[row] = grad_a + there * F;
      rows.weight[row] = t + row < n ? c.weights[begin + t + row] : 0.0f;
    }
    const int64_t k = first + t / 2, held = t / 2 % HELD_PAIRS;
    gate_backward_rows(rows, F, strips + z.a_at() * n_pairs + k * Strips::COLUMNS, n_pairs * Strips::COLUMNS, grad_h, t,
                       pairs + held * 2 * F);
    for (int64_t row = 0; row < std::min<int64_t>(2, n - t); row++) c.dots[begin + t + row] = rows.dot[row];
    if (held + 1 == HELD_PAIRS || t + 2 >= n)
      pairs_to_strips(pairs, held + 1, 2 * F, strips + z.grad_h_at() * n_pairs + (k - held) * Strips::ROWS,
                      n_pairs * Strips::ROWS);
  }
  if (c.grad_x) bf16_product(grad_h, weights, F, F, n, D, Rounded{c.grad_x + begin * D, D});
  if (c.grad_down) columns_to_strips<Strips::ROWS>(row_of(c.grad), n, D, strips, n_pairs, first);
  if (c.grad_gate_up)
    columns_to_strips<Strips::COLUMNS>(row_of(c.x), n, D, strips + z.x_at() * n_pairs, n_pairs, first);
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
  bf16_product(LeftStrips{left, stride}, right, stride, n_pairs, n, width, Rounded{out, width});
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
