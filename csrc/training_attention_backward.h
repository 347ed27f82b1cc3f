// Causal attention of training, backward: see training.h and training_attention.h.
//
// With p the probabilities, computed again from the kept logarithms, and grad that of the output (arXiv 2205.14135):
//   dv = pᵀ · grad,  ds = p (grad · vᵀ - <grad, out>),  dq = ds · k,  dk = dsᵀ · q
// for a block of rows and a block of keys at a time; dk and dv of all heads that share a key are summed in place.
#pragma once

#include "training_attention.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t BLOCK_ROWS = 96;
static_assert(BLOCK_ROWS % TILE_ROWS == 0 && TILE_ROWS % 2 == 0);

// What a block of rows needs: queries and gradients of the output, along the head's width and across rows.
template <class M>
struct RowBlock {
  using Unit = typename M::Unit;
  Unit queries[BLOCK_ROWS * WIDTH_STRIDE], grads[BLOCK_ROWS * WIDTH_STRIDE];  // [row][units of P]
  Unit queries_across[M::NUMBERS == 1 ? 1 : BLOCK_ROWS / 2 * WIDTH_STRIDE];   // [units of rows][P]
  Unit grads_across[M::NUMBERS == 1 ? 1 : BLOCK_ROWS / 2 * WIDTH_STRIDE];
  float logs[BLOCK_ROWS], dots[BLOCK_ROWS];
  float grad_queries[BLOCK_ROWS * WIDTH_STRIDE];
  static constexpr int64_t N_FLOATS = (M::NUMBERS == 1 ? BLOCK_ROWS : TILE_ROWS) * KEY_STRIDE;  // of all rows or a tile
  float p[N_FLOATS], ds[N_FLOATS];
  Unit p_across[M::NUMBERS == 1 ? 1 : BLOCK_ROWS / 2 * KEY_STRIDE];
  Unit ds_across[M::NUMBERS == 1 ? 1 : BLOCK_ROWS / 2 * KEY_STRIDE];
  Unit ds_along[M::NUMBERS == 1 ? 1 : BLOCK_ROWS * KEY_STRIDE / 2];
  float documents[KEY_STRIDE];
};

// Of the keys and values of a piece, laid out for products, and the sums of their gradients.
template <class M>
struct KeyBlocks {
  using Unit = typename M::Unit;
  Unit *keys, *values;  // by column
  Unit* keys_by_row;
  float *grad_keys, *grad_values;  // [n_keys][padded]
};

// Queries, outputs and their gradients of the block that comes next.
inline void prefetch_rows(const CausalCall& c, const CausalSizes& z, const CausalPiece& piece, int64_t first) {
  for (int64_t row = first; row < std::min(first + BLOCK_ROWS, piece.end * z.r); row++) {
    const int64_t head = piece.g * z.r + row % z.r, t = piece.b * c.S + row / z.r;
    prefetch(c.qkv, c.type, t * z.width + head * z.P, z.P);
    prefetch(c.out, c.type, (t * c.H + head) * z.P, z.P);
    prefetch(c.grad, c.type, (t * c.H + head) * z.P, z.P);
  }
}

template <class M>
void read_rows(const CausalCall& c, const CausalSizes& z, const CausalPiece& piece, int64_t first, RowBlock<M>& rows) {
  alignas(64) float lines[2][WIDEST_HEAD], grads[2][WIDEST_HEAD], out[WIDEST_HEAD];
  const float scale = LOG2_E / std::sqrt((float)z.P);
  for (int64_t i = 0; i < BLOCK_ROWS; i++) {
    float *line = lines[i % M::NUMBERS], *grad = grads[i % M::NUMBERS];
    fill_zero(grad, 0, z.padded);
    fill_zero(out, 0, z.padded);
    if (const int64_t row = first + i; row < piece.end * z.r) {
      const int64_t query = row / z.r, head = piece.g * z.r + row % z.r, t = piece.b * c.S + query;
      read_head(c, z, t, head, scale, line);
      to_floats(grad, c.grad, c.type, (t * c.H + head) * z.P, z.P);
      to_floats(out, c.out, c.type, (t * c.H + head) * z.P, z.P);
      rows.logs[i] = c.logs[(piece.b * c.H + head) * c.S + query];
    } else {
      fill_zero(line, 0, z.padded);
      rows.logs[i] = 0;
    }
    F dot = zero();
    for (int64_t j = 0; j < z.padded; j += W) dot = fma(load(grad + j), load(out + j), dot);
    rows.dots[i] = sum_lanes(dot);
    fill_zero(rows.grad_queries + i * WIDTH_STRIDE, 0, z.padded);
    M::along(rows.queries + i * WIDTH_STRIDE, line, z.padded);
    M::along(rows.grads + i * WIDTH_STRIDE, grad, z.padded);
    if (M::NUMBERS > 1 && i % 2 == 1) {
      M::across(rows.queries_across + i / 2 * WIDTH_STRIDE, lines[0], lines[1], z.padded);
      M::across(rows.grads_across + i / 2 * WIDTH_STRIDE, grads[0], grads[1], z.padded);
    }
  }
}

