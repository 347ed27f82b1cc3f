// acc += tiles · panels of any matrix: chooses the product, goes through the inputs in pieces that stay in the cache.
#pragma once

#include "product.h"
#include "threads.h"

namespace coterie::COTERIE_ISA {

using IntProduct = void (*)(const Format&, const uint8_t*, int64_t, int64_t, const uint8_t*, float*, int64_t);
using FloatProduct = void (*)(const float*, int64_t, const uint8_t*, float*, int64_t);

enum ScratchKind { TILES = 0, TILES_BETWEEN = 1, SUMS = 2, PANELS = 3, ROW = 4, OUTPUTS = 5, LISTS = 6, KEYS = 7 };

struct IntProducts {  // by rows of a tile, less 1; two panels together only for full tiles
  IntProduct one[INT_ROWS], together;
};

template <int BITS, int UNIT, Scales KIND, int... R>
INLINE const IntProducts& int_products_of(std::integer_sequence<int, R...>) {
  static constexpr IntProducts table = {{int_product<BITS, UNIT, KIND, R + 1, 1>...},
                                        int_product < BITS,
                                        UNIT,
                                        KIND,
                                        INT_ROWS,
                                        BITS == 8 ? 1 : TOGETHER > };
  return table;
}

inline const IntProducts& int_products_of(const Format& f) {
  constexpr auto all = std::make_integer_sequence<int, INT_ROWS>{};
  switch (f.bits * 8 + (int)f.scales) {
    case 64:
      return int_products_of<8, 32, Scales::F16>(all);
    case 48:
      return int_products_of<6, 32, Scales::F16>(all);
    case 49:
      return int_products_of<6, 32, Scales::F16_OFFSET>(all);
    case 50:
      return int_products_of<6, 16, Scales::SUPER>(all);
    case 40:
      return int_products_of<5, 32, Scales::F16>(all);
    case 41:
      return int_products_of<5, 32, Scales::F16_OFFSET>(all);
    case 43:
      return int_products_of<5, 32, Scales::SUPER_MIN>(all);
    case 32:
      return int_products_of<4, 32, Scales::F16>(all);
    case 33:
      return int_products_of<4, 32, Scales::F16_OFFSET>(all);
    case 35:
      return int_products_of<4, 32, Scales::SUPER_MIN>(all);
    case 24:
      return int_products_of<3, 32, Scales::F16>(all);
    case 25:
      return int_products_of<3, 32, Scales::F16_OFFSET>(all);
    case 26:
      return int_products_of<3, 16, Scales::SUPER>(all);
    default:
      return int_products_of<2, 16, Scales::SUPER_NIBBLE>(all);
  }
}

template <int P, int... R>
INLINE FloatProduct float_product_of(int rows, std::integer_sequence<int, R...>) {
  static constexpr FloatProduct table[] = {float_product<R + 1, P>...};
  return table[rows - 1];
}

#if defined(COTERIE_AVX512)
using Bf16Product = void (*)(const uint32_t*, int64_t, const uint8_t*, float*, int64_t);
template <int P, int... R>
INLINE Bf16Product bf16_product_of(int rows, std::integer_sequence<int, R...>) {
  static constexpr Bf16Product table[] = {bf16_product<R + 1, P>...};
  return table[rows - 1];
}
#endif

inline int64_t n_panels(const Matrix& m) { return m.half ? 2 * ceil_div(m.half, PANEL) : ceil_div(m.N, PANEL); }

// The row pointers of a plain panel; null where the panel has no more rows.
inline void plain_rows(const Matrix& m, int64_t panel, int64_t row_bytes, const uint8_t* rows[PANEL]) {
  const int64_t first = m.half ? panel / 2 * PANEL : panel * PANEL, end = m.half ? m.half : m.N;
  const uint8_t* base = m.half && panel % 2 ? m.up : m.data;
  for (int64_t i = 0; i < PANEL; i++) rows[i] = first + i < end ? base + (first + i) * row_bytes : nullptr;
}

// out[k][stride] = rows[0..15][k], 16 numbers of 32 bits from each row
INLINE void transpose(const uint32_t* const rows[PANEL], uint32_t* out, int64_t stride) {
#if defined(COTERIE_AVX512)
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(rows[i]);
  for (int i = 0; i < 8; i++) {
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 2; j++) {
      a[4 * i + 2 * j] = _mm512_unpacklo_epi64(b[4 * i + j], b[4 * i + 2 + j]);
      a[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(b[4 * i + j], b[4 * i + 2 + j]);
    }
  for (int j = 0; j < 4; j++) {  // a[4i + j]: lane l holds column 4l + j of rows 4i .. 4i + 3
    const __m512i lo0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88), hi0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xDD);
    const __m512i lo1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88),
                  hi1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xDD);
    _mm512_storeu_si512(out + j * stride, _mm512_shuffle_i32x4(lo0, lo1, 0x88));
    _mm512_storeu_si512(out + (4 + j) * stride, _mm512_shuffle_i32x4(hi0, hi1, 0x88));
    _mm512_storeu_si512(out + (8 + j) * stride, _mm512_shuffle_i32x4(lo0, lo1, 0xDD));
    _mm512_storeu_si512(out + (12 + j) * stride, _mm512_shuffle_i32x4(hi0, hi1, 0xDD));
  }
#else
  for (int k = 0; k < 16; k++)
    for (int i = 0; i < 16; i++) out[k * stride + i] = rows[i][k];
