// Norms, cross-entropy and the optimizer of training: see training.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "threads.h"
#include "tiles.h"
#include "training.h"

namespace coterie::COTERIE_ISA {

enum TrainingScratch { WIDE_ROW = 0, PARTIAL_SUMS = 1 };

template <Type TYPE>
struct Stored {
  using Number = std::conditional_t<TYPE == Type::F32, float, uint16_t>;
};
// `n` numbers of a vector (W of them unless a row ends) at position i; the others are 0.
template <Type TYPE>
INLINE F read(const void* p, int64_t i, int n) {
  using Number = typename Stored<TYPE>::Number;
  if (n == W) return load_any(p, TYPE, i);
  alignas(64) Number part[W] = {};
  std::memcpy(part, (const Number*)p + i, (size_t)n * sizeof(Number));
  return load_any(part, TYPE, 0);
}
template <Type TYPE>
INLINE void write(void* p, int64_t i, int n, F x) {
  using Number = typename Stored<TYPE>::Number;
  if (n == W) return store_any(p, TYPE, i, x);
  alignas(64) Number part[W];
  store_any(part, TYPE, 0, x);
  std::memcpy((Number*)p + i, part, (size_t)n * sizeof(Number));
}
template <Type TYPE>
INLINE F rounded(F x) {
  if constexpr (TYPE == Type::F32) {
    return x;
  } else {
    alignas(64) uint16_t part[W];
    store_any(part, TYPE, 0, x);
    return load_any(part, TYPE, 0);
  }
}
// body(i, n) for the vectors of a row of `size`.
template <class Body>
INLINE void each(int64_t size, Body&& body) {
  int64_t i = 0;
  for (; i + W <= size; i += W) body(i, W);
  if (i < size) body(i, (int)(size - i));
}
#define LANES [&](int64_t i, int n) __attribute__((always_inline))

// f.template operator()<TYPE>() for a type that is known when the program runs
template <class Body>
INLINE void with_type(Type type, Body&& body) {
  if (type == Type::BF16) return body.template operator()<Type::BF16>();
  if (type == Type::F16) return body.template operator()<Type::F16>();
  body.template operator()<Type::F32>();
}
INLINE int64_t rows_at_once(int64_t width) { return std::max<int64_t>(1, 32768 / width); }

inline void norm_forward(Pool& pool, const NormForwardCall& c) {
  with_type(c.type, [&]<Type TYPE>() {
    pool.run(c.T, rows_at_once(c.D), [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; t++) {
        const int64_t at = t * c.D;
        F squares = zero();
        each(c.D, LANES {
          const F x = read<TYPE>(c.x, at + i, n);
          squares = fma(x, x, squares);
        });
        const float inverse = 1.0f / std::sqrt(sum_lanes(squares) / (float)c.D + c.eps);
        const F factor = set1(inverse);
        each(c.D, LANES {
          const F x = rounded<TYPE>(mul(read<TYPE>(c.x, at + i, n), factor));
          write<TYPE>(c.out, at + i, n, mul(x, read<TYPE>(c.weight, i, n)));
        });
        c.inverse[t] = inverse;
      }
    });
  });
}

// Sums over rows are made of the sums of 64 rows each, in order, whoever made those.
inline void norm_backward(Pool& pool, const NormBackwardCall& c) {
  constexpr int64_t ROWS = 64;
  const int64_t n_parts = ceil_div(c.T, ROWS);
  auto* parts = (float*)pool.scratch(0, PARTIAL_SUMS, std::max<int64_t>(1, n_parts) * c.D * 4);
  with_type(c.type, [&]<Type TYPE>() {
    pool.run(n_parts, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t part = begin; part < end; part++) {
        float* sums = parts + part * c.D;
        std::fill(sums, sums + c.D, 0.0f);
        for (int64_t t = part * ROWS; t < std::min(c.T, (part + 1) * ROWS); t++) {
          const int64_t at = t * c.D;
          const F factor = set1(c.inverse[t]);
          F dot = zero();
          each(c.D, LANES {
            const F x = mul(read<TYPE>(c.x, at + i, n), factor), g = read<TYPE>(c.grad, at + i, n);
            dot = fma(mul(g, read<TYPE>(c.weight, i, n)), x, dot);
            write<Type::F32>(sums, i, n, fma(g, x, read<Type::F32>(sums, i, n)));
          });
          const F mean = set1(sum_lanes(dot) / (float)c.D);
          each(c.D, LANES {
            const F x = mul(read<TYPE>(c.x, at + i, n), factor), g = read<TYPE>(c.grad, at + i, n);
            const F inner = fma(sub(zero(), mean), x, mul(g, read<TYPE>(c.weight, i, n)));
            write<TYPE>(c.grad_x, at + i, n, mul(inner, factor));
          });
        }
      }
    });
  });
  std::fill(c.grad_weight, c.grad_weight + c.D, 0.0f);
  for (int64_t part = 0; part < n_parts; part++)
    for (int64_t d = 0; d < c.D; d++) c.grad_weight[d] += parts[part * c.D + d];
}

