// Linear layers, norms, the router and the embedding: rows into tiles, tiles times panels, sums out.
#pragma once

#include <algorithm>
#include <vector>

#include "multiply.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t COLUMNS = 64;  // outputs of a piece of work: 4 panels

inline int64_t padded(int64_t n) { return ceil_div(n, SPAN) * SPAN; }

// Row `row` of x, normalised if there is a norm, as float32 in `out` [padded(K)] with zeros at its end.
inline void read_row(float* out, const void* x, Type type, int64_t row, int64_t stride, int64_t K, const Norm& norm,
                     const float* weight) {
  std::fill(out + K / W * W, out + padded(K), 0.0f);
  to_floats(out, x, type, row * stride, K);
  if (norm.weight) normalise(out, weight, K, norm.eps, type);
}

inline const float* norm_weight(Pool& pool, const Norm& norm, int64_t K) {
  if (!norm.weight) return nullptr;
  auto* weight = (float*)pool.scratch(0, KEYS, padded(K) * 4);
  std::fill(weight + K / W * W, weight + padded(K), 0.0f);
  to_floats(weight, norm.weight, norm.type, 0, K);
  return weight;
}

inline void linear(Pool& pool, const LinearCall& call) {
  const int64_t K = call.matrices[0].K;
  const float* weight = norm_weight(pool, call.norm, K);
  std::vector<Tiles> made;  // one for each kind of weights
  for (int i = 0; i < call.n_matrices; i++) {
    const Kind kind = kind_of(call.matrices[i], call.x_type);
    if (std::none_of(made.begin(), made.end(), [&](const Tiles& t) { return t.kind == kind; }))
      made.push_back({kind, call.T, K, nullptr});
  }
  int64_t bytes = 0;
  for (auto& t : made) bytes += t.bytes();
  uint8_t* data = pool.scratch(0, TILES, bytes);
  for (auto& t : made) t.data = data, data += t.bytes();
  const int64_t chunk = std::max<int64_t>(1, 16384 / K);
  pool.run(call.T, chunk, [&](int64_t begin, int64_t end, int thread) {
    auto* row = (float*)pool.scratch(thread, ROW, padded(K) * 4);
    for (int64_t r = begin; r < end; r++) {
      read_row(row, call.x, call.x_type, r, call.x_stride, K, call.norm, weight);
      for (const auto& t : made)
        for (int64_t s = 0; s < ceil_div(K, SPAN); s++) put(t, r / t.most(), (int)(r % t.most()), s, row + s * SPAN);
    }
  });
  struct Piece {
    const Matrix* matrix;
    const Tiles* tiles;
    int64_t panel, n, column;
  };
  std::vector<Piece> pieces;
  int64_t column = 0;
  for (int i = 0; i < call.n_matrices; i++) {
    const Matrix& m = call.matrices[i];
    const Tiles* tiles =
        &*std::find_if(made.begin(), made.end(), [&](const Tiles& t) { return t.kind == kind_of(m, call.x_type); });
    for (int64_t p = 0; p < n_panels(m); p += COLUMNS / PANEL)
      pieces.push_back({&m, tiles, p, std::min(COLUMNS / PANEL, n_panels(m) - p), column + p * PANEL});
    column += m.N;
  }
  pool.run((int64_t)pieces.size(), 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; i++) {
      const Piece& piece = pieces[i];
      const int64_t width = piece.n * PANEL, valid = std::min(width, piece.matrix->N - piece.panel * PANEL);
      auto* acc = (float*)pool.scratch(thread, SUMS, call.T * width * 4);
      std::fill(acc, acc + call.T * width, 0.0f);
      multiply(pool, thread, *piece.matrix, piece.panel, piece.n, *piece.tiles, acc);
      for (int64_t r = 0; r < call.T; r++)
        from_floats(call.out, call.out_type, r * call.out_stride + piece.column, acc + r * width, valid);
    }
  });
}

inline void norm(Pool& pool, const NormCall& call) {
  const float* weight = norm_weight(pool, call.norm, call.D);
  pool.run(call.T, std::max<int64_t>(1, 32768 / call.D), [&](int64_t begin, int64_t end, int thread) {
    auto* row = (float*)pool.scratch(thread, ROW, padded(call.D) * 4);
    for (int64_t r = begin; r < end; r++) {
      read_row(row, call.x, call.type, r, call.D, call.D, call.norm, weight);
      from_floats(call.out, call.type, r * call.D, row, call.D);
    }
  });
}

