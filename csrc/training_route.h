// The router's gradient: see training.h. The choice itself is `route` of operations.h.
#pragma once

#include "operations.h"
#include "training_rows.h"

namespace coterie::COTERIE_ISA {

// Rows go through together, so that a weight is read once for all of them. The weight's gradient is made of the sums of
// some rows each, in order, whoever made those.
inline void route_backward(Pool& pool, const RouteBackwardCall& c) {
  constexpr int64_t TOGETHER = 4, MOST_PARTS = 16;
  const int64_t rows = round_up(std::max<int64_t>(64, ceil_div(c.T, MOST_PARTS)), TOGETHER), size = c.E * c.D;
  const int64_t n_parts = ceil_div(c.T, rows);
  auto* parts = (float*)pool.scratch(0, PARTIAL_SUMS, std::max<int64_t>(1, n_parts) * size * 4);
  with_type(c.type, [&]<Type TYPE>() {
    pool.run(n_parts, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t part = begin; part < end; part++) {
        float* sums = parts + part * size;
        std::fill(sums, sums + size, 0.0f);
        for (int64_t t = part * rows; t < std::min(c.T, (part + 1) * rows); t += TOGETHER) {
          int64_t row[TOGETHER];  // where there are fewer the last one again, of zeros
          for (int64_t r = 0; r < TOGETHER; r++) row[r] = std::min(t + r, c.T - 1);
          each(c.D, LANES {
            F x[TOGETHER], grad_x[TOGETHER];
            unroll<TOGETHER>([&](auto r) __attribute__((always_inline)) {
              x[r] = t + r < c.T ? read<TYPE>(c.x, row[r] * c.D + i, n) : zero(), grad_x[r] = zero();
            });
            for (int64_t e = 0; e < c.E; e++) {
              const F weight = read<Type::F32>(c.weight, e * c.D + i, n);
              F sum = read<Type::F32>(sums, e * c.D + i, n);
              unroll<TOGETHER>([&](auto r) __attribute__((always_inline)) {
                const F grad = set1(c.grad[row[r] * c.E + e]);
                grad_x[r] = fma(grad, weight, grad_x[r]), sum = fma(grad, x[r], sum);
              });
              write<Type::F32>(sums, e * c.D + i, n, sum);
            }
            unroll<TOGETHER>([&](auto r) __attribute__((always_inline)) {
              if (t + r < c.T) write<TYPE>(c.grad_x, row[r] * c.D + i, n, grad_x[r]);
            });
          });
        }
      }
    });
  });
  std::fill(c.grad_weight, c.grad_weight + size, 0.0f);
  for (int64_t part = 0; part < n_parts; part++)
    for (int64_t i = 0; i < size; i++) c.grad_weight[i] += parts[part * size + i];
}

}  // namespace coterie::COTERIE_ISA
