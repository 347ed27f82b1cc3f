// SwiGLU and its gradient between products of bf16, as exact as bf16 shows: 2^x by a polynomial of degree 4 and a
// reciprocal of 14 bits, which together are off by a thirtieth of the last place that is kept.
#pragma once

#include "training_attention.h"
#include "training_products.h"

namespace coterie::COTERIE_ISA {

#if defined(COTERIE_AVX512)

INLINE F sigmoid_of_bf16(F x) {
  return _mm512_rcp14_ps(add(set1(1.0f), exp2<Bf16Math::DEGREE>(mul(x, set1(-LOG2_E)))));
}
INLINE F to_floats(__m256i numbers) { return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16); }
INLINE __m256i half(I numbers, int which) {
  return which ? _mm512_extracti64x4_epi64(numbers, 1) : _mm512_castsi512_si256(numbers);
}
// Of a vector all numbers, or those that are there: masks cost time.
template <bool IS_WHOLE>
INLINE F read_bf16(const uint16_t* x, __mmask16 there) {
  return to_floats(IS_WHOLE ? _mm256_loadu_si256((const __m256i*)x) : _mm256_maskz_loadu_epi16(there, x));
}
template <bool IS_WHOLE>
INLINE void write_bf16(uint16_t* x, __mmask16 there, __m256i numbers) {
  if constexpr (IS_WHOLE)
    _mm256_storeu_si256((__m256i*)x, numbers);
  else
    _mm256_mask_storeu_epi16(x, there, numbers);
}
// body.operator()<IS_WHOLE>(i, there) for the vectors of n numbers
template <class Body>
INLINE void each_vector(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + W <= n; i += W) body.template operator()<true>(i, (__mmask16)0xFFFF);
  if (i < n) body.template operator()<false>(i, lanes(n - i));
}

// Where a strip of columns of h goes, which nobody reads before the backward pass: a whole line of the cache past it.
INLINE void put_far(uint16_t* h, int64_t n, I numbers) {
  if (n >= 2 * W && (uintptr_t)h % 64 == 0)
    _mm512_stream_si512((__m512i*)h, numbers);
  else
    put_numbers(h, n, numbers);
}
// What becomes of the sums of a strip of columns: of the gate h, kept [rows][2W] for those of up, which make h and
// silu(gate) · up.
struct GateColumns {
  uint16_t *h, *kept;
  int64_t stride;
  GateColumns from(int64_t row, int64_t) const { return {h + row * stride, kept + row * 2 * W, stride}; }
  INLINE void put(int64_t r, int64_t n, F left, F right) const {
    const I gate = Bf16Math::rounded(left, right);
    _mm512_storeu_si512(kept + r * 2 * W, gate);
    put_far(h + r * stride, n, gate);
  }
};
struct UpColumns {
  uint16_t* h;
  const uint16_t* gates;
  int64_t stride;
  uint16_t* out;  // in panels: a strip of columns lies in one of them
  UpColumns from(int64_t row, int64_t) const {
    return {h + row * stride, gates + row * 2 * W, stride, out + 2 * row * Panels::ROW};
  }
  INLINE void put(int64_t r, int64_t n, F left, F right) const {
    const I gate = _mm512_loadu_si512(gates + r * 2 * W), up = Bf16Math::rounded(left, right);
    const auto gated = [&](int which) __attribute__((always_inline)) {
      const F g = to_floats(half(gate, which));
      return mul(mul(g, sigmoid_of_bf16(g)), to_floats(half(up, which)));
    };
    put_far(h + r * stride, n, up);
    put_numbers(out + 2 * r * Panels::ROW, n, Bf16Math::rounded(gated(0), gated(1)));
  }
};
static_assert(2 * Panels::PAIRS % Strips::COLUMNS == 0);

// Two rows of pairs (token, expert), and what their gradient is made of.
struct GateRows {
  const uint16_t* h[2];     // [2F]
  const uint16_t* grad[2];  // [F], of a = silu(gate) · up
  float weight[2];
  float dot[2];  // <a, grad>
};
struct GateGradient {
  F gate, up, weighted;  // of h; weight · a
};
template <bool IS_WHOLE>
INLINE GateGradient gate_backward(const GateRows& rows, int row, int64_t i, int64_t n, __mmask16 there, F& dot) {
  const F one = set1(1.0f), weight = set1(rows.weight[row]), g = read_bf16<IS_WHOLE>(rows.h[row] + i, there),
          u = read_bf16<IS_WHOLE>(rows.h[row] + n + i, there), d = read_bf16<IS_WHOLE>(rows.grad[row] + i, there),
          wd = mul(weight, d), s = sigmoid_of_bf16(g), silu = mul(g, s), a = mul(silu, u);
  dot = fma(a, d, dot);
  return {mul(mul(wd, u), mul(s, fma(g, sub(one, s), one))), mul(wd, silu), mul(weight, a)};
}