inline void cross_entropy(Pool& pool, const CrossEntropyCall& c) {
  with_type(c.type, [&]<Type TYPE>() {
    pool.run(c.T, rows_at_once(c.V), [&](int64_t begin, int64_t end, int thread) {
      auto* exps = (float*)pool.scratch(thread, WIDE_ROW, c.V * 4);
      for (int64_t t = begin; t < end; t++) {
        const int64_t at = t * c.V, target = c.targets[t];
        if (target < 0) {
          each(c.V, LANES { write<TYPE>(c.logits, at + i, n, zero()); });
          c.losses[t] = 0;
          continue;
        }
        F most = set1(-std::numeric_limits<float>::infinity());
        for (int64_t i = 0; i + W <= c.V; i += W) most = max(most, read<TYPE>(c.logits, at + i, W));
        float largest = max_lanes(most);
        for (int64_t i = c.V / W * W; i < c.V; i++)
          largest = std::max(largest, sum_lanes(read<TYPE>(c.logits, at + i, 1)));
        const float wanted = sum_lanes(read<TYPE>(c.logits, at + target, 1));
        F sum = zero();
        const F shift = set1(largest);
        each(c.V, LANES {
          const F e = exp(sub(read<TYPE>(c.logits, at + i, n), shift));
          write<Type::F32>(exps, i, n, e);
          sum = add(sum, n == W ? e : read<Type::F32>(exps, i, n));
        });
        const float total = sum_lanes(sum);
        c.losses[t] = std::log(total) + (largest - wanted);
        exps[target] -= total;
        const F factor = set1(1.0f / total);
        each(c.V, LANES { write<TYPE>(c.logits, at + i, n, mul(read<Type::F32>(exps, i, n), factor)); });
      }
    });
  });
}

inline void adam(Pool& pool, const AdamCall& c) {
  constexpr int64_t PIECE = 16384;
  const F scale = set1(c.scale), keep = set1(c.keep), beta2 = set1(c.beta2), step = set1(-c.step),
          inverse_root = set1(1.0f / c.root), eps = set1(c.eps), rest1 = set1(1.0f - c.beta1),
          rest2 = set1(1.0f - c.beta2);
  with_type(c.grad_type, [&]<Type TYPE>() {
    pool.run(ceil_div(c.n, PIECE), 1, [&](int64_t begin, int64_t end, int) {
      const int64_t first = begin * PIECE;
      each(std::min(end * PIECE, c.n) - first, LANES {
        i += first;
        const F g = mul(read<TYPE>(c.grad, i, n), scale), m = read<Type::F32>(c.mean, i, n);
        const F mean = fma(sub(g, m), rest1, m);
        const F square = fma(mul(g, g), rest2, mul(beta2, read<Type::F32>(c.square, i, n)));
        const F divisor = fma(sqrt(square), inverse_root, eps);
        const F weight = fma(step, div(mean, divisor), mul(keep, read<Type::F32>(c.weight, i, n)));
        write<Type::F32>(c.mean, i, n, mean);
        write<Type::F32>(c.square, i, n, square);
        write<Type::F32>(c.weight, i, n, weight);
        if (!c.out) return;
        if (c.out_type == Type::BF16)
          write<Type::BF16>(c.out, i, n, weight);
        else
          write<Type::F16>(c.out, i, n, weight);
      });
    });
  });
}

// Sums of 16,384 squares each, added in order.
inline void square_sum(Pool& pool, const SquareSumCall& c) {
  constexpr int64_t PIECE = 16384;
  const int64_t n_parts = ceil_div(c.n, PIECE);
  auto* parts = (double*)pool.scratch(0, PARTIAL_SUMS, std::max<int64_t>(1, n_parts) * 8);
  with_type(c.type, [&]<Type TYPE>() {
    pool.run(n_parts, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t part = begin; part < end; part++) {
        const int64_t first = part * PIECE;
        F sums[4] = {zero(), zero(), zero(), zero()};
        each(std::min(c.n, first + PIECE) - first, LANES {
          const F x = read<TYPE>(c.x, first + i, n);
          sums[i / W % 4] = fma(x, x, sums[i / W % 4]);
        });
        parts[part] = sum_lanes(coterie::COTERIE_ISA::add(coterie::COTERIE_ISA::add(sums[0], sums[1]),
                                                          coterie::COTERIE_ISA::add(sums[2], sums[3])));
      }
    });
  });
  *c.out = 0;
  for (int64_t part = 0; part < n_parts; part++) *c.out += parts[part];
}

}  // namespace coterie::COTERIE_ISA
