// Where things lie in a packed matrix: docs/packed.md as arithmetic.
//
// A panel is 16 outputs; a block 256 inputs of a panel (the last one shorter), a span 32 of them. Worked example, 4
// bits, one f16 scale for 32, K = 4096: a block is 8 · 32 bytes of scales and 8 · 256 of nibbles = 2304 bytes, a panel
// 16 blocks.
#pragma once

#include "kernels.h"

namespace coterie {

constexpr int64_t PANEL = 16, BLOCK = 256, SPAN = 32;

inline bool is_super(const Format& f) { return f.scales >= Scales::SUPER; }
inline bool has_offset(const Format& f) { return f.scales != Scales::F16 && f.scales != Scales::SUPER; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct BlockLayout {  // byte offsets within a block of n inputs
  int64_t scales, plane4, plane2, plane1, bytes;
  BlockLayout(const Format& f, int64_t n) {
    const int64_t groups = ceil_div(n, f.unit * f.group_units);
    const int64_t per_group[] = {32, 64, 16, 32, 16};
    scales = is_super(f) ? 64 : 0;
    plane4 = scales + groups * per_group[(int)f.scales];
    plane2 = plane4 + (f.bits == 8 ? 16 * n : f.bits >= 4 ? 8 * n : 0);
    plane1 = plane2 + (f.bits == 2 || f.bits == 3 || f.bits == 6 ? 4 * n : 0);
    bytes = plane1 + (f.bits == 3 || f.bits == 5 ? 2 * n : 0);
  }
};

inline int64_t panel_bytes(const Format& f, int64_t K) {
  const int64_t rest = K % BLOCK;
  return K / BLOCK * BlockLayout(f, BLOCK).bytes + (rest ? BlockLayout(f, rest).bytes : 0);
}

}  // namespace coterie
