// Rows of GGUF blocks into panels. Nothing is rounded: the same integers and scales, in another order.
//
// The block types are ggml's: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 of 32 weights, Q2_K .. Q6_K of 256. The (bits, unit, scales)
// of a Format say which one is meant.
#include <cstring>

#include "packed.h"
#include "threads.h"

namespace coterie {

namespace {

struct Row {  // up to 256 weights of one output
  uint8_t u[256];
  uint16_t d[8], offset[8];        // f16: of 32 each; of a super block d[0] and offset[0] (dmin)
  uint8_t scale[16], minimum[16];  // of a super block's units
};

using Quad = uint32_t __attribute__((vector_size(16)));

// out[j·16 .. j·16 + 15] as bytes = bytes 4j .. 4j + 3 of each of 16 sources, for j = 0..3: sources of 16 bytes
inline void interleave(const uint8_t* const sources[PANEL], int64_t at, uint8_t* out) {
  for (int c = 0; c < PANEL; c += 4) {
    Quad q[4];
    for (int i = 0; i < 4; i++) std::memcpy(&q[i], sources[c + i] + at, 16);
    const Quad a = __builtin_shufflevector(q[0], q[1], 0, 4, 1, 5), b = __builtin_shufflevector(q[0], q[1], 2, 6, 3, 7);
    const Quad d = __builtin_shufflevector(q[2], q[3], 0, 4, 1, 5), e = __builtin_shufflevector(q[2], q[3], 2, 6, 3, 7);
    const Quad rows[4] = {__builtin_shufflevector(a, d, 0, 1, 4, 5), __builtin_shufflevector(a, d, 2, 3, 6, 7),
                          __builtin_shufflevector(b, e, 0, 1, 4, 5), __builtin_shufflevector(b, e, 2, 3, 6, 7)};
    for (int j = 0; j < 4; j++) std::memcpy(out + j * 64 + c * 4, &rows[j], 16);
  }
}

uint16_t read16(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, 2);
  return x;
}

int64_t ggml_block_bytes(const Format& f) {
  if (!is_super(f)) return (f.bits == 8 ? 34 : 2 + 4 * f.bits) + (f.scales == Scales::F16_OFFSET ? 2 : 0);
  const int64_t bytes[] = {0, 0, 84, 110, 144, 176, 210};
  return bytes[f.bits];
}

void unpack_small(const Format& f, const uint8_t* p, int i, Row& row) {  // block i of 32
  row.d[i] = read16(p), p += 2;
  if (f.scales == Scales::F16_OFFSET) row.offset[i] = read16(p), p += 2;
  uint8_t* u = row.u + 32 * i;
  if (f.bits == 8) {
    for (int l = 0; l < 32; l++) u[l] = p[l] ^ 0x80;
    return;
  }
  uint32_t high = 0;
  if (f.bits == 5) std::memcpy(&high, p, 4), p += 4;
  for (int l = 0; l < 16; l++) u[l] = p[l] & 15, u[16 + l] = p[l] >> 4;
  if (f.bits == 5)
    for (int l = 0; l < 32; l++) u[l] |= (high >> l & 1) << 4;
}

void unpack_k_scales(const uint8_t* s, Row& row) {  // Q4_K and Q5_K: eight 6-bit scales and minima in 12 bytes
  for (int j = 0; j < 4; j++) {
    row.scale[j] = s[j] & 63, row.minimum[j] = s[j + 4] & 63;
    row.scale[j + 4] = (s[j + 8] & 15) | (s[j] >> 6) << 4, row.minimum[j + 4] = s[j + 8] >> 4 | (s[j + 4] >> 6) << 4;
  }
}

void unpack_super(const Format& f, const uint8_t* p, Row& row) {
  uint8_t* u = row.u;
  switch (f.bits) {
    case 2:
      for (int i = 0; i < 16; i++) row.scale[i] = p[i];  // scale and minimum, as the packed byte has them
      for (int h = 0; h < 2; h++)
        for (int j = 0; j < 4; j++)
          for (int l = 0; l < 32; l++) u[h * 128 + j * 32 + l] = p[16 + 32 * h + l] >> 2 * j & 3;
      row.d[0] = read16(p + 80), row.offset[0] = read16(p + 82);
      break;
    case 3:
      for (int i = 0; i < 16; i++) {
        const int low = i < 8 ? p[96 + i] & 15 : p[88 + i] >> 4, high = p[104 + i % 4] >> 2 * (i / 4) & 3;
        row.scale[i] = (uint8_t)(int8_t)((low | high << 4) - 32);
      }
      for (int h = 0; h < 2; h++)
        for (int j = 0; j < 4; j++)
          for (int l = 0; l < 32; l++)
            u[h * 128 + j * 32 + l] = (p[32 + 32 * h + l] >> 2 * j & 3) | (p[l] >> (4 * h + j) & 1) << 2;
      row.d[0] = read16(p + 108), row.offset[0] = 0;
      break;
    case 4:
    case 5: {
      row.d[0] = read16(p), row.offset[0] = read16(p + 2);
      unpack_k_scales(p + 4, row);
      const uint8_t* values = p + (f.bits == 5 ? 48 : 16);
      for (int c = 0; c < 4; c++)
        for (int l = 0; l < 32; l++)
          u[64 * c + l] = values[32 * c + l] & 15, u[64 * c + 32 + l] = values[32 * c + l] >> 4;
      if (f.bits == 5)
        for (int g = 0; g < 8; g++)
          for (int l = 0; l < 32; l++) u[32 * g + l] |= (p[16 + l] >> g & 1) << 4;
      break;
    }
    default:
      for (int h = 0; h < 2; h++)
        for (int l = 0; l < 32; l++) {
          const uint8_t *low = p + 64 * h, high = p[128 + 32 * h + l];
          uint8_t* out = u + 128 * h + l;
          out[0] = (low[l] & 15) | (high & 3) << 4, out[32] = (low[l + 32] & 15) | (high >> 2 & 3) << 4;
          out[64] = low[l] >> 4 | (high >> 4 & 3) << 4, out[96] = low[l + 32] >> 4 | (high >> 6 & 3) << 4;
        }
      std::memcpy(row.scale, p + 192, 16);
      row.d[0] = read16(p + 208), row.offset[0] = 0;
  }
}

bool is_bad(uint16_t half) { return (half & 0x7C00) == 0x7C00; }

int64_t put_scales(const Format& f, const BlockLayout& at, const Row& row, int column, int64_t n, uint8_t* out) {
  int64_t n_bad = 0;
  if (!is_super(f)) {
    const bool both = f.scales == Scales::F16_OFFSET;
    for (int64_t i = 0; i < n / 32; i++) {
      uint8_t* group = out + i * (both ? 64 : 32) + column * 2;
      std::memcpy(group, &row.d[i], 2);
      if (both) std::memcpy(group + 32, &row.offset[i], 2);
      n_bad += is_bad(row.d[i]) + (both && is_bad(row.offset[i]));
    }
    return n_bad;
  }
  std::memcpy(out + column * 2, &row.d[0], 2);
  std::memcpy(out + 32 + column * 2, &row.offset[0], 2);
  for (int64_t i = 0; i < n / f.unit; i++) {
    uint8_t* unit = out + at.scales + i * (f.scales == Scales::SUPER_MIN ? 32 : 16) + column;
    unit[0] = row.scale[i];
    if (f.scales == Scales::SUPER_MIN) unit[16] = row.minimum[i];
  }
  return is_bad(row.d[0]) + is_bad(row.offset[0]);
}

void put_values(const Format& f, const BlockLayout& at, const Row* rows, int64_t n, uint8_t* out) {
  for (int64_t s = 0; s < n / SPAN; s++) {
    alignas(64) uint8_t v[512], t[512];
    const uint8_t* values[PANEL];
    for (int column = 0; column < PANEL; column++) values[column] = rows[column].u;
    interleave(values, s * SPAN, v);
    interleave(values, s * SPAN + 16, v + 256);
    if (f.bits == 8)
      std::memcpy(out + at.plane4 + s * 512, v, 512);
    else if (f.bits >= 4)
      for (int i = 0; i < 256; i++) out[at.plane4 + s * 256 + i] = (v[i] & 15) | (v[256 + i] & 15) << 4;
    if (f.bits == 2 || f.bits == 3 || f.bits == 6) {
      for (int i = 0; i < 512; i++) t[i] = f.bits == 6 ? v[i] >> 4 : v[i] & 3;
      for (int i = 0; i < 128; i++)
        out[at.plane2 + s * 128 + i] = t[i] | t[128 + i] << 2 | t[256 + i] << 4 | t[384 + i] << 6;
    }
    if (f.bits == 3 || f.bits == 5)
      for (int i = 0; i < 64; i++) {
        uint8_t byte = 0;
        for (int b = 0; b < 8; b++) byte |= (v[8 * i + b] >> (f.bits - 1)) << b;
        out[at.plane1 + s * 64 + i] = byte;
      }
  }
}

}  // namespace