#endif
}

// Inputs k .. k + n of a plain panel (n a multiple of 32, zeros beyond K) as f32 [n][stride] or, `pairs`, bf16
// [n/2][stride][2].
inline void gather_panel(const Matrix& m, int64_t panel, int64_t k, int64_t n, bool pairs, uint32_t* out,
                         int64_t stride) {
  const Type type = m.layout == Layout::ROWS_F32 ? Type::F32 : m.layout == Layout::ROWS_F16 ? Type::F16 : Type::BF16;
  const uint8_t* rows[PANEL];
  plain_rows(m, panel, m.K * size_of(type), rows);
  const int64_t step = pairs ? 32 : 16;  // inputs of 16 numbers of 32 bits
  alignas(64) static thread_local uint32_t copies[PANEL][16];
  for (int64_t at = 0; at < n; at += step) {
    const uint32_t* sources[PANEL];
    const int64_t there = m.K - k - at < step ? (m.K - k - at > 0 ? m.K - k - at : 0) : step;
    for (int i = 0; i < PANEL; i++) {
      const bool is_direct = rows[i] && there == step && (pairs || type == Type::F32);
      sources[i] = is_direct ? (const uint32_t*)(rows[i] + (k + at) * size_of(type)) : copies[i];
      if (is_direct) continue;
      std::memset(copies[i], 0, 64);
      if (!rows[i] || there == 0) continue;
      if (pairs)
        std::memcpy(copies[i], rows[i] + (k + at) * 2, (size_t)there * 2);
      else
        to_floats((float*)copies[i], rows[i], type, k + at, there);
    }
    transpose(sources, out + (pairs ? at / 2 : at) * stride, stride);
  }
}

// acc [n_rows][n·16] += tiles · panels first .. first + n of m.
inline void multiply(Pool& pool, int thread, const Matrix& m, int64_t first, int64_t n, const Tiles& x, float* acc) {
  const int64_t stride = n * PANEL, n_tiles = x.count();
  if (is_int(x.kind)) {
    const IntProducts& products = int_products_of(m.format);
    const int64_t whole = n_tiles > 2 ? 1024 : m.K;
    const int64_t panel_size = panel_bytes(m.format, m.K), block_size = BlockLayout(m.format, BLOCK).bytes;
    for (int64_t k = 0; k < m.K; k += whole) {
      const int64_t inputs = m.K - k < whole ? m.K - k : whole;
      for (int64_t p = 0; p < n; p += TOGETHER) {
        const int together = (int)(n - p < TOGETHER ? n - p : TOGETHER);
        const uint8_t* panel = m.data + (first + p) * panel_size + k / BLOCK * block_size;
        int64_t panel_stride = panel_size;
        if (m.layout == Layout::GGML) {
          panel_stride = ceil_div(inputs, BLOCK) * block_size;
          uint8_t* made = pool.scratch(thread, PANELS, panel_stride * together + 64);
          for (int i = 0; i < together; i++)
            for (int64_t b = 0; b < inputs; b += BLOCK)
              repack_block(m, first + p + i, k + b, inputs - b < BLOCK ? inputs - b : BLOCK,
                           made + i * panel_stride + b / BLOCK * block_size);
          panel = made;
        }
        for (int64_t t = 0; t < n_tiles; t++) {
          const int R = x.rows(t);
          float* out = acc + t * x.most() * stride + p * PANEL;
          const uint8_t* rows = x.span(t, k / SPAN);
          if (R == INT_ROWS && together == TOGETHER && m.format.bits < 8) {
            products.together(m.format, panel, panel_stride, inputs, rows, out, stride);
            continue;
          }
          for (int i = 0; i < together; i++)
            products.one[R - 1](m.format, panel + i * panel_stride, panel_stride, inputs, rows, out + i * PANEL,
                                stride);
        }
      }
    }
    return;
  }
  const bool pairs = x.kind == Kind::BF16_PAIRS;
  const int64_t whole = pairs ? 512 : 256, K = ceil_div(m.K, SPAN) * SPAN;
  auto* panel = (uint32_t*)pool.scratch(thread, PANELS, whole * PANEL * 2 * 4);
  for (int64_t k = 0; k < K; k += whole) {
    const int64_t inputs = K - k < whole ? K - k : whole;
    for (int64_t p = 0; p < n; p += 2) {
      const int together = (int)(n - p < 2 ? n - p : 2);
      for (int i = 0; i < together; i++)
        gather_panel(m, first + p + i, k, inputs, pairs, panel + i * PANEL, together * PANEL);
      for (int64_t t = 0; t < n_tiles; t++) {
        constexpr auto all = std::make_integer_sequence<int, FLOAT_ROWS>{};
        float* out = acc + t * x.most() * stride + p * PANEL;
        const uint8_t* rows = x.span(t, k / SPAN);
#if defined(COTERIE_AVX512)
        if (pairs) {
          (together == 2 ? bf16_product_of<2>(x.rows(t), all) : bf16_product_of<1>(x.rows(t), all))(panel, inputs / 2,
                                                                                                    rows, out, stride);
          continue;
        }
#endif
        (together == 2 ? float_product_of<2>(x.rows(t), all) : float_product_of<1>(x.rows(t), all))(
            (const float*)panel, inputs, rows, out, stride);
      }
    }
  }
}

}  // namespace coterie::COTERIE_ISA
