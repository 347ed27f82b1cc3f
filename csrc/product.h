// The products of tiles with panels: acc[row][16 outputs] += tile · panel over a range of inputs.
//
// One template for packed weights: an unpacker gives the bytes of a span and the scales of its units, everything else
// is the same for every format. Sums within a unit are integers; then  acc = fma(sum, weight scale · row scale, acc),
// and with an offset  acc = fma(offset, row scale · sum of the row's bytes, acc),  unit after unit.
#pragma once

#include "tiles.h"

namespace coterie::COTERIE_ISA {

struct Planes {
  const uint8_t *p4, *p2, *p1;
};  // of one span

// The unsigned values of inputs 4·J .. 4·J + 3 for outputs c·W .. c·W + W - 1.
template <int BITS, int J>
INLINE B values(const Planes& p, int c) {
  const int column = c * W * 4;
  B v{};
  if constexpr (BITS == 8) {
    v = load_bytes(p.p4 + J * 64 + column);
  } else if constexpr (BITS >= 4) {
    v = field<(J < 4 ? 0 : 4), 15>(load_bytes(p.p4 + J % 4 * 64 + column));
  }
  if constexpr (BITS == 2 || BITS == 3 || BITS == 6) {
    const B two = field<J / 2 * 2, 3>(load_bytes(p.p2 + J % 2 * 64 + column));
    if constexpr (BITS == 6)
      v = join<4>(v, two);
    else
      v = two;
  }
  if constexpr (BITS == 3 || BITS == 5) v = join_bits<BITS - 1>(v, p.p1 + J * 8 + column / 8);
  return v;
}

struct UnitScales {
  F scale, offset;
};

template <Scales KIND>
INLINE UnitScales scales_of(const uint8_t* at, int unit, int group_shift, int c, F d, F dmin) {
  if constexpr (KIND == Scales::F16) {
    return {load_f16((const uint16_t*)(at + (unit >> group_shift) * 32) + c * W), zero()};
  } else if constexpr (KIND == Scales::F16_OFFSET) {
    const auto* pair = (const uint16_t*)(at + (unit >> group_shift) * 64) + c * W;
    return {load_f16(pair), load_f16(pair + 16)};
  } else if constexpr (KIND == Scales::SUPER) {
    return {mul(d, load_i8(at + unit * 16 + c * W)), zero()};
  } else if constexpr (KIND == Scales::SUPER_MIN) {
    const uint8_t* both = at + unit * 32 + c * W;
    return {mul(d, load_u8(both)), sub(zero(), mul(dmin, load_u8(both + 16)))};
  } else {
    uint8_t low[W], high[W];
    for (int i = 0; i < W; i++) low[i] = at[unit * 16 + c * W + i] & 15, high[i] = at[unit * 16 + c * W + i] >> 4;
    return {mul(d, load_u8(low)), sub(zero(), mul(dmin, load_u8(high)))};
  }
}

// `panels`: P panels, `stride` bytes apart, from a block on; `x`: the tile's records from the same input on.
// acc [R][P·16] with `acc_stride` floats between rows.
template <int BITS, int UNIT, Scales KIND, int R, int P>
void int_product(const Format& f, const uint8_t* panels, int64_t stride, int64_t n_inputs, const uint8_t* x, float* acc,
                 int64_t acc_stride) {
  constexpr int N_UNITS = 32 / UNIT, PARTS = (int)PANEL / W;
  constexpr bool IS_WIDE = BITS == 8;  // the row's numbers are two bytes
  constexpr int BYTES = IS_WIDE ? 64 : 32;
  constexpr int64_t RECORD = R * (BYTES + 4 + 8 * N_UNITS);
  constexpr bool IS_SUPER = KIND >= Scales::SUPER, OFFSET = KIND != Scales::F16 && KIND != Scales::SUPER;
  const BlockLayout whole(f, BLOCK);
  const int group_shift = f.group_units - 1;
  for (int c = 0; c < PARTS; c++) {
    F sums[P][R];
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<P>([&](auto p)
                    __attribute__((always_inline)) { sums[p][r] = load(acc + r * acc_stride + p * PANEL + c * W); });
    });
    const uint8_t* block = panels;
    const uint8_t* record = x;
    for (int64_t left = n_inputs; left > 0; left -= BLOCK) {
      const BlockLayout at = left >= BLOCK ? whole : BlockLayout(f, left);
      const int n_spans = (int)((left < BLOCK ? left : BLOCK) / SPAN);
      F d[P], dmin[P];
      unroll<P>([&](auto p) __attribute__((always_inline)) {
        d[p] = IS_SUPER ? load_f16((const uint16_t*)(block + p * stride) + c * W) : zero();
        dmin[p] = IS_SUPER ? load_f16((const uint16_t*)(block + p * stride) + 16 + c * W) : zero();
      });
      for (int s = 0; s < n_spans; s++, record += RECORD) {
        if constexpr (R * P <= 8 && W == 16) {  // few rows: the weights come from memory
          const uint8_t* ahead = block + s * (16 * SPAN * BITS / 8 + 32) + 4096;
          for (int line = 0; line < 16 * SPAN * BITS / 8 + 32; line += 64) __builtin_prefetch(ahead + line);
        }
        if constexpr (R == INT_ROWS && W == 16) {  // many rows: these come from the second-level cache
          for (int64_t line = 0; line < RECORD + 63; line += 64) __builtin_prefetch(record + 1024 + line);
        }
        const uint8_t* values_at = block;
        const auto* row_scales = (const float*)(record + BYTES * R);
        const auto* row_sums = (const int32_t*)(record + (BYTES + 4) * R);
        const auto* scaled_sums = (const float*)(record + (BYTES + 4) * R + 4 * R * N_UNITS);
        unroll<N_UNITS>([&](auto unit) __attribute__((always_inline)) {
          constexpr int U = unit;
          I dots[P][R], high[P][R];
          unroll<R>([&](auto r) __attribute__((always_inline)) {
            const I first =
                OFFSET || (BITS == 8 && TAKES_SIGNED_BYTES) ? int_zero() : start<BITS - 1>(row_sums + U * R + r);
            unroll<P>([&](auto p) __attribute__((always_inline)) { dots[p][r] = first, high[p][r] = int_zero(); });
          });
          unroll<8 / N_UNITS>([&](auto step) __attribute__((always_inline)) {
            // with nibbles the lower and the upper half of a byte one after the other: one load serves both
            constexpr int J = N_UNITS == 1 ? step % 2 * 4 + step / 2 : U * 4 + step;
            B w[P];
            unroll<P>([&](auto p) __attribute__((always_inline)) {
              const uint8_t* b = values_at + p * stride;
              const Planes planes = {b + at.plane4 + s * (BITS == 8 ? 512 : 256), b + at.plane2 + s * 128,
                                     b + at.plane1 + s * 64};
              w[p] = values<BITS, J>(planes, c);
            });
            unroll<R>([&](auto r) __attribute__((always_inline)) {
              const auto* four = (const int8_t*)record + (J * R + r) * 4;
              unroll<P>([&](auto p) __attribute__((always_inline)) {
                if constexpr (IS_WIDE) high[p][r] = dot<BITS>(high[p][r], w[p], four);
                dots[p][r] = dot<BITS>(dots[p][r], w[p], four + (IS_WIDE ? 32 * R : 0));
              });
            });
          });
          unroll<P>([&](auto p) __attribute__((always_inline)) {
            const UnitScales scales =
                scales_of<KIND>(block + p * stride + at.scales, s * N_UNITS + U, group_shift, c, d[p], dmin[p]);
            unroll<R>([&](auto r) __attribute__((always_inline)) {
              if constexpr (IS_WIDE) dots[p][r] = add_255_times(dots[p][r], high[p][r]);
              sums[p][r] = fma(to_float(dots[p][r]), mul(scales.scale, set1(row_scales[r])), sums[p][r]);
              if constexpr (OFFSET) sums[p][r] = fma(scales.offset, set1(scaled_sums[U * R + r]), sums[p][r]);
            });
          });
        });
      }
      block += at.bytes;
    }
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      unroll<P>([&](auto p)
                    __attribute__((always_inline)) { store(acc + r * acc_stride + p * PANEL + c * W, sums[p][r]); });
    });
  }
}

