// Attention over the cache, for one new row of many sequences and for many rows of one alike.
//
// Every query goes through its keys upwards in position, in blocks of 64 that begin at multiples of 64, with a running
// maximum (online softmax, arXiv 1805.02867): what it computes depends on its own position and keys only, not on the
// rows beside it. A block of keys is a page. Keys are read as the cache holds them, also those of this call.
#pragma once

#include "operations.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t QUERIES = 4;  // rows of one piece of work; r = H/G query heads each

struct Sequence {
  const int32_t* pages;
  int64_t first, n, row;
};

// A key (or value) of each head into row `row` of the pages.
inline void keep(void* store, float* scales, Type type, int64_t row, const float* x, int64_t G, int64_t P) {
  if (type != Type::I8) return from_floats(store, type, row * G * P, x, G * P);
  for (int64_t g = 0; g < G; g++, x += P) {
    auto* out = (int8_t*)store + (row * G + g) * P;
    float largest = 0;
    bool is_number = true;
    for (int64_t i = 0; i < P; i++) largest = std::max(largest, std::fabs(x[i])), is_number &= x[i] == x[i];
    const float factor = is_number && largest >= 1e-30f && largest < INFINITY ? 127 / largest : 0;
    for (int64_t i = 0; i < P; i++) out[i] = x[i] == x[i] ? (int8_t)std::lrintf(x[i] * factor) : 0;
    scales[row * G + g] = is_number ? largest / 127 : NAN;
  }
}

// n keys (or values) of head g from row `row` of the pages on, as float32 rows of padded(P).
inline void key_block(const AttentionCall& c, const void* store, const float* scales, int64_t g, int64_t row, int64_t n,
                      float* out) {
  for (int64_t i = 0; i < n; i++, out += padded(c.P)) {
    const int64_t at = (row + i) * c.G + g;
    if (c.cache_type != Type::I8) {
      to_floats(out, store, c.cache_type, at * c.P, c.P);
      continue;
    }
    const auto* x = (const int8_t*)store + at * c.P;
    for (int64_t j = 0; j < c.P; j++) out[j] = (float)x[j] * scales[at];
  }
}

// Four rows from `first` on of a matrix of n; the last is repeated, so what is written there twice is the same.
constexpr int TOGETHER_ROWS = 4;
struct RowsTogether {
  float* at[TOGETHER_ROWS];
  RowsTogether(float* x, int64_t stride, int64_t first, int64_t n) {
    for (int64_t i = 0; i < TOGETHER_ROWS; i++) at[i] = x + std::min(first + i, n - 1) * stride;
  }
};

// out [4][n_columns] = (or +=) left [4] · right over inputs begin .. end - 1; row k of right is at k · stride
template <bool ADDS, int N>
ALONE void product_together(const RowsTogether& left, const float* right, int64_t stride, int64_t begin, int64_t end,
                            int64_t n_columns, const RowsTogether& out) {
  F sums[TOGETHER_ROWS][N];
  const auto each_sum = [&](auto body) __attribute__((always_inline)) {
    unroll<TOGETHER_ROWS>([&](auto r) __attribute__((always_inline)) {
      unroll<N>([&](auto j) __attribute__((always_inline)) { body(r, j, sums[r][j]); });
    });
  };
  for (int64_t c = 0; c < n_columns; c += N * W) {
    each_sum([&](auto r, auto j, F& sum)
                 __attribute__((always_inline)) { sum = ADDS ? load(out.at[r] + c + j * W) : zero(); });
    for (int64_t k = begin; k < end; k++) {
      F columns[N];
      unroll<N>([&](auto j) __attribute__((always_inline)) { columns[j] = load(right + k * stride + c + j * W); });
      each_sum([&](auto r, auto j, F& sum)
                   __attribute__((always_inline)) { sum = fma(set1(left.at[r][k]), columns[j], sum); });
    }
    each_sum([&](auto r, auto j, F& sum) __attribute__((always_inline)) { store(out.at[r] + c + j * W, sum); });
  }
}

