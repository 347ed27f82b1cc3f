// The sparse block and attention of training, between their matrix products: see training.h.
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

inline void heads(Pool& pool, const HeadsCall& c) {
  with_type(c.type, [&]<Type TYPE>() {
    pool.run(c.B * c.S, rows_at_once(c.n * c.P), [&](int64_t begin, int64_t end, int thread) {
      const int64_t half = c.P / 2;
      auto* x = (float*)pool.scratch(thread, WIDE_ROW, 2 * (c.P + W) * 4);
      float* other = x + c.P + W;
      for (int64_t t = begin; t < end; t++)
        for (int64_t h = 0; h < c.n; h++) {
          const int64_t row = t * c.row_width + h * c.P, head = ((t / c.S * c.n + h) * c.S + t % c.S) * c.P;
          const void* from = c.is_back ? c.heads : c.rows;
          void* to = c.is_back ? c.rows : c.heads;
          const int64_t from_at = c.is_back ? head : row, to_at = c.is_back ? row : head;
          const F scale = set1(c.scale);
          if (!c.cos) {
            each(c.P, LANES { write<TYPE>(to, to_at + i, n, mul(read<TYPE>(from, from_at + i, n), scale)); });
            continue;
          }
          const float *cos = c.cos + t * c.P, *sin = c.sin + t * c.P;
          each(c.P, LANES {
            const F v = read<TYPE>(from, from_at + i, n);
            write<Type::F32>(x, i, n, v);
            write<Type::F32>(other, i, n, c.is_back ? mul(v, read<Type::F32>(sin, i, n)) : v);
          });
          std::swap_ranges(other, other + half, other + half);
          each(c.P, LANES {
            const F turned = read<Type::F32>(other, i, n), straight = read<Type::F32>(x, i, n);
            const F sum = fma(straight, read<Type::F32>(cos, i, n),
                              c.is_back ? turned : mul(turned, read<Type::F32>(sin, i, n)));
            write<TYPE>(to, to_at + i, n, mul(sum, scale));
          });
        }
    });
  });
}

inline void softmax(Pool& pool, const SoftmaxCall& c) {
  with_type(c.type, [&]<Type TYPE>() {
    const int64_t n_rows = c.N * c.r * c.n;
    pool.run(n_rows, rows_at_once(c.C), [&](int64_t begin, int64_t end, int thread) {
      auto* row = (float*)pool.scratch(thread, WIDE_ROW, (c.C + W) * 4);
      const F lowest = set1(-std::numeric_limits<float>::infinity()), half = set1(0.5f);
      for (int64_t t = begin; t < end; t++) {
        const int64_t at = t * c.C, last = c.C - c.n + t % c.n, size = last + 1;
        const float* documents = c.documents ? c.documents + t * c.B / n_rows * c.document_stride : nullptr;
        const F mine = documents ? set1(documents[last]) : zero();
        F most = lowest;
        each(size, LANES {
          F x = read<TYPE>(c.scores, at + i, n);
          if (documents) x = less_or(abs(sub(read<Type::F32>(documents, i, n), mine)), half, x, lowest);
          write<Type::F32>(row, i, n, x);
          if (n == W) most = max(most, x);
        });
        float largest = max_lanes(most);
        for (int64_t i = size / W * W; i < size; i++) largest = std::max(largest, row[i]);
        const F shift = set1(largest);
        F sum = zero();
        each(size, LANES {
          const F x = read<Type::F32>(row, i, n);
          F e = exp(sub(x, shift));
          if (documents) e = less_or_zero(lowest, x, e);
          write<Type::F32>(row, i, n, e);
          sum = add(sum, n == W ? e : read<Type::F32>(row, i, n));
        });
        const F factor = set1(1.0f / sum_lanes(sum));
        each(size, LANES { write<TYPE>(c.scores, at + i, n, mul(read<Type::F32>(row, i, n), factor)); });
        each(c.C - size, LANES { write<TYPE>(c.scores, at + size + i, n, zero()); });
      }
    });
  });
}

inline void softmax_backward(Pool& pool, const SoftmaxBackwardCall& c) {
  with_type(c.type, [&]<Type TYPE>() {
    pool.run(c.N * c.r * c.n, rows_at_once(c.C), [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; t++) {
        const int64_t at = t * c.C, size = c.C - c.n + t % c.n + 1;
        F dot = zero();
        each(size, LANES {
          dot = fma(read<TYPE>(c.probabilities, at + i, n), read<TYPE>(c.grad, at + i, n), dot);
        });
        const F mean = set1(sum_lanes(dot));
        each(size, LANES {
          const F g = sub(read<TYPE>(c.grad, at + i, n), mean);
          write<TYPE>(c.grad, at + i, n, mul(read<TYPE>(c.probabilities, at + i, n), g));
        });
        each(c.C - size, LANES { write<TYPE>(c.grad, at + size + i, n, zero()); });
      }
    });
  });
}

}  // namespace coterie::COTERIE_ISA
