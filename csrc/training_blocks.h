// The sparse block of training, between its matrix products: see training.h.
#pragma once

#include "training_rows.h"

namespace coterie::COTERIE_ISA {

// out [F] = silu(gate) · up of h [2F].
template <Type TYPE>
INLINE void swiglu_row(const void* h, int64_t F_, void* out) {
  each(F_, LANES { write<TYPE>(out, i, n, mul(silu(read<TYPE>(h, i, n)), read<TYPE>(h, F_ + i, n))); });
}

// From h [2F] and the gradient of a = silu(gate) · up before the pair's weight: that of h; `grad` becomes weight · a.
// Returns <a, grad>. With s = sigmoid(gate): silu' = s · (1 + gate · (1 - s)).
template <Type TYPE>
INLINE float swiglu_backward_row(const void* h, int64_t F_, float pair_weight, void* grad, void* grad_h) {
  const F one = set1(1.0f), weight = set1(pair_weight);
  F dot = zero();
  each(F_, LANES {
    const F g = read<TYPE>(h, i, n), u = read<TYPE>(h, F_ + i, n), d = read<TYPE>(grad, i, n), wd = mul(weight, d);
    const F s = div(one, add(one, exp(sub(zero(), g)))), silu = mul(g, s), a = mul(silu, u);
    dot = fma(a, d, dot);
    const F slope = mul(s, fma(g, sub(one, s), one));
    write<TYPE>(grad_h, i, n, mul(mul(wd, u), slope));
    write<TYPE>(grad_h, F_ + i, n, mul(wd, silu));
    write<TYPE>(grad, i, n, mul(weight, a));
  });
  return sum_lanes(dot);
}

inline void swiglu_forward(Pool& pool, const SwigluForwardCall& c) {
  with_type(c.type, [&]<Type TYPE>() {
    using Number = typename Stored<TYPE>::Number;
    pool.run(c.n, rows_at_once(c.F), [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; t++)
        swiglu_row<TYPE>((const Number*)c.h + 2 * t * c.F, c.F, (Number*)c.out + t * c.F);
    });
  });
}

inline void swiglu_backward(Pool& pool, const SwigluBackwardCall& c) {
  with_type(c.type, [&]<Type TYPE>() {
    using Number = typename Stored<TYPE>::Number;
    pool.run(c.n, rows_at_once(c.F), [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; t++)
        c.grad_weights[t] =
            swiglu_backward_row<TYPE>((const Number*)c.h + 2 * t * c.F, c.F, c.weights[t], (Number*)c.grad + t * c.F,
                                      (Number*)c.grad_h + 2 * t * c.F);
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