// Both rows at once, since in strips they are pairs: weight · a into strips of columns `a_strip` units apart, and the
// gradient of h as rows t and t + 1 of panels in two parts, gate and up, and as the pairs `pairs` [2F]. F columns; a
// strip's columns beyond them become zeros.
inline void gate_backward_rows(GateRows& rows, int64_t n, uint32_t* a, int64_t a_strip, const Panels& grad_h, int64_t t,
                               uint32_t* pairs) {
  const I order = _mm512_or_si512(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
      _mm512_slli_epi32(_mm512_setr_epi32(16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31), 16));
  F dots[2] = {zero(), zero()};
  const auto a_at = [&](int64_t i) { return a + i / Strips::COLUMNS * a_strip + i % Strips::COLUMNS; };
  each_vector(n, [&]<bool IS_WHOLE>(int64_t i, __mmask16 there) __attribute__((always_inline)) {
    const auto put = [&](I both, int part) __attribute__((always_inline)) {
      uint16_t* at = grad_h.at(t, i, part);
      write_bf16<IS_WHOLE>(at, there, half(both, 0));
      write_bf16<IS_WHOLE>(at + 2 * Panels::ROW, there, half(both, 1));
      const I ordered = _mm512_permutexvar_epi16(order, both);
      if constexpr (IS_WHOLE)
        _mm512_storeu_si512(pairs + part * n + i, ordered);
      else
        _mm512_mask_storeu_epi32(pairs + part * n + i, there, ordered);
    };
    for (int row = 0; row < 2 && i % (2 * W) == 0; row++) {
      __builtin_prefetch(rows.h[row] + 2 * 2 * n + i, 0, 2);  // of the next two rows
      __builtin_prefetch(rows.h[row] + 2 * 2 * n + n + i, 0, 2);
    }
    __builtin_prefetch(a_at(i) + 2 * Strips::COLUMNS, 1, 2);  // where the pair after the next goes
    const GateGradient first = gate_backward<IS_WHOLE>(rows, 0, i, n, there, dots[0]),
                       second = gate_backward<IS_WHOLE>(rows, 1, i, n, there, dots[1]);
    put(Bf16Math::rounded(first.gate, second.gate), 0);
    put(Bf16Math::rounded(first.up, second.up), 1);
    _mm512_storeu_si512(a_at(i), _mm512_permutexvar_epi16(order, Bf16Math::rounded(first.weighted, second.weighted)));
  });
  for (int64_t i = round_up(n, W); i < round_up(n, Strips::COLUMNS); i += W) _mm512_storeu_si512(a_at(i), (I)zero());
  for (int row = 0; row < 2; row++) rows.dot[row] = sum_lanes(dots[row]);
}

// Pairs [n][width] as strips of rows from `out` on, of strips `stride` units apart. What a vector writes beyond its
// strip's pair the next pair overwrites; the last one writes no more than its own.
inline void pairs_to_strips(const uint32_t* pairs, int64_t n, int64_t width, uint32_t* out, int64_t stride) {
  constexpr __mmask16 OWN = (1u << Strips::ROWS) - 1;
  for (int64_t f = 0; f < width; f += Strips::ROWS, out += stride) {
    for (int64_t i = n * Strips::ROWS; i < 2 * n * Strips::ROWS; i += W) __builtin_prefetch(out + i, 1, 2);  // the next n
    const __mmask16 there = lanes(std::min(Strips::ROWS, width - f));
    for (int64_t k = 0; k < n; k++) {
      const I units = _mm512_maskz_loadu_epi32(there, pairs + k * width + f);
      if (k + 1 < n)
        _mm512_storeu_si512(out + k * Strips::ROWS, units);
      else
        _mm512_mask_storeu_epi32(out + k * Strips::ROWS, OWN, units);
    }
  }
}

#endif

}  // namespace coterie::COTERIE_ISA
