// The sparse block of training, between its matrix products: see training.h.
#pragma once

#include "training_rows.h"

namespace coterie::COTERIE_ISA {

inline void swiglu_forward(Pool& pool, const SwigluForwardCall& c) {
  with_type(c.type, [&]<Type TYPE>() {
    pool.run(c.n, rows_at_once(c.F), [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; t++) {
        const int64_t gate = 2 * t * c.F, up = gate + c.F;
        each(c.F, LANES {
          write<TYPE>(c.out, t * c.F + i, n, mul(silu(read<TYPE>(c.h, gate + i, n)), read<TYPE>(c.h, up + i, n)));
        });
      }
    });
  });
}

// With s = sigmoid(gate): silu' = s · (1 + gate · (1 - s)).
inline void swiglu_backward(Pool& pool, const SwigluBackwardCall& c) {
  with_type(c.type, [&]<Type TYPE>() {
    pool.run(c.n, rows_at_once(c.F), [&](int64_t begin, int64_t end, int) {
      const F one = set1(1.0f);
      for (int64_t t = begin; t < end; t++) {
        const int64_t gate = 2 * t * c.F, up = gate + c.F;
        const F weight = set1(c.weights[t]);
        F dot = zero();
        each(c.F, LANES {
          const F g = read<TYPE>(c.h, gate + i, n), u = read<TYPE>(c.h, up + i, n);
          const F d = read<TYPE>(c.grad, t * c.F + i, n), wd = mul(weight, d);
          const F s = div(one, add(one, exp(sub(zero(), g)))), silu = mul(g, s), a = mul(silu, u);
          dot = fma(a, d, dot);
          const F slope = mul(s, fma(g, sub(one, s), one));
          write<TYPE>(c.grad_h, gate + i, n, mul(mul(wd, u), slope));
          write<TYPE>(c.grad_h, up + i, n, mul(wd, silu));
          write<TYPE>(c.grad, t * c.F + i, n, mul(weight, a));
        });
        c.grad_weights[t] = sum_lanes(dot);
      }
    });
  });
}

inline void combine(Pool& pool, const CombineCall& c) {
  with_type(c.type, [&]<Type TYPE>() {
    pool.run(c.T, rows_at_once(c.D), [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; t++) {
        const int64_t* places = c.places + t * c.S;
        each(c.D, LANES {
          F sum = zero();
          for (int64_t s = 0; s < c.S; s++) {
            if (places[s] < 0) continue;
            const F x = read<TYPE>(c.rows, places[s] * c.D + i, n);
            sum = c.weights ? fma(set1(c.weights[t * c.S + s]), x, sum) : add(sum, x);
          }
          write<TYPE>(c.out, t * c.D + i, n, sum);
        });
      }
    });
  });
}

}  // namespace coterie::COTERIE_ISA