bool use_bf16_instructions = false;

int64_t packed_bytes(const Format& f, int64_t N, int64_t K) { return ceil_div(N, PANEL) * panel_bytes(f, K); }

int64_t repack_block(const Matrix& from, int64_t panel, int64_t k, int64_t n, uint8_t* out) {
  const Format& f = from.format;
  const int64_t size = ggml_block_bytes(f), weights = is_super(f) ? 256 : 32, row_bytes = from.K / weights * size;
  const int64_t first = from.half ? panel / 2 * PANEL : panel * PANEL, end = from.half ? from.half : from.N;
  const uint8_t* base = from.half && panel % 2 ? from.up : from.data;
  const uint8_t* sources[PANEL];
  for (int64_t i = 0; i < PANEL; i++) {
    int64_t row = first + i;
    if (from.head_rows) {
      const int64_t half = from.head_rows / 2, in_head = row % from.head_rows;
      row += (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1) - in_head;
    }
    sources[i] = first + i < end ? base + row * row_bytes + k / weights * size : nullptr;
  }
  const BlockLayout at(f, n);
  int64_t n_bad = 0;
  if (f.bits == 4 && f.scales == Scales::F16 && sources[PANEL - 1]) {  // Q4_0's nibbles pair up as ours do
    for (int64_t s = 0; s < n / SPAN; s++) {
      for (int64_t column = 0; column < PANEL; column++) {
        const uint16_t scale = read16(sources[column] + s * 18);
        std::memcpy(out + s * 32 + column * 2, &scale, 2);
        n_bad += is_bad(scale);
      }
      interleave(sources, s * 18 + 2, out + at.plane4 + s * 256);
    }
    return n_bad;
  }
  static thread_local Row rows[PANEL];
  for (int column = 0; column < PANEL; column++) {
    Row& row = rows[column];
    if (!sources[column])
      std::memset(&row, 0, sizeof row);
    else if (is_super(f))
      unpack_super(f, sources[column], row);
    else
      for (int64_t i = 0; i < n / 32; i++) unpack_small(f, sources[column] + i * size, (int)i, row);
    n_bad += put_scales(f, at, row, column, n, out);
  }
  put_values(f, at, rows, n, out);
  return n_bad;
}

int64_t repack(Pool& pool, const Matrix& from, uint8_t* out) {
  const int64_t n_panels = from.half ? 2 * ceil_div(from.half, PANEL) : ceil_div(from.N, PANEL);
  const int64_t size = panel_bytes(from.format, from.K), block = BlockLayout(from.format, BLOCK).bytes;
  std::atomic<int64_t> n_bad{0};
  pool.run(n_panels, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; p++)
      for (int64_t k = 0; k < from.K; k += BLOCK)
        n_bad += repack_block(from, p, k, from.K - k < BLOCK ? from.K - k : BLOCK, out + p * size + k / BLOCK * block);
  });
  return n_bad;
}

}  // namespace coterie
