// Attention over the cache, for one new row of many sequences and for many rows of one alike.
//
// Every query goes through its keys upwards in position, in blocks of 64 that begin at multiples of 64, with a running
// maximum (online softmax, arXiv 1805.02867): what it computes depends on its own position and keys only, not on the
// rows beside it. Keys are read as the cache holds them, also those of this call. Where a window's ring would lose a
// key that a query of this call still sees, the new keys wait beside the ring until all queries are done.
#pragma once

#include "operations.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t KEYS_TOGETHER = 64, QUERIES = 4;  // rows of one piece of work; r = H/G query heads each

struct Sequence {
  int64_t slot, first, n, row;
  bool waits;
  uint8_t *k, *v;
};  // k, v: where the new ones wait

// n keys (or values) of head g from position `first` on, as float32 rows of padded(P).
inline void key_block(const AttentionCall& c, const Sequence& s, int64_t g, int64_t first, int64_t n, bool is_key,
                      float* out) {
  const int64_t stride = c.G * c.P, size = size_of(c.cache_type);
  for (int64_t i = 0; i < n; i++) {
    const int64_t position = first + i;
    const bool is_new = s.waits && position >= s.first;
    const uint8_t* base =
        is_new ? (is_key ? s.k : s.v) + (position - s.first) * stride * size
               : (const uint8_t*)(is_key ? c.k : c.v) +
                     (s.slot * c.n_places + (c.window ? position % c.n_places : position)) * stride * size;
    to_floats(out + i * padded(c.P), base, c.cache_type, g * c.P, c.P);
  }
}