// p and ds of one row and n_keys keys, of which it sees the first `seen`, from scores and grad · vᵀ.
template <class M>
INLINE void score_gradients(float* p, float* ds, int64_t seen, int64_t n_keys, float log, float dot,
                            const Documents& d) {
  each(seen, LANES {
    F e = exp2<M::DEGREE>(sub(load(p + i), set1(log))), g = mul(e, sub(load(ds + i), set1(dot)));
    e = first_lanes(n, e, zero()), g = first_lanes(n, g, zero());
    if (d.theirs) {
      const F distance = d.distance(i);
      e = less_or_zero(distance, set1(0.5f), e), g = less_or_zero(distance, set1(0.5f), g);
    }
    store(p + i, e);
    store(ds + i, g);
  });
  fill_zero(p, round_up(seen, W), n_keys);
  fill_zero(ds, round_up(seen, W), n_keys);
}

// Rows first .. first + BLOCK_ROWS of a key head, `n_rows` of them there, beside the keys key .. key + n_keys.
struct Block {
  int64_t first, n_rows, key, n_keys;
};

// p, ds and the gradient of the queries of one tile of rows of a block.
template <class M>
void tile_gradients(const CausalCall& c, const CausalSizes& z, const CausalPiece& piece, const Block& at, int64_t tile,
                    RowBlock<M>& rows, const KeyBlocks<M>& there) {
  constexpr bool IS_WIDE = M::NUMBERS == 1;
  const float* documents = c.documents ? c.documents + piece.b * c.S : nullptr;
  const int64_t last = (at.first + std::min(tile + TILE_ROWS, at.n_rows) - 1) / z.r;
  const int64_t n = tile < at.n_rows ? std::max<int64_t>(0, std::min(at.n_keys, last + 1 - at.key)) : 0;
  float *p = rows.p + (IS_WIDE ? tile * KEY_STRIDE : 0), *ds = rows.ds + (IS_WIDE ? tile * KEY_STRIDE : 0);
  for (int64_t k = 0; k < n; k += TILE_COLUMNS) {
    const int64_t from = tile * WIDTH_STRIDE, to = (at.key + k) * z.units;
    tile_product<M, WIDTH_STRIDE, 1, false>(rows.queries + from, there.keys + to, TILE_COLUMNS, z.units, p + k,
                                            KEY_STRIDE);
    tile_product<M, WIDTH_STRIDE, 1, false>(rows.grads + from, there.values + to, TILE_COLUMNS, z.units, ds + k,
                                            KEY_STRIDE);
  }
  const int64_t n_columns = round_up(round_up(at.n_keys, TILE_ROWS), TILE_COLUMNS);
  for (int64_t i = 0; i < TILE_ROWS; i++) {
    const int64_t row = tile + i, query = (at.first + row) / z.r;
    const int64_t seen = row < at.n_rows ? std::max<int64_t>(0, std::min(n, query + 1 - at.key)) : 0;
    const Documents d{documents ? rows.documents : nullptr, documents && seen ? documents[query] : 0.0f};
    float *p1 = p + i * KEY_STRIDE, *ds1 = ds + i * KEY_STRIDE;
    score_gradients<M>(p1, ds1, seen, n_columns, rows.logs[row], rows.dots[row], d);
    if constexpr (!IS_WIDE) {
      M::along(rows.ds_along + row * KEY_STRIDE / 2, ds1, round_up(n, TILE_COLUMNS));
      if (i % 2 == 0) continue;
      M::across(rows.p_across + row / 2 * KEY_STRIDE, p1 - KEY_STRIDE, p1, n_columns);
      M::across(rows.ds_across + row / 2 * KEY_STRIDE, ds1 - KEY_STRIDE, ds1, n_columns);
    }
  }
  for (int64_t j = 0; n > 0 && j < z.padded; j += TILE_COLUMNS) {
    const auto* k = there.keys_by_row + at.key / M::NUMBERS * z.padded + j;
    float* out = rows.grad_queries + tile * WIDTH_STRIDE + j;
    if constexpr (IS_WIDE)
      tile_product<M, KEY_STRIDE, 1, true>(ds, k, z.padded, n, out, WIDTH_STRIDE);
    else
      tile_product<M, KEY_STRIDE / 2, 1, true>(rows.ds_along + tile * KEY_STRIDE / 2, k, z.padded, ceil_div(n, 2), out,
                                               WIDTH_STRIDE);
  }
}