inline void swiglu(Pool& pool, const SwigluCall& call) {
  const int64_t width = call.F;
  pool.run(call.T, std::max<int64_t>(1, 16384 / width), [&](int64_t begin, int64_t end, int thread) {
    auto* gate = (float*)pool.scratch(thread, ROW, 2 * padded(width) * 4);
    float* up = gate + padded(width);
    for (int64_t t = begin; t < end; t++) {
      to_floats(gate, call.x, call.type, t * 2 * width, width);
      to_floats(up, call.x, call.type, (t * 2 + 1) * width, width);
      for (int64_t i = 0; i < width; i += W) store(gate + i, mul(silu(load(gate + i)), load(up + i)));
      from_floats(call.out, call.type, t * width, gate, width);
    }
  });
}

inline void add(Pool& pool, const AddCall& call) {
  const int64_t step = 16384;
  pool.run(ceil_div(call.n, step), 4, [&](int64_t begin, int64_t end, int) {
    const int64_t stop = std::min(end * step, call.n);
    int64_t i = begin * step;
    for (; i + W <= stop; i += W)
      store_any(call.out, call.type, i,
                coterie::COTERIE_ISA::add(load_any(call.a, call.type, i), load_any(call.b, call.type, i)));
    if (i < stop) {
      alignas(64) float a[W], b[W];
      to_floats(a, call.a, call.type, i, stop - i);
      to_floats(b, call.b, call.type, i, stop - i);
      store(a, coterie::COTERIE_ISA::add(load(a), load(b)));
      from_floats(call.out, call.type, i, a, stop - i);
    }
  });
}

// The K largest scores, the lowest id first among equals, and, where asked for, their softmax; the slots behind them stay
// unused.
inline void choose(const RouteCall& call, const float* scores, int64_t K, int32_t* ids, float* weights) {
  for (int64_t s = 0; s < K; s++) {
    int64_t best = -1;
    for (int64_t e = 0; e < call.E; e++) {
      const bool is_taken = std::find(ids, ids + s, (int32_t)e) != ids + s;
      if (!is_taken && (best < 0 || scores[e] > scores[best])) best = e;
    }
    ids[s] = (int32_t)best;
  }
  std::fill(ids + K, ids + call.S, -1);
  if (!weights) return;
  double sum = 0;
  for (int64_t e = 0; e < call.E; e++)
    if (!call.renormalise || std::find(ids, ids + K, (int32_t)e) != ids + K)
      sum += std::exp((double)scores[e] - scores[ids[0]]);
  for (int64_t s = 0; s < K; s++) weights[s] = (float)(std::exp((double)scores[ids[s]] - scores[ids[0]]) / sum);
  std::fill(weights + K, weights + call.S, 0.0f);
}

inline void route(Pool& pool, const RouteCall& call) {
  pool.run(call.T, std::max<int64_t>(1, 65536 / (call.D * call.E)), [&](int64_t begin, int64_t end, int thread) {
    auto* row = (float*)pool.scratch(thread, ROW, (padded(call.D) + W + call.E) * 4);
    for (int64_t t = begin; t < end; t++) {
      read_row(row, call.x, call.type, t, call.D, call.D, Norm{}, nullptr);
      float* logits = call.logits + t * call.E;
      const int64_t whole = call.D / W * W;
      for (int64_t e = 0; e < call.E; e++) {
        const float* weight = call.weight + e * call.D;
        F sum[4] = {zero(), zero(), zero(), zero()};
        for (int64_t d = 0; d < whole; d += W) sum[d / W % 4] = fma(load(row + d), load(weight + d), sum[d / W % 4]);
        if (whole < call.D) {
          alignas(64) float last[W] = {};
          std::memcpy(last, weight + whole, (size_t)(call.D - whole) * 4);
          sum[0] = fma(load(row + whole), load(last), sum[0]);
        }
        logits[e] = sum_lanes(coterie::COTERIE_ISA::add(coterie::COTERIE_ISA::add(sum[0], sum[1]),
                                                        coterie::COTERIE_ISA::add(sum[2], sum[3])));
      }
      const int32_t edit = call.edits.of_row ? call.edits.of_row[t] : -1;
      const float* scores = logits;
      if (edit >= 0) {
        float* edited = row + padded(call.D) + W;
        for (int64_t e = 0; e < call.E; e++) edited[e] = logits[e] + call.edits.bias[edit * call.edits.stride + e];
        scores = edited;
      }
      choose(call, scores, edit >= 0 ? call.edits.top_k[edit] : call.K, call.ids + t * call.S,
             call.weights ? call.weights + t * call.S : nullptr);
    }
  });
}

