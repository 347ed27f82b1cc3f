// The sparse block in one call: rows sorted by expert, gate and up, SwiGLU, down, and the weighted sum.
//
// Three pieces of work, each shared by all threads in chunks of (expert, 32 or 64 outputs): no thread owns an expert,
// so a popular one delays nobody. With few rows every chunk streams its weights once; with many the rows of an expert
// are quantized once and meet a panel that stays in the cache.
#pragma once

#include "operations.h"

namespace coterie::COTERIE_ISA {

struct Group {               // the rows of one expert
  int64_t expert, first, n;  // its pairs are order[first .. first + n]
  Tiles in, between;
};

inline void experts(Pool& pool, const ExpertsCall& call) {
  const int64_t n_pairs = call.T * call.S, D = call.D, Fw = call.F;
  // pairs sorted by expert (a counting sort keeps their order)
  std::vector<int64_t> starts(call.E + 1, 0), order;
  for (int64_t i = 0; i < n_pairs; i++)
    if (call.ids[i] >= 0 && call.ids[i] < call.E) starts[call.ids[i] + 1]++;
  for (int64_t e = 0; e < call.E; e++) starts[e + 1] += starts[e];
  order.resize(starts[call.E]);
  std::vector<int64_t> place(n_pairs, -1), next(starts.begin(), starts.end() - 1);
  for (int64_t i = 0; i < n_pairs; i++)
    if (call.ids[i] >= 0 && call.ids[i] < call.E) order[place[i] = next[call.ids[i]]++] = i;
  std::vector<Group> groups;
  int64_t bytes_in = 0, bytes_between = 0;
  for (int64_t e = 0; e < call.E; e++) {
    const int64_t n = starts[e + 1] - starts[e];
    if (n == 0) continue;
    groups.push_back({e,
                      starts[e],
                      n,
                      {kind_of(call.gate_up[e], call.type), n, D, nullptr},
                      {kind_of(call.down[e], call.type), n, Fw, nullptr}});
    bytes_in += groups.back().in.bytes() + 64, bytes_between += groups.back().between.bytes() + 64;
  }
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.n > b.n; });
  uint8_t* at_in = pool.scratch(0, TILES, bytes_in);
  uint8_t* at_between = pool.scratch(0, TILES_BETWEEN, bytes_between);
  for (auto& g : groups) {
    g.in.data = at_in, g.between.data = at_between;
    at_in += ceil_div(g.in.bytes(), 64) * 64, at_between += ceil_div(g.between.bytes(), 64) * 64;
  }
  auto* outputs = (float*)pool.scratch(0, OUTPUTS, (int64_t)order.size() * D * 4);  // [pair in sorted order][D]

  struct Row {
    const Group* group;
    int64_t i;
  };
  std::vector<Row> rows;
  for (const auto& g : groups)
    for (int64_t i = 0; i < g.n; i++) rows.push_back({&g, i});
  pool.run((int64_t)rows.size(), std::max<int64_t>(1, 8192 / D), [&](int64_t begin, int64_t end, int thread) {
    auto* row = (float*)pool.scratch(thread, ROW, padded(D) * 4);
    for (int64_t r = begin; r < end; r++) {
      const Tiles& t = rows[r].group->in;
      const int64_t i = rows[r].i;
      read_row(row, call.x, call.type, order[rows[r].group->first + i] / call.S, D, D, Norm{}, nullptr);
      for (int64_t s = 0; s < ceil_div(D, SPAN); s++) put(t, i / t.most(), (int)(i % t.most()), s, row + s * SPAN);
    }
  });

  // gate and up of 32 columns: panels gate, up, gate, up
  const int64_t n_spans = ceil_div(Fw, SPAN);
  pool.run((int64_t)groups.size() * n_spans, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; i++) {
      const Group& g = groups[i / n_spans];
      const int64_t span = i % n_spans, n = std::min<int64_t>(4, 2 * ceil_div(Fw, PANEL) - 4 * span), width = n * PANEL;
      auto* acc = (float*)pool.scratch(thread, SUMS, g.n * width * 4);
      std::fill(acc, acc + g.n * width, 0.0f);
      multiply(pool, thread, call.gate_up[g.expert], 4 * span, n, g.in, acc);
      alignas(64) float hidden[32] = {};
      for (int64_t r = 0; r < g.n; r++) {
        for (int64_t p = 0; p < n; p += 2)
          for (int c = 0; c < PANEL; c += W) {
            const F gate = load(acc + r * width + p * PANEL + c), up = load(acc + r * width + (p + 1) * PANEL + c);
            store(hidden + p / 2 * PANEL + c, mul(silu(gate), up));
          }
        put(g.between, r / g.between.most(), (int)(r % g.between.most()), span, hidden);
      }
    }
  });

  const int64_t n_pieces = ceil_div(D, COLUMNS);
  pool.run((int64_t)groups.size() * n_pieces, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; i++) {
      const Group& g = groups[i / n_pieces];
      const int64_t column = i % n_pieces * COLUMNS, width = std::min(COLUMNS, ceil_div(D - column, PANEL) * PANEL);
      auto* acc = (float*)pool.scratch(thread, SUMS, g.n * width * 4);
      std::fill(acc, acc + g.n * width, 0.0f);
      multiply(pool, thread, call.down[g.expert], column / PANEL, width / PANEL, g.between, acc);
      for (int64_t r = 0; r < g.n; r++)
        std::memcpy(outputs + (g.first + r) * D + column, acc + r * width, (size_t)std::min(width, D - column) * 4);
    }
  });

  pool.run(call.T, std::max<int64_t>(1, 16384 / D), [&](int64_t begin, int64_t end, int thread) {
    auto* sum = (float*)pool.scratch(thread, ROW, padded(D) * 4);
    for (int64_t t = begin; t < end; t++) {
      std::fill(sum, sum + padded(D), 0.0f);
      for (int64_t s = 0; s < call.S; s++) {
        const int64_t at = place[t * call.S + s];
        if (at < 0) continue;
        const float weight = call.weights[t * call.S + s];
        int64_t d = 0;
        for (; d + W <= D; d += W) store(sum + d, fma(load(outputs + at * D + d), set1(weight), load(sum + d)));
        if (d < D) {
          alignas(64) float last[W] = {};
          std::memcpy(last, outputs + at * D + d, (size_t)(D - d) * 4);
          store(sum + d, fma(load(last), set1(weight), load(sum + d)));
        }
      }
      from_floats(call.out, call.type, t * D, sum, D);
    }
  });
}

}  // namespace coterie::COTERIE_ISA