// The gradients of keys and values of a block, from p and ds: a tile of keys meets the rows from its first one on.
template <class M>
void key_gradients(const CausalSizes& z, const Block& at, const RowBlock<M>& rows, const KeyBlocks<M>& there) {
  constexpr bool IS_WIDE = M::NUMBERS == 1;
  using Unit = typename M::Unit;
  const auto *p = IS_WIDE ? (const Unit*)rows.p : rows.p_across, *ds = IS_WIDE ? (const Unit*)rows.ds : rows.ds_across;
  const Unit *queries = IS_WIDE ? rows.queries : rows.queries_across, *grads = IS_WIDE ? rows.grads : rows.grads_across;
  for (int64_t k = 0; k < at.n_keys; k += TILE_ROWS) {
    const int64_t first = std::max<int64_t>(0, (at.key + k) * z.r - at.first) / M::NUMBERS;
    const int64_t n = ceil_div(at.n_rows, M::NUMBERS) - first;
    for (int64_t j = 0; j < z.padded; j += TILE_COLUMNS) {
      const int64_t a = first * KEY_STRIDE + k, b = first * WIDTH_STRIDE + j, out = (at.key + k) * z.padded + j;
      tile_product<M, 1, KEY_STRIDE, true>(p + a, grads + b, WIDTH_STRIDE, n, there.grad_values + out, z.padded);
      tile_product<M, 1, KEY_STRIDE, true>(ds + a, queries + b, WIDTH_STRIDE, n, there.grad_keys + out, z.padded);
    }
  }
}

// The sums of row t; `key` is changed.
inline void write_key(const CausalCall& c, const CausalSizes& z, int64_t t, int64_t g, float* key, const float* value) {
  turn(key, z.P, c.cos + t * z.P, c.sin + t * z.P, LN_2, true);  // queries were multiplied by log2(e)
  from_floats(c.grad_qkv, c.type, t * z.width + (c.H + g) * z.P, key, z.P);
  from_floats(c.grad_qkv, c.type, t * z.width + (c.H + c.G + g) * z.P, value, z.P);
}
inline void write_queries(const CausalCall& c, const CausalSizes& z, const CausalPiece& piece, int64_t first, int64_t n,
                          float* grads) {
  for (int64_t i = 0; i < n; i++, grads += WIDTH_STRIDE) {
    const int64_t t = piece.b * c.S + (first + i) / z.r, head = piece.g * z.r + (first + i) % z.r;
    turn(grads, z.P, c.cos + t * z.P, c.sin + t * z.P, 1.0f / std::sqrt((float)z.P), true);
    from_floats(c.grad_qkv, c.type, t * z.width + head * z.P, grads, z.P);
  }
}

