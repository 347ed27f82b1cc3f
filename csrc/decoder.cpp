#include <cmath>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace coterie {

void decode(const Kernels& kernels, Pool& pool, const DecoderCall& call) {
  const AttentionCall& a = call.attention;
  const int64_t size = call.type == Type::F32 ? 4 : 2, width = (a.H + 2 * a.G) * a.P, inner = a.H * a.P;
  uint8_t* qkv = pool.scratch(0, Pool::PASS, call.T * (width + inner + 2 * call.D) * size + 256);
  uint8_t* mixed = qkv + call.T * width * size;
  uint8_t* y = mixed + call.T * inner * size;
  uint8_t* normed = y + call.T * call.D * size;
  for (int64_t l = 0; l < call.n_layers; l++) {
    const LayerWeights& w = call.layers[l];
    kernels.linear(pool, {call.x, call.type, call.T, call.D, w.attention_norm, w.qkv, w.n_qkv, qkv, call.type, width});
    AttentionCall attention = a;
    attention.qkv = qkv, attention.pages = w.pages, attention.out = mixed;
    kernels.attention(pool, attention);
    kernels.linear(pool, {mixed, call.type, call.T, inner, {}, w.o, w.n_o, y, call.type, call.D});
    kernels.add(pool, {call.x, y, call.type, call.T * call.D, call.x});
    kernels.norm(pool, {call.x, call.type, call.T, call.D, w.moe_norm, normed});
    int32_t* ids = call.ids + l * call.T * call.S;
    float* weights = call.weights + l * call.T * call.S;
    float* logits = call.logits + l * call.T * w.E;
    RouteEdits edits = call.edits;
    if (edits.of_row) edits.bias += l * w.E;
    kernels.route(pool, {normed, call.type, call.T, call.D, w.router, w.E, call.S, w.K, w.renormalise, edits, ids,
                         weights, logits});
    kernels.experts(pool, {normed, call.type, call.T, call.D, w.F, ids, weights, call.S, w.gate_up, w.down, w.E, y});
    kernels.add(pool, {call.x, y, call.type, call.T * call.D, call.x});
  }
}

void rotary(const int64_t* positions, int64_t T, const float* frequencies, int64_t P, float* cos, float* sin) {
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0, half = P / 2; i < half; i++) {
      const float angle = (float)positions[t] * frequencies[i];
      float *c = cos + t * P + i, *s = sin + t * P + i;
      c[0] = c[half] = std::cos(angle);
      s[half] = std::sin(angle);
      s[0] = -s[half];
    }
}

}  // namespace coterie