// The queries row .. row + n of a sequence, all heads that share key head g.
inline void attend(Pool& pool, int thread, const AttentionCall& c, const Sequence& s, int64_t g, int64_t row,
                   int64_t n) {
  const int64_t r = c.H / c.G, P = padded(c.P), n_queries = n * r;
  const int64_t newest = s.first + row + n - 1,
                oldest = c.window ? std::max<int64_t>(0, s.first + row - c.window + 1) : 0;
  const int64_t floats = 2 * KEYS_TOGETHER * P + n_queries * (2 * P + KEYS_TOGETHER + 2);
  auto* scratch = (float*)pool.scratch(thread, KEYS, floats * 4 + 256);
  float* rows = scratch;                             // [64][P]
  float* keys = rows + KEYS_TOGETHER * P;            // [P][64]
  float* queries = keys + P * KEYS_TOGETHER;         // [n_queries][P]
  float* out = queries + n_queries * P;              // [n_queries][P]
  float* scores = out + n_queries * P;               // [n_queries][64]
  float* most = scores + n_queries * KEYS_TOGETHER;  // [n_queries]
  float* sums = most + n_queries;                    // [n_queries]
  const int64_t width = (c.H + 2 * c.G) * c.P;
  for (int64_t q = 0; q < n_queries; q++) {
    float* query = queries + q * P;
    const int64_t at = s.row + row + q / r, head = g * r + q % r;
    std::fill(query, query + P, 0.0f);
    to_floats(query, c.qkv, c.type, at * width + head * c.P, c.P);
    const float *cos = c.cos + at * c.P, *sin = c.sin + at * c.P;
    for (int64_t i = 0, half = c.P / 2; i < half; i++) {
      const float a = query[i], b = query[i + half];
      query[i] = (a * cos[i] + b * sin[i]) * c.scale;
      query[i + half] = (b * cos[i + half] + a * sin[i + half]) * c.scale;
    }
    most[q] = -INFINITY, sums[q] = 0;
  }
  std::fill(out, out + n_queries * P, 0.0f);
  for (int64_t block = oldest / KEYS_TOGETHER * KEYS_TOGETHER; block <= newest; block += KEYS_TOGETHER) {
    const int64_t begin = std::max(block, oldest), end = std::min(block + KEYS_TOGETHER, newest + 1),
                  there = end - begin;
    std::fill(rows, rows + KEYS_TOGETHER * P, 0.0f);
    key_block(c, s, g, begin, there, true, rows + (begin - block) * P);
    for (int64_t k = 0; k < KEYS_TOGETHER; k += 16)
      for (int64_t i = 0; i < P; i += 16) {
        const uint32_t* sources[PANEL];
        for (int64_t j = 0; j < 16; j++) sources[j] = (const uint32_t*)(rows + (k + j) * P + i);
        transpose(sources, (uint32_t*)(keys + i * KEYS_TOGETHER + k), KEYS_TOGETHER);
      }
    // scores [q][64] = queries · keys, four queries at a time
    for (int64_t q = 0; q < n_queries; q += 4) {
      const int64_t m = std::min<int64_t>(4, n_queries - q);
      const float* rows_q[4];
      for (int64_t i = 0; i < 4; i++) rows_q[i] = queries + (q + std::min(i, m - 1)) * P;
      for (int64_t k = 0; k < KEYS_TOGETHER; k += 4 * W) {
        constexpr int N = 4 * W <= KEYS_TOGETHER ? 4 : (int)KEYS_TOGETHER / W;
        F sum[4][N];
        for (auto& line : sum)
          for (F& x : line) x = zero();
        for (int64_t i = 0; i < c.P; i++) {
          F key[N];
          for (int j = 0; j < N; j++) key[j] = load(keys + i * KEYS_TOGETHER + k + j * W);
          for (int a = 0; a < 4; a++) {
            const F x = set1(rows_q[a][i]);
            for (int j = 0; j < N; j++) sum[a][j] = fma(x, key[j], sum[a][j]);
          }
        }
        for (int64_t a = 0; a < m; a++)
          for (int j = 0; j < N; j++) store(scores + (q + a) * KEYS_TOGETHER + k + j * W, sum[a][j]);
      }
    }
    key_block(c, s, g, begin, there, false, rows + (begin - block) * P);
    for (int64_t q = 0; q < n_queries; q++) {
      const int64_t position = s.first + row + q / r;
      const int64_t from = std::max(begin, c.window ? position - c.window + 1 : 0) - block,
                    to = std::min(end, position + 1) - block;
      float* line = scores + q * KEYS_TOGETHER;
      if (from >= to) {
        std::fill(line, line + KEYS_TOGETHER, 0.0f);
        continue;
      }
      float largest = most[q];
      for (int64_t k = from; k < to; k++) largest = std::max(largest, line[k]);
      alignas(64) float factor[W];
      store(factor, exp(set1(most[q] - largest)));  // of -inf: exp(-87), times sums that are 0
      for (int64_t k = 0; k < KEYS_TOGETHER; k += W) store(line + k, exp(sub(load(line + k), set1(largest))));
      std::fill(line, line + from, 0.0f);
      std::fill(line + to, line + KEYS_TOGETHER, 0.0f);
      F total = zero();
      for (int64_t k = 0; k < KEYS_TOGETHER; k += W) total = coterie::COTERIE_ISA::add(total, load(line + k));
      sums[q] = sums[q] * factor[0] + sum_lanes(total);
      most[q] = largest;
      if (factor[0] != 1.0f)
        for (int64_t i = 0; i < P; i += W) store(out + q * P + i, mul(load(out + q * P + i), set1(factor[0])));
    }
    // out += probabilities · values
    for (int64_t q = 0; q < n_queries; q += 4) {
      const int64_t m = std::min<int64_t>(4, n_queries - q);
      for (int64_t i = 0; i < P; i += 2 * W) {
        F sum[4][2];
        for (int64_t a = 0; a < 4; a++)
          for (int j = 0; j < 2; j++) sum[a][j] = load(out + (q + std::min(a, m - 1)) * P + i + j * W);
        for (int64_t k = begin - block; k < end - block; k++) {
          const F value[2] = {load(rows + k * P + i), load(rows + k * P + i + W)};
          for (int64_t a = 0; a < 4; a++) {
            const F p = set1(scores[(q + std::min(a, m - 1)) * KEYS_TOGETHER + k]);
            for (int j = 0; j < 2; j++) sum[a][j] = fma(p, value[j], sum[a][j]);
          }
        }
        for (int64_t a = 0; a < m; a++)
          for (int j = 0; j < 2; j++) store(out + (q + a) * P + i + j * W, sum[a][j]);
      }
    }
  }
  for (int64_t q = 0; q < n_queries; q++) {
    const F inverse = set1(1.0f / sums[q]);
    for (int64_t i = 0; i < P; i += W) store(out + q * P + i, mul(load(out + q * P + i), inverse));
    from_floats(c.out, c.type, (s.row + row + q / r) * c.H * c.P + (g * r + q % r) * c.P, out + q * P, c.P);
  }
}