// `sums` [2][keys up to a whole block][padded]: where the gradients of keys and values go; all of them are written.
template <class M>
void causal_backward_piece(Pool& pool, int thread, const CausalCall& c, const CausalSizes& z, const CausalPiece& piece,
                           float* sums) {
  const int64_t n_keys = round_up(piece.end, BLOCK_KEYS), columns = n_keys * z.units, all = n_keys * z.padded;
  auto* keys = (typename M::Unit*)pool.scratch(thread, OF_KEYS, (2 * columns + all / M::NUMBERS) * 4);
  const KeyBlocks<M> there{keys, keys + columns, keys + 2 * columns, sums, sums + all};
  lay_out<M>(c, z, piece.b, c.H + piece.g, piece.end, there.keys, there.keys_by_row);
  lay_out<M>(c, z, piece.b, c.H + c.G + piece.g, piece.end, there.values, nullptr);
  std::fill(sums, sums + 2 * all, 0.0f);
  auto& rows = *(RowBlock<M>*)pool.scratch(thread, OF_BLOCK, sizeof(RowBlock<M>));
  const float* documents = c.documents ? c.documents + piece.b * c.S : nullptr;
  for (int64_t first = piece.begin * z.r; first < piece.end * z.r; first += BLOCK_ROWS) {
    const int64_t n_rows = std::min(BLOCK_ROWS, piece.end * z.r - first), n_seen = (first + n_rows - 1) / z.r + 1;
    read_rows<M>(c, z, piece, first, rows);
    prefetch_rows(c, z, piece, first + BLOCK_ROWS);
    for (int64_t key = 0; key < n_seen; key += BLOCK_KEYS) {
      const Block block{first, n_rows, key, std::min(BLOCK_KEYS, n_seen - key)};
      if (documents) std::copy(documents + key, documents + key + block.n_keys, rows.documents);
      for (int64_t tile = 0; tile < n_rows; tile += TILE_ROWS) tile_gradients<M>(c, z, piece, block, tile, rows, there);
      key_gradients<M>(z, block, rows, there);
    }
    write_queries(c, z, piece, first, n_rows, rows.grad_queries);
  }
}

template <class M>
void causal_backward_as(Pool& pool, const CausalCall& c) {
  const CausalSizes z(c, M::NUMBERS);
  const int64_t n_heads = c.B * c.G, most = 2 * round_up(c.S, BLOCK_KEYS) * z.padded;
  const bool is_whole = z.n_parts == 1;
  auto* shared = is_whole ? nullptr : (float*)pool.scratch(0, OF_SHARED_SUMS, n_heads * z.n_parts * most * 4);
  pool.run(n_heads * z.n_parts, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; i++) {
      const CausalPiece piece(c, z, i);
      auto* sums = is_whole ? (float*)pool.scratch(thread, OF_SUMS, most * 4) : shared + i * most;
      causal_backward_piece<M>(pool, thread, c, z, piece, sums);
      for (int64_t s = 0; is_whole && s < c.S; s++)
        write_key(c, z, piece.b * c.S + s, piece.g, sums + s * z.padded, sums + most / 2 + s * z.padded);
    }
  });
  if (is_whole) return;
  pool.run(n_heads * c.S, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t s = i % c.S, head = i / c.S;
      alignas(64) float key[WIDEST_HEAD] = {}, value[WIDEST_HEAD] = {};
      for (int64_t part = 0; part < z.n_parts; part++) {  // the first parts are those that see most keys
        const CausalPiece piece(c, z, part * n_heads + head);
        if (piece.end <= s) break;
        const float* from = shared + (part * n_heads + head) * most + s * z.padded;
        const float* from_value = from + round_up(piece.end, BLOCK_KEYS) * z.padded;
        for (int64_t j = 0; j < z.padded; j += W) {
          store(key + j, add(load(key + j), load(from + j)));
          store(value + j, add(load(value + j), load(from_value + j)));
        }
      }
      write_key(c, z, head / c.G * c.S + s, head % c.G, key, value);
    }
  });
}

inline void causal_backward(Pool& pool, const CausalCall& c) {
#if defined(COTERIE_AVX512)
  if (c.type == Type::BF16 && use_bf16_instructions) return causal_backward_as<Bf16Math>(pool, c);
#endif
  causal_backward_as<FloatMath>(pool, c);
}

}  // namespace coterie::COTERIE_ISA