// Plain weights, made a panel of P·16 outputs: f32 [n][P·16].
template <int R, int P>
void float_product(const float* panel, int64_t n, const uint8_t* x, float* acc, int64_t acc_stride) {
  constexpr int PARTS = (int)PANEL * P / W, GROUP = P < PARTS ? P : PARTS;
  for (int c = 0; c < PARTS; c += GROUP) {
    F sums[R][GROUP];
    for (int r = 0; r < R; r++)
      for (int g = 0; g < GROUP; g++) sums[r][g] = load(acc + r * acc_stride + (c + g) * W);
    const auto* row = (const float*)x;
    for (int64_t k = 0; k < n; k++, row += R) {
      F w[GROUP];
      for (int g = 0; g < GROUP; g++) w[g] = load(panel + k * PANEL * P + (c + g) * W);
      for (int r = 0; r < R; r++) {
        const F all = set1(row[r]);
        for (int g = 0; g < GROUP; g++) sums[r][g] = fma(w[g], all, sums[r][g]);
      }
    }
    for (int r = 0; r < R; r++)
      for (int g = 0; g < GROUP; g++) store(acc + r * acc_stride + (c + g) * W, sums[r][g]);
  }
}

#if defined(COTERIE_AVX512)
// The same in pairs: bf16 [n/2][P·16][2]; the instruction rounds neither product and flushes denormals.
template <int R, int P>
__attribute__((target("avx512bf16"))) void bf16_product(const uint32_t* panel, int64_t n_pairs, const uint8_t* x,
                                                        float* acc, int64_t acc_stride) {
  F sums[R][P];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) sums[r][p] = load(acc + r * acc_stride + p * PANEL);
  const auto* row = (const uint32_t*)x;
  for (int64_t k = 0; k < n_pairs; k++, row += R) {
    __m512bh w[P];
    for (int p = 0; p < P; p++) w[p] = (__m512bh)_mm512_loadu_si512(panel + k * PANEL * P + p * PANEL);
    for (int r = 0; r < R; r++) {
      const __m512bh all = (__m512bh)_mm512_set1_epi32((int)row[r]);
      for (int p = 0; p < P; p++) sums[r][p] = _mm512_dpbf16_ps(sums[r][p], w[p], all);
    }
  }
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) store(acc + r * acc_stride + p * PANEL, sums[r][p]);
}
#endif

}  // namespace coterie::COTERIE_ISA