inline void attention(Pool& pool, const AttentionCall& c) {
  const int64_t size = size_of(c.cache_type), stride = c.G * c.P, width = (c.H + 2 * c.G) * c.P;
  std::vector<Sequence> sequences(c.B);
  int64_t row = 0, n_waiting = 0;
  for (int64_t b = 0; b < c.B; b++) {
    const int64_t* s = c.sequences + 3 * b;
    const bool waits = c.window && s[2] > 1 && s[1] + s[2] > c.n_places;
    sequences[b] = {s[0], s[1], s[2], row, waits, nullptr, nullptr};
    row += s[2];
    if (waits) n_waiting += s[2];
  }
  uint8_t* waiting = n_waiting ? pool.scratch(0, TILES_BETWEEN, 2 * n_waiting * stride * size) : nullptr;
  for (auto& s : sequences)
    if (s.waits) s.k = waiting, s.v = waiting + s.n * stride * size, waiting += 2 * s.n * stride * size;

  // keys turned, keys and values stored
  struct Row {
    const Sequence* sequence;
    int64_t i;
  };
  std::vector<Row> rows;
  for (const auto& s : sequences)
    for (int64_t i = 0; i < s.n; i++) rows.push_back({&s, i});
  const int64_t chunk = std::max<int64_t>(1, 4096 / stride);
  pool.run((int64_t)rows.size(), chunk, [&](int64_t begin, int64_t end, int thread) {
    auto* line = (float*)pool.scratch(thread, ROW, padded(2 * stride) * 4);
    for (int64_t t = begin; t < end; t++) {
      const Sequence& s = *rows[t].sequence;
      to_floats(line, c.qkv, c.type, t * width + c.H * c.P, 2 * stride);
      const float *cos = c.cos + t * c.P, *sin = c.sin + t * c.P;
      for (int64_t g = 0; g < c.G; g++)
        for (int64_t i = 0, half = c.P / 2; i < half; i++) {
          float* key = line + g * c.P;
          const float a = key[i], b = key[i + half];
          key[i] = a * cos[i] + b * sin[i], key[i + half] = b * cos[i + half] + a * sin[i + half];
        }
      const int64_t position = s.first + rows[t].i, place = c.window ? position % c.n_places : position;
      const int64_t at = s.waits ? rows[t].i * stride : (s.slot * c.n_places + place) * stride;
      from_floats(s.waits ? s.k : c.k, c.cache_type, at, line, stride);
      from_floats(s.waits ? s.v : c.v, c.cache_type, at, line + stride, stride);
    }
  });

  struct Piece {
    const Sequence* sequence;
    int64_t g, row, n;
  };
  std::vector<Piece> pieces;
  for (const auto& s : sequences)
    for (int64_t from = s.n; from > 0; from -= QUERIES)  // the longest first
      for (int64_t g = 0; g < c.G; g++) {
        const int64_t begin = std::max<int64_t>(0, from - QUERIES);
        pieces.push_back({&s, g, begin, from - begin});
      }
  pool.run((int64_t)pieces.size(), 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; i++)
      attend(pool, thread, c, *pieces[i].sequence, pieces[i].g, pieces[i].row, pieces[i].n);
  });
  for (const auto& s : sequences) {
    if (!s.waits) continue;
    for (int64_t i = std::max<int64_t>(0, s.n - c.n_places); i < s.n; i++) {
      const int64_t at = (s.slot * c.n_places + (s.first + i) % c.n_places) * stride * size;
      std::memcpy((uint8_t*)c.k + at, s.k + i * stride * size, (size_t)(stride * size));
      std::memcpy((uint8_t*)c.v + at, s.v + i * stride * size, (size_t)(stride * size));
    }
  }
}

}  // namespace coterie::COTERIE_ISA