inline UnitScales any_scales(const Format& f, const uint8_t* at, int unit, int c, F d, F dmin) {
  const int shift = f.group_units - 1;
  switch (f.scales) {
    case Scales::F16:
      return scales_of<Scales::F16>(at, unit, shift, c, d, dmin);
    case Scales::F16_OFFSET:
      return scales_of<Scales::F16_OFFSET>(at, unit, shift, c, d, dmin);
    case Scales::SUPER:
      return scales_of<Scales::SUPER>(at, unit, shift, c, d, dmin);
    case Scales::SUPER_MIN:
      return scales_of<Scales::SUPER_MIN>(at, unit, shift, c, d, dmin);
    default:
      return scales_of<Scales::SUPER_NIBBLE>(at, unit, shift, c, d, dmin);
  }
}

// One row of a packed or plain table.
inline void read_table_row(const Matrix& m, int64_t n, float* out) {
  if (m.layout != Layout::PACKED) {
    const Type type = m.layout == Layout::ROWS_F32 ? Type::F32 : m.layout == Layout::ROWS_F16 ? Type::F16 : Type::BF16;
    to_floats(out, m.data, type, n * m.K, m.K);
    return;
  }
  const Format& f = m.format;
  const int64_t column = n % PANEL, part = column / W, lane = column % W;
  const uint8_t* block = m.data + n / PANEL * panel_bytes(f, m.K);
  for (int64_t k = 0; k < m.K; k += BLOCK) {
    const int64_t inputs = std::min(BLOCK, m.K - k);
    const BlockLayout at(f, inputs);
    F d = zero(), dmin = zero();
    if (is_super(f))
      d = load_f16((const uint16_t*)block + part * W), dmin = load_f16((const uint16_t*)block + 16 + part * W);
    const float center = has_offset(f) ? 0.0f : (float)(1 << (f.bits - 1));
    for (int64_t i = 0; i < inputs; i++) {
      alignas(64) static thread_local float scale[W], offset[W];
      if (i % f.unit == 0) {
        const UnitScales s = any_scales(f, block + at.scales, (int)(i / f.unit), (int)part, d, dmin);
        store(scale, s.scale), store(offset, s.offset);
      }
      const int64_t span = i / SPAN, b = i % SPAN / 4 * 64 + column * 4 + i % 4;
      int u = 0;
      if (f.bits == 8)
        u = block[at.plane4 + span * 512 + b];
      else if (f.bits >= 4)
        u = block[at.plane4 + span * 256 + b % 256] >> (b / 256 * 4) & 15;
      if (f.bits == 2 || f.bits == 3 || f.bits == 6) {
        const int two = block[at.plane2 + span * 128 + b % 128] >> (b / 128 * 2) & 3;
        u = f.bits == 6 ? u | two << 4 : two;
      }
      if (f.bits == 3 || f.bits == 5) u |= (block[at.plane1 + span * 64 + b / 8] >> (b % 8) & 1) << (f.bits - 1);
      out[k + i] = ((float)u - center) * scale[lane] + offset[lane];
    }
    block += at.bytes;
  }
}

inline void argmax(Pool& pool, const ArgmaxCall& call) {
  pool.run(call.T, std::max<int64_t>(1, 32768 / call.V), [&](int64_t begin, int64_t end, int) {
    alignas(64) float block[256];
    for (int64_t t = begin; t < end; t++) {
      float best = -INFINITY;
      int64_t at = 0;
      for (int64_t i = 0; i < call.V; i += 256) {
        const int64_t n = std::min<int64_t>(256, call.V - i);
        to_floats(block, call.x, call.type, t * call.V + i, n);
        F most = set1(-INFINITY), sum = zero();
        for (int64_t j = 0; j + W <= n; j += W)
          most = max(load(block + j), most), sum = coterie::COTERIE_ISA::add(sum, load(block + j));
        const float total = sum_lanes(sum);
        bool is_better = max_lanes(most) > best || total != total;
        for (int64_t j = n / W * W; j < n && !is_better; j++) is_better = !(block[j] <= best);
        if (!is_better) continue;
        for (int64_t j = 0; j < n; j++)
          if (block[j] > best || (block[j] != block[j] && best == best)) best = block[j], at = i + j;
      }
      call.ids[t] = at, call.values[t] = best;
    }
  });
}

inline void embed(Pool& pool, const EmbedCall& call) {
  const int64_t K = call.table.K;
  pool.run(call.T, 4, [&](int64_t begin, int64_t end, int thread) {
    auto* row = (float*)pool.scratch(thread, ROW, padded(K) * 4);
    for (int64_t t = begin; t < end; t++) {
      read_table_row(call.table, call.ids[t], row);
      from_floats(call.out, call.type, t * K, row, K);
    }
  });
}

}  // namespace coterie::COTERIE_ISA
