// Causal attention of training, forward: see training.h.
//
// Scores exist for a tile of queries and a block of keys only (arXiv 2205.14135); of a row the output and the logarithm
// of its sum are kept. The r = H/G query heads of a key head are rows of the same tiles: row i of a key head is query
// i / r, head i % r, so whatever r is, a tile looks at few keys more than its queries may see. Exponents are to the
// base 2: queries are multiplied by log2(e) once.
#pragma once

#include "training_tiles.h"

namespace coterie::COTERIE_ISA {

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

// 2^x for x <= 126; below -126 it is 0 with AVX-512 and 2^-126 elsewhere. The polynomial of least relative error for 2^r
// times a power of two, |r| <= 1/2, or 0 <= r < 1 with the same error. A NaN stays one.
template <int DEGREE>
INLINE F exp2(F x) {
#if defined(COTERIE_AVX512)
  constexpr float six[] = {1.0f,           0.693146984f,   0.240229836f,  0.055483342f,
                           0.009678841f,   0.00124396878f, 2.17022555e-4f};
  constexpr float four[] = {1.00000259f, 0.693003834f, 0.241442757f, 0.0520114606f, 0.0135341679f};
  const F n = x, r = _mm512_reduce_ps(x, 1);  // above the next whole number below, which is what `n` counts as
#else
  constexpr float six[] = {1.0f,           0.693147206f,   0.240226469f,  0.0555032878f,
                           0.00961848896f, 0.00133999312f, 1.53458116e-4f};
  constexpr float four[] = {0.999999261f, 0.693121815f, 0.240247448f, 0.0559178603f, 0.00957010143f};
  x = max(set1(-126.0f), x);
  const F n = round(x), r = sub(x, n);
#endif
  const float* c = DEGREE == 6 ? six : four;
  F p = set1(c[DEGREE]);
  for (int i = DEGREE - 1; i >= 0; i--) p = fma(p, r, set1(c[i]));
  return times_power_of_two(p, n);
}

// The numbers of the documents of some keys (null: all are one) and that of a query; nearer than 1/2: the same.
struct Documents {
  const float* theirs;
  float mine;
  INLINE F distance(int64_t k) const { return abs(sub(load(theirs + k), set1(mine))); }
};
INLINE F first_lanes(int n, F x, F rest) {
  alignas(64) static constexpr float places[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return n == W ? x : less_or(load(places), set1((float)n), x, rest);
}

// The largest of the scores that a query sees.
INLINE float largest_seen(const float* x, int64_t seen, const Documents& d) {
  const F lowest = set1(-std::numeric_limits<float>::max());
  F most = lowest, also = lowest;
  int64_t k = 0;
  for (; !d.theirs && k + 2 * W <= seen; k += 2 * W) most = max(most, load(x + k)), also = max(also, load(x + k + W));
  most = max(most, also);
  for (; k < seen; k += W) {
    F s = first_lanes((int)std::min<int64_t>(W, seen - k), load(x + k), lowest);
    if (d.theirs) s = less_or(d.distance(k), set1(0.5f), s, lowest);
    most = max(most, s);
  }
  return max_lanes(most);
}

// x becomes 2^(x - shift) for the keys that a query sees, 0 for the others of n_keys; returns their sum.
template <class M>
INLINE float exponents(float* x, int64_t seen, int64_t n_keys, float shift, const Documents& d) {
  F sum = zero();
  each(seen, LANES {
    F e = first_lanes(n, exp2<M::DEGREE>(sub(load(x + i), set1(shift))), zero());
    if (d.theirs) e = less_or_zero(d.distance(i), set1(0.5f), e);
    store(x + i, e);
    sum = add(sum, e);
  });
  fill_zero(x, round_up(seen, W), n_keys);
  return sum_lanes(sum);
}

// A tile of queries: rows first .. first + TILE_ROWS of a key head, `n_rows` of them there; the last is repeated.
template <class M>
struct QueryTile {
  static constexpr int64_t R = TILE_ROWS;
  static constexpr bool IS_WIDE = M::NUMBERS == 1;
  const CausalCall& c;
  const CausalSizes& z;
  const CausalPiece& piece;
  int64_t first, n_rows;
  alignas(64) typename M::Unit queries[R * WIDTH_STRIDE], rounded[IS_WIDE ? 1 : R * KEY_STRIDE / 2];
  alignas(64) float scores[R * KEY_STRIDE], out[R * WIDTH_STRIDE], most[R], sums[R], documents[KEY_STRIDE];

  QueryTile(const CausalCall& c, const CausalSizes& z, const CausalPiece& piece) : c(c), z(z), piece(piece) {}
  int64_t row(int64_t i) const { return first + std::min(i, n_rows - 1); }
  int64_t query(int64_t i) const { return row(i) / z.r; }
  int64_t head(int64_t i) const { return piece.g * z.r + row(i) % z.r; }
  int64_t last() const { return query(R - 1); }

  void start(int64_t at) {
    first = at, n_rows = std::min(R, piece.end * z.r - at);
    alignas(64) float line[WIDEST_HEAD];
    for (int64_t i = 0; i < R; i++) {
      read_head(c, z, piece.b * c.S + query(i), head(i), LOG2_E / std::sqrt((float)z.P), line);
      M::along(queries + i * WIDTH_STRIDE, line, z.padded);
      fill_zero(out + i * WIDTH_STRIDE, 0, z.padded);
      most[i] = -std::numeric_limits<float>::max(), sums[i] = 0;
    }
    for (int64_t i = first + R; i < std::min(first + 2 * R, piece.end * z.r); i++)
      prefetch(c.qkv, c.type, (piece.b * c.S + i / z.r) * z.width + (piece.g * z.r + i % z.r) * z.P, z.P);
  }

  // The scores of the keys key .. key + n become exponents; sums and outputs go on under a larger maximum.
  void softmax(int64_t key, int64_t n) {
    const float* all = c.documents ? c.documents + piece.b * c.S : nullptr;
    if (all) std::copy(all + key, all + key + n, documents);
    for (int64_t i = 0; i < R; i++) {
      const int64_t seen = std::max<int64_t>(0, std::min(n, query(i) + 1 - key)), n_columns = round_up(n, TILE_COLUMNS);
      float *x = scores + i * KEY_STRIDE, *sum_of_values = out + i * WIDTH_STRIDE;
      const Documents d{all ? documents : nullptr, all ? all[query(i)] : 0.0f};
      const float largest = std::max(most[i], largest_seen(x, seen, d));
      const float sum = exponents<M>(x, seen, n_columns, largest, d);
      if (key > 0) {
        alignas(64) float factor[W];
        store(factor, exp2<M::DEGREE>(set1(most[i] - largest)));
        sums[i] *= factor[0];
        for (int64_t j = 0; most[i] != largest && j < z.padded; j += W)
          store(sum_of_values + j, mul(load(sum_of_values + j), load(factor)));
      }
      sums[i] += sum, most[i] = largest;
      if constexpr (!IS_WIDE) M::along(rounded + i * KEY_STRIDE / 2, x, n_columns);
    }
  }

  void add_keys(int64_t key, const typename M::Unit* keys, const typename M::Unit* values) {
    const int64_t n = std::min(BLOCK_KEYS, last() + 1 - key);
    for (int64_t k = 0; k < n; k += TILE_COLUMNS)
      tile_product<M, WIDTH_STRIDE, 1, false>(queries, keys + (key + k) * z.units, TILE_COLUMNS, z.units, scores + k,
                                              KEY_STRIDE);
    softmax(key, n);
    for (int64_t j = 0; j < z.padded; j += TILE_COLUMNS) {
      const auto* v = values + key / M::NUMBERS * z.padded + j;
      if constexpr (IS_WIDE)
        tile_product<M, KEY_STRIDE, 1, true>(scores, v, z.padded, n, out + j, WIDTH_STRIDE);
      else
        tile_product<M, KEY_STRIDE / 2, 1, true>(rounded, v, z.padded, ceil_div(n, 2), out + j, WIDTH_STRIDE);
    }
  }

  void finish() {
    for (int64_t i = 0; i < n_rows; i++) {
      float* x = out + i * WIDTH_STRIDE;
      for (int64_t j = 0; j < z.padded; j += W) store(x + j, mul(load(x + j), set1(1.0f / sums[i])));
      from_floats(c.out, c.type, ((piece.b * c.S + query(i)) * c.H + head(i)) * z.P, x, z.P);
      c.logs[(piece.b * c.H + head(i)) * c.S + query(i)] = most[i] + std::log2(sums[i]);
    }
  }
};

template <class M>
void causal_forward_piece(Pool& pool, int thread, const CausalCall& c, const CausalSizes& z, const CausalPiece& piece) {
  const int64_t n_keys = round_up(piece.end, BLOCK_KEYS), of_keys = n_keys * z.units;
  const int64_t of_values = n_keys / M::NUMBERS * z.padded;
  auto* keys = (typename M::Unit*)pool.scratch(thread, OF_KEYS, (of_keys + of_values) * 4);
  lay_out<M>(c, z, piece.b, c.H + piece.g, piece.end, keys, nullptr);
  lay_out<M>(c, z, piece.b, c.H + c.G + piece.g, piece.end, nullptr, keys + of_keys);
  QueryTile<M> tile(c, z, piece);
  for (int64_t first = piece.begin * z.r; first < piece.end * z.r; first += TILE_ROWS) {
    tile.start(first);
    for (int64_t key = 0; key <= tile.last(); key += BLOCK_KEYS) tile.add_keys(key, keys, keys + of_keys);
    tile.finish();
  }
}

template <class M>
void causal_forward_as(Pool& pool, const CausalCall& c) {
  const CausalSizes z(c, M::NUMBERS);
  pool.run(c.B * c.G * z.n_parts, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; i++) causal_forward_piece<M>(pool, thread, c, z, CausalPiece(c, z, i));
  });
}

inline void causal_forward(Pool& pool, const CausalCall& c) {
#if defined(COTERIE_AVX512)
  if (c.type == Type::BF16 && use_bf16_instructions) return causal_forward_as<Bf16Math>(pool, c);
#endif
  causal_forward_as<FloatMath>(pool, c);
}

}  // namespace coterie::COTERIE_ISA
