// The kernels' whole interface: what a matrix is, and every entry point with its shapes. No torch, no Python.
//
// Shapes: T rows (tokens), N outputs and K inputs of a matrix (y = x W^T), D model width, F expert width, E experts,
// S slots (experts of a token), H query heads, G key/value heads, P head width, B sequences, L new rows of one.
//
// The promise: a row's results have the same bits whatever other rows are in the call, however many threads work, and
// however a prompt is cut into calls. Sums of integers are exact; a floating sum runs over k upwards, one lane an
// output.
#pragma once

#include <cstdint>

namespace coterie {

class Pool;

// Of activations, norms, keys and values; I8 only of the last two, with a float32 scale for each key of each head.
enum class Type : int { F32 = 0, F16 = 1, BF16 = 2, I8 = 3 };

enum class Scales : int { F16 = 0, F16_OFFSET = 1, SUPER = 2, SUPER_MIN = 3, SUPER_NIBBLE = 4 };

// Of weights that are packed as docs/packed.md states: `bits` an unsigned value, one scale for `unit` · `group_units`
// of them. All zero for weights that are plain rows.
struct Format {
  int bits = 0, unit = 0, group_units = 0;
  Scales scales = Scales::F16;
};

enum class Layout : int {
  ROWS_F32 = 0,
  ROWS_F16 = 1,
  ROWS_BF16 = 2,  // row-major numbers
  PACKED = 3,     // panels of 16 outputs, interleaved
  GGML = 4,       // rows of a GGUF file's blocks; `format` says which
};

struct Matrix {
  Layout layout = Layout::ROWS_F32;
  Format format;
  int64_t N = 0, K = 0;
  const uint8_t* data = nullptr;
  // Rows of gate and up: their panels alternate. PACKED ones lie so; of other layouts `half` is F, gate's rows are at
  // `data` and up's at `up`.
  int64_t half = 0;
  const uint8_t* up = nullptr;
  int64_t head_rows = 0;  // GGML: the file interleaves the rows of heads of so many (0, P/2, 1, P/2 + 1 ...)
};

struct Norm {  // RMSNorm of each row before a product; weight null: none
  const void* weight = nullptr;
  Type type = Type::F32;
  float eps = 0;
};

// out [T, sum of N] = norm(x) [T, K] · matrices^T, side by side
struct LinearCall {
  const void* x;
  Type x_type;
  int64_t T, x_stride;
  Norm norm;
  const Matrix* matrices;
  int n_matrices;
  void* out;
  Type out_type;
  int64_t out_stride;
};

// out [T, D] = sum over slots 0..S-1, in that order, of weight · down(silu(gate(x)) · up(x)); an id of -1 adds nothing
struct ExpertsCall {
  const void* x;
  Type type;
  int64_t T, D, F;
  const int32_t* ids;
  const float* weights;
  int64_t S;  // [T, S]
  const Matrix* gate_up;
  const Matrix* down;
  int64_t E;  // one of each an expert
  void* out;
};

constexpr int64_t PAGE = 64;  // positions

struct Pages {  // keys and values [pages, PAGE, G, P] of a layer; scales [pages, PAGE, G] where they are I8
  void* k = nullptr;
  void* v = nullptr;
  float* k_scales = nullptr;
  float* v_scales = nullptr;
};

// qkv [T, (H + 2G)·P] -> out [T, H·P]. Queries and keys are turned by cos, sin [T, P] (sin signed for half-split rows).
// Position p of a slot lies in page tables[slot, p / PAGE], where new keys and values go before any query looks; a
// query at position i sees keys i - window + 1 .. i.
struct AttentionCall {
  const void* qkv;
  Type type;
  int64_t T, H, G, P;
  const float* cos;
  const float* sin;
  Pages pages;
  Type cache_type;
  const int32_t* tables;  // [slots, table_stride]
  int64_t table_stride;
  const int64_t* sequences;
  int64_t B;       // [B, 3]: slot, first position, number of new rows
  int64_t window;  // 0: none
  float scale;
  void* out;
};

// logits [T, E] = x · weight^T in float32; the S largest, lowest id first among equals; weights: softmax over those S,
// or over all E where `renormalise` is false. A row takes K slots, the rest are -1 with weight 0; a row with an edit
// takes what the edit says, and chooses and weighs logits + bias.
struct RouteEdits {
  const int32_t* of_row = nullptr;  // [T]: which edit, or -1; null: no row has any
  const float* bias = nullptr;      // [edits, E], an edit every `stride` numbers
  int64_t stride = 0;
  const int32_t* top_k = nullptr;  // [edits]
};
struct RouteCall {
  const void* x;
  Type type;
  int64_t T, D;
  const float* weight;
  int64_t E, S, K;
  bool renormalise;
  RouteEdits edits;
  int32_t* ids;
  float* weights;  // null: not asked for
  float* logits;
};

struct NormCall {
  const void* x;
  Type type;
  int64_t T, D;
  Norm norm;
  void* out;
};
struct SwigluCall {
  const void* x;
  Type type;
  int64_t T, F;
  void* out;
};  // out [T, F] = silu(x[:, :F]) · x[:, F:]
struct AddCall {
  const void* a;
  const void* b;
  Type type;
  int64_t n;
  void* out;
};
// the largest number of each row, the first place where several are; NaN counts as the largest
struct ArgmaxCall {
  const void* x;
  Type type;
  int64_t T, V;
  int64_t* ids;
  float* values;
};
struct EmbedCall {
  const int64_t* ids;
  int64_t T;
  Matrix table;
  void* out;
  Type type;
};

// bf16 rows meet bf16 weights in the processor's own instruction; false, or rows of another type: both as float32.
extern bool use_bf16_instructions;

struct Kernels {  // one table an instruction set
  void (*linear)(Pool&, const LinearCall&);
  void (*experts)(Pool&, const ExpertsCall&);
  void (*attention)(Pool&, const AttentionCall&);
  void (*route)(Pool&, const RouteCall&);
  void (*norm)(Pool&, const NormCall&);
  void (*swiglu)(Pool&, const SwigluCall&);
  void (*add)(Pool&, const AddCall&);
  void (*embed)(Pool&, const EmbedCall&);
  void (*argmax)(Pool&, const ArgmaxCall&);
};

// A sparse decoder's layers in one call, for rows x [T, D] that come from the embedding and are overwritten. Routings
// of all layers: ids, weights [layers, T, S], logits [layers, T, E].
struct LayerWeights {
  Norm attention_norm, moe_norm;
  const Matrix* qkv;
  int n_qkv;
  const Matrix* o;
  int n_o;
  const float* router;
  int64_t E, K;
  bool renormalise;
  const Matrix* gate_up;
  const Matrix* down;
  int64_t F;
  Pages pages;
};
struct DecoderCall {
  void* x;
  Type type;
  int64_t T, D;
  const LayerWeights* layers;
  int64_t n_layers;
  AttentionCall attention;  // all but qkv, pages and out
  int64_t S;                // slots of a row
  RouteEdits edits;         // of layer 0; those of layer l are E · l further on
  int32_t* ids;
  float* weights;
  float* logits;
};
void decode(const Kernels&, Pool&, const DecoderCall&);

// cos and signed sin [T, P] for rows at positions [T]; frequencies [P], those of the upper half repeating the lower's.
void rotary(const int64_t* positions, int64_t T, const float* frequencies, int64_t P, float* cos, float* sin);

extern const Kernels kernels_portable;
#if defined(COTERIE_X86)
extern const Kernels kernels_avx2, kernels_avx512;  // the last for products of bf16, if `use_bf16_instructions`
#elif defined(COTERIE_ARM)
extern const Kernels kernels_neon;
#endif

// Bytes of a packed matrix [N, K].
int64_t packed_bytes(const Format&, int64_t N, int64_t K);

// Rows of GGUF blocks into the packed layout, losslessly: `from` is GGML, `out` has room for the packed bytes. Returns
// how many f16 scales are NaN or infinite.
int64_t repack(Pool&, const Matrix& from, uint8_t* out);
// One block of n inputs from k on of one panel of it.
int64_t repack_block(const Matrix& from, int64_t panel, int64_t k, int64_t n, uint8_t* out);

}  // namespace coterie