// The queries row .. row + n of a sequence, all heads that share key head g.
inline void attend(Pool& pool, int thread, const AttentionCall& c, const Sequence& s, int64_t g, int64_t row,
                   int64_t n) {
  const int64_t r = c.H / c.G, P = padded(c.P), n_queries = n * r;
  const int64_t newest = s.first + row + n - 1,
                oldest = c.window ? std::max<int64_t>(0, s.first + row - c.window + 1) : 0;
  const int64_t floats = 2 * PAGE * P + n_queries * (2 * P + PAGE + 2);
  auto* scratch = (float*)pool.scratch(thread, KEYS, floats * 4 + 256);
  float* rows = scratch;                    // [64][P]
  float* keys = rows + PAGE * P;            // [P][64]
  float* queries = keys + P * PAGE;         // [n_queries][P]
  float* out = queries + n_queries * P;     // [n_queries][P]
  float* scores = out + n_queries * P;      // [n_queries][64]
  float* most = scores + n_queries * PAGE;  // [n_queries]
  float* sums = most + n_queries;           // [n_queries]
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
  for (int64_t block = oldest / PAGE * PAGE; block <= newest; block += PAGE) {
    const int64_t begin = std::max(block, oldest), end = std::min(block + PAGE, newest + 1), there = end - begin;
    std::fill(rows, rows + PAGE * P, 0.0f);
    const int64_t at = s.pages[block / PAGE] * PAGE + begin - block;
    key_block(c, c.pages.k, c.pages.k_scales, g, at, there, rows + (begin - block) * P);
    for (int64_t k = 0; k < PAGE; k += 16)
      for (int64_t i = 0; i < P; i += 16) {
        const uint32_t* sources[PANEL];
        for (int64_t j = 0; j < 16; j++) sources[j] = (const uint32_t*)(rows + (k + j) * P + i);
        transpose(sources, (uint32_t*)(keys + i * PAGE + k), PAGE);
      }
    // scores [q][64] = queries · keys, in as many sums as there are registers for
    for (int64_t q = 0; q < n_queries; q += TOGETHER_ROWS) {
      const RowsTogether of(queries, P, q, n_queries), to(scores, PAGE, q, n_queries);
      product_together<false, W == 8 ? 2 : 4>(of, keys, PAGE, 0, c.P, PAGE, to);
    }
    key_block(c, c.pages.v, c.pages.v_scales, g, at, there, rows + (begin - block) * P);
    for (int64_t q = 0; q < n_queries; q++) {
      const int64_t position = s.first + row + q / r;
      const int64_t from = std::max(begin, c.window ? position - c.window + 1 : 0) - block,
                    to = std::min(end, position + 1) - block;
      float* line = scores + q * PAGE;
      if (from >= to) {
        std::fill(line, line + PAGE, 0.0f);
        continue;
      }
      float largest = most[q];
      for (int64_t k = from; k < to; k++) largest = std::max(largest, line[k]);
      alignas(64) float factor[W];
      store(factor, exp(set1(most[q] - largest)));  // of -inf: exp(-87), times sums that are 0
      for (int64_t k = 0; k < PAGE; k += W) store(line + k, exp(sub(load(line + k), set1(largest))));
      std::fill(line, line + from, 0.0f);
      std::fill(line + to, line + PAGE, 0.0f);
      F total = zero();
      for (int64_t k = 0; k < PAGE; k += W) total = coterie::COTERIE_ISA::add(total, load(line + k));
      sums[q] = sums[q] * factor[0] + sum_lanes(total);
      most[q] = largest;
      if (factor[0] != 1.0f)
        for (int64_t i = 0; i < P; i += W) store(out + q * P + i, mul(load(out + q * P + i), set1(factor[0])));
    }
    // out += probabilities · values
    for (int64_t q = 0; q < n_queries; q += TOGETHER_ROWS) {
      const RowsTogether of(scores, PAGE, q, n_queries), to(out, P, q, n_queries);
      product_together<true, 2>(of, rows, P, begin - block, end - block, P, to);
    }
  }
  for (int64_t q = 0; q < n_queries; q++) {
    const F inverse = set1(1.0f / sums[q]);
    for (int64_t i = 0; i < P; i += W) store(out + q * P + i, mul(load(out + q * P + i), inverse));
    from_floats(c.out, c.type, (s.row + row + q / r) * c.H * c.P + (g * r + q % r) * c.P, out + q * P, c.P);
  }
}

inline void attention(Pool& pool, const AttentionCall& c) {
  const int64_t stride = c.G * c.P, width = (c.H + 2 * c.G) * c.P;
  std::vector<Sequence> sequences(c.B);
  int64_t row = 0;
  for (int64_t b = 0; b < c.B; b++) {
    const int64_t* s = c.sequences + 3 * b;
    sequences[b] = {c.tables + s[0] * c.table_stride, s[1], s[2], row};
    row += s[2];
  }

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
      const int64_t position = s.first + rows[t].i, at = s.pages[position / PAGE] * PAGE + position % PAGE;
      keep(c.pages.k, c.pages.k_scales, c.cache_type, at, line, c.G, c.P);
      keep(c.pages.v, c.pages.v_scales, c.cache_type, at, line + stride, c.G, c.P);
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
}

}  // namespace coterie::COTERIE_ISA
