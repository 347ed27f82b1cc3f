// The kernels of training: what torch does slowly between its matrix products. Every entry point with its shapes.
//
// Shapes as in kernels.h; n pairs (token, slot) sorted by expert, C keys. Matrices are contiguous; sums are float32.
// Results have the same bits with any number of threads, so that a run that was stopped goes on as if it had not been.
#pragma once

#include "kernels.h"

namespace coterie {

// out [n, F] = silu(gate) · up of h [n, 2F], the gate columns first
struct SwigluForwardCall {
  const void* h;
  Type type;
  int64_t n, F;
  void* out;
};
// From h [n, 2F], the pairs' weights [n] and grad [n, F], the gradient of silu(gate) · up before the weight:
// grad_h [n, 2F] with the weight; grad becomes weight · silu(gate) · up; grad_weights [n].
struct SwigluBackwardCall {
  const void* h;
  Type type;
  int64_t n, F;
  const float* weights;
  void* grad;
  void* grad_h;
  float* grad_weights;
};
// The sparse block in bf16, D and F even. Forward, from x [T, D] and the token of each of N pairs sorted by expert:
// h [N, 2F] = x · gate_upᵀ of its token, y [N, D] = (silu(gate) · up) · downᵀ, where gate_up is [E, 2F, D] and down
// [E, D, F]. Backward, from x, h, the gradient grad [T, D] of Σ weight · y and the pairs' weights [N]: grad_x [N, D],
// dots [N] (the weights' gradients), grad_gate_up, grad_down; those that are null are left out.
struct SparseCall {
  int64_t D, F, E;
  const int64_t *tokens, *counts;  // [N]; [E], which add up to N
  const uint16_t *x, *gate_up, *down;
  uint16_t *h, *y;
  uint32_t* scratch;  // `sparse_scratch` of them
  const uint16_t* grad;
  const float* weights;
  uint16_t* grad_x;
  float* dots;
  uint16_t *grad_gate_up, *grad_down;
};
// Products of bf16 matrices whose right side lies in strips (training_products.h). `out` has ⌈columns of the right side /
// 32⌉ · 32 · ⌈inner / 2⌉ units: of x [n, K], K even, whose rows are those columns, or whose columns are.
struct StripsCall {
  const uint16_t* x;
  int64_t n, K;
  bool of_rows;
  uint32_t* out;
};
// out [T, N] = x [T, K] · right side, K even
struct ProductCall {
  const uint16_t* x;
  int64_t T, K, N;
  const uint32_t* strips;
  uint16_t* out;
};
// out [M, N] = aᵀ · b of a [n, M] and b [n, N]; or added to the float32 `sums`, if there are any
struct TransposedProductCall {
  const uint16_t *a, *b;
  int64_t n, M, N;
  uint16_t* out;
  float* sums;
};
// out [T, D] = sum over slots, in order, of weight · rows[place]; a place of -1 adds nothing; weights null: all 1
struct CombineCall {
  const void* rows;
  Type type;
  int64_t T, S, D;
  const int64_t* places;  // [T, S]
  const float* weights;
  void* out;
};
// out [T, D] = weight · x / sqrt(mean(x²) + eps), the quotient rounded to x's type first; inverse [T]: 1 / that root
struct NormForwardCall {
  const void* x;
  Type type;
  int64_t T, D;
  const void* weight;
  float eps;
  void* out;
  float* inverse;
};
// grad_x [T, D], grad_weight [D] in float32
struct NormBackwardCall {
  const void* x;
  Type type;
  int64_t T, D;
  const void* weight;
  const float* inverse;
  const void* grad;
  void* grad_x;
  float* grad_weight;
};
// Causal self-attention of qkv [B·S, H + 2G, P], whose queries and keys are turned by cos, sin [B·S, P]. If there
// are documents [B, S] (numbered as floats), key j of query i counts where both are of one. Forward: out [B·S, H, P] and logs [B, H, S], log2 of the sum of 2^(score · log2(e)).
// Backward: from those and grad [B·S, H, P] of out, grad_qkv. P is even and at most 256.
struct CausalCall {
  const void* qkv;
  Type type;
  int64_t B, S, H, G, P;
  const float* cos;
  const float* sin;
  const float* documents;
  void* out;
  float* logs;
  const void* grad;
  void* grad_qkv;
};
// logits [T, V] become their gradient, softmax - onehot; losses [T]; a target below 0: both 0
struct CrossEntropyCall {
  void* logits;
  Type type;
  int64_t T, V;
  const int64_t* targets;
  float* losses;
};
// Decoupled weight decay (arXiv 1711.05101) of n weights: with g = scale · grad, keep = 1 - rate · decay,
//   mean += (g - mean)(1 - beta1), square = beta2 · square + (1 - beta2) g²,
//   weight = keep · weight - step · mean / (sqrt(square) / root + eps); rounded to `out` too, if there is one.
struct AdamCall {
  int64_t n;
  float* weight;
  const void* grad;
  Type grad_type;
  float* mean;
  float* square;
  void* out;
  Type out_type;
  float scale, keep, beta1, beta2, step, root, eps;
};
struct SquareSumCall {
  const void* x;
  Type type;
  int64_t n;
  double* out;
};

// From the gradient of logits [T, E] = x · weightᵀ those of x, in its type, and of the weight [E, D]
struct RouteBackwardCall {
  const void* x;
  Type type;
  int64_t T, D, E;
  const float *weight, *grad;
  void* grad_x;
  float* grad_weight;
};

struct TrainingKernels {  // one table an instruction set
  void (*swiglu_forward)(Pool&, const SwigluForwardCall&);
  void (*swiglu_backward)(Pool&, const SwigluBackwardCall&);
  void (*combine)(Pool&, const CombineCall&);
  void (*norm_forward)(Pool&, const NormForwardCall&);
  void (*norm_backward)(Pool&, const NormBackwardCall&);
  void (*causal_forward)(Pool&, const CausalCall&);
  void (*causal_backward)(Pool&, const CausalCall&);
  void (*cross_entropy)(Pool&, const CrossEntropyCall&);
  void (*adam)(Pool&, const AdamCall&);
  void (*square_sum)(Pool&, const SquareSumCall&);
  void (*route)(Pool&, const RouteCall&);
  void (*route_backward)(Pool&, const RouteBackwardCall&);
  // Only where the processor multiplies bf16 (`use_bf16_instructions`), else null.
  void (*strips)(Pool&, const StripsCall&);
  void (*product)(Pool&, const ProductCall&);
  void (*transposed_product)(Pool&, const TransposedProductCall&);
  void (*sparse_forward)(Pool&, const SparseCall&);
  void (*sparse_backward)(Pool&, const SparseCall&);
  int64_t (*sparse_scratch)(const SparseCall&, bool is_backward);
};

extern const TrainingKernels training_portable;
#if defined(COTERIE_X86)
extern const TrainingKernels training_avx2, training_avx512;
#elif defined(COTERIE_ARM)
extern const TrainingKernels training_neon;
#endif

// Pairs sorted by expert, stably: pairs[i] the pair (token · S + slot) at place i, tokens[i] its token, places [T · S]
// where each pair went (-1: id -1), counts [E]. Returns how many places there are; -1 where an id is not below E.
int64_t sort_pairs(const int32_t* ids, int64_t T, int64_t S, int64_t E, int64_t* pairs, int64_t* tokens,
                   int64_t* places, int64_t* counts);

}  // namespace coterie
