// One small vector of floats per instruction set: W lanes, the operations the kernels are written in, nothing else.
//
// `F` is W floats, `I` W int32, `B` 4·W bytes. Every multiplication that is followed by an addition is an explicit
// `fma` (the files are compiled with -ffp-contract=off), so a sum has the same bits whichever template computed it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(COTERIE_AVX512) || defined(COTERIE_AVX2)
#include <immintrin.h>
#elif defined(COTERIE_NEON)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))
// A loop with sums in all registers: within another function, or as a copy for constant arguments, GCC 12 takes other
// values for these registers and keeps the sums in memory, at a third of the speed.
#if defined(__clang__)
#define ALONE inline __attribute__((noinline))
#else
#define ALONE inline __attribute__((noinline, noclone))
#endif

namespace coterie::COTERIE_ISA {

// body(0) .. body(N - 1) with indices that the compiler knows, which keeps arrays of vectors in registers.
template <int N, class Body>
INLINE void unroll(Body&& body) {
  [&]<int... J>(std::integer_sequence<int, J...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, J>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

#if defined(COTERIE_AVX512)

constexpr int W = 16;
constexpr bool TAKES_SIGNED_BYTES = false;  // of `dot` at 8 bits: it multiplies w - 128
using F = __m512;
using I = __m512i;
using B = __m512i;

INLINE F zero() { return _mm512_setzero_ps(); }
INLINE F set1(float x) { return _mm512_set1_ps(x); }
INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
INLINE F abs(F a) { return _mm512_abs_ps(a); }
INLINE F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F less_or_zero(F a, F b, F x) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x); }
INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
INLINE F less_or(F a, F b, F x, F y) { return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x); }
INLINE F times_power_of_two(F a, F n) { return _mm512_scalef_ps(a, n); }
INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }
INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
INLINE void store_int(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
INLINE F load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
INLINE F load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
INLINE void store_f16(uint16_t* p, F x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, 0)); }
INLINE void store_bf16(uint16_t* p, F x) {
  const I bits = _mm512_castps_si512(x);
  const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const I rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
INLINE F load_i8(const uint8_t* p) { return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }
INLINE F load_u8(const uint8_t* p) { return to_float(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))); }

INLINE B load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
template <int SHIFT, int MASK>
INLINE B field(B v) {
  if constexpr (SHIFT > 0) v = _mm512_srli_epi16(v, SHIFT);
  return _mm512_and_si512(v, _mm512_set1_epi8(MASK));
}
template <int SHIFT>
INLINE B join(B low, B high) {
  return _mm512_or_si512(low, _mm512_slli_epi16(high, SHIFT));
}
template <int SHIFT>
INLINE B join_bits(B low, const uint8_t* bits) {  // bit i of `bits` goes to byte i
  uint64_t mask;
  std::memcpy(&mask, bits, 8);
  return _mm512_mask_add_epi8(low, (__mmask64)mask, low, _mm512_set1_epi8(1 << SHIFT));
}
// acc + the sum over four bytes of weights (unsigned) times the four signed bytes at x, in every lane
template <int BITS>
INLINE I dot(I acc, B weights, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return _mm512_dpbusd_epi32(acc, weights, _mm512_set1_epi32(four));
}
template <int SHIFT>
INLINE I start(const int32_t* sum) {
  const I all = _mm512_set1_epi32(*sum);
  return SHIFT > 0 ? _mm512_slli_epi32(all, SHIFT) : all;
}
INLINE I add_255_times(I a, I b) { return _mm512_add_epi32(a, _mm512_sub_epi32(_mm512_slli_epi32(b, 8), b)); }
INLINE I int_zero() { return _mm512_setzero_si512(); }
INLINE float sum_lanes(F a) {
  const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
INLINE float max_lanes(F a) { return _mm512_reduce_max_ps(a); }

#elif defined(COTERIE_AVX2)

constexpr int W = 8;
constexpr bool TAKES_SIGNED_BYTES = true;
using F = __m256;
using I = __m256i;
using B = __m256i;

INLINE F zero() { return _mm256_setzero_ps(); }
INLINE F set1(float x) { return _mm256_set1_ps(x); }
INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
INLINE F abs(F a) { return _mm256_andnot_ps(set1(-0.0f), a); }
INLINE F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE F less_or_zero(F a, F b, F x) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), x); }
INLINE F sqrt(F a) { return _mm256_sqrt_ps(a); }
INLINE F less_or(F a, F b, F x, F y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
INLINE I to_int(F a) { return _mm256_cvtps_epi32(a); }
INLINE F times_power_of_two(F a, F n) {
  const I exponent = _mm256_slli_epi32(_mm256_add_epi32(to_int(n), _mm256_set1_epi32(127)), 23);
  return mul(a, _mm256_castsi256_ps(exponent));
}
INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
INLINE void store_int(int32_t* p, I a) { _mm256_storeu_si256((__m256i*)p, a); }
INLINE F load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE F load_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
INLINE void store_f16(uint16_t* p, F x) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, 0)); }
INLINE void store_bf16(uint16_t* p, F x) {
  const I bits = _mm256_castps_si256(x);
  const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const I high = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128((__m128i*)p, packed);
}
INLINE F load_i8(const uint8_t* p) { return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
INLINE F load_u8(const uint8_t* p) { return to_float(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))); }

INLINE B load_bytes(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
template <int SHIFT, int MASK>
INLINE B field(B v) {
  if constexpr (SHIFT > 0) v = _mm256_srli_epi16(v, SHIFT);
  return _mm256_and_si256(v, _mm256_set1_epi8(MASK));
}
template <int SHIFT>
INLINE B join(B low, B high) {
  return _mm256_or_si256(low, _mm256_slli_epi16(high, SHIFT));
}
template <int SHIFT>
INLINE B join_bits(B low, const uint8_t* bits) {
  int32_t mask;
  std::memcpy(&mask, bits, 4);
  const B bytes = _mm256_shuffle_epi8(
      _mm256_set1_epi32(mask),
      _mm256_setr_epi64x(0x0000000000000000, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303));
  const B one = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
  const B is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, one), one);
  return _mm256_or_si256(low, _mm256_and_si256(is_set, _mm256_set1_epi8(1 << SHIFT)));
}
// `maddubs` adds two products in 16 bits, which 8-bit weights would overflow: those go as |w - 128| times x with w's
// sign
template <int BITS>
INLINE I dot(I acc, B weights, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  const B all = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
  if constexpr (BITS < 8) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, all), ones));
  } else {
    const B w = _mm256_xor_si256(weights, _mm256_set1_epi8((char)0x80));
    const B pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(w, w), _mm256_sign_epi8(all, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, ones));
  }
}
template <int SHIFT>
INLINE I start(const int32_t* sum) {
  const I all = _mm256_set1_epi32(*sum);
  return SHIFT > 0 ? _mm256_slli_epi32(all, SHIFT) : all;
}
INLINE I add_255_times(I a, I b) { return _mm256_add_epi32(a, _mm256_sub_epi32(_mm256_slli_epi32(b, 8), b)); }
INLINE I int_zero() { return _mm256_setzero_si256(); }
INLINE float sum_lanes(F a) {
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
INLINE float max_lanes(F a) {
  const __m128 c = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

#elif defined(COTERIE_NEON)

constexpr int W = 4;
constexpr bool TAKES_SIGNED_BYTES = true;
using F = float32x4_t;
using I = int32x4_t;
using B = uint8x16_t;

INLINE F zero() { return vdupq_n_f32(0); }
INLINE F set1(float x) { return vdupq_n_f32(x); }
INLINE F load(const float* p) { return vld1q_f32(p); }
INLINE void store(float* p, F x) { vst1q_f32(p, x); }
INLINE F add(F a, F b) { return vaddq_f32(a, b); }
INLINE F sub(F a, F b) { return vsubq_f32(a, b); }
INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
INLINE F div(F a, F b) { return vdivq_f32(a, b); }
INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
INLINE F max(F a, F b) { return vmaxq_f32(a, b); }
INLINE F min(F a, F b) { return vminq_f32(a, b); }
INLINE F abs(F a) { return vabsq_f32(a); }
INLINE F round(F a) { return vrndnq_f32(a); }
INLINE F less_or_zero(F a, F b, F x) {
  return vreinterpretq_f32_u32(vandq_u32(vcltq_f32(a, b), vreinterpretq_u32_f32(x)));
}
INLINE F sqrt(F a) { return vsqrtq_f32(a); }
INLINE F less_or(F a, F b, F x, F y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
INLINE I to_int(F a) { return vcvtnq_s32_f32(a); }
INLINE F times_power_of_two(F a, F n) {
  return mul(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(to_int(n), vdupq_n_s32(127)), 23)));
}
INLINE F to_float(I a) { return vcvtq_f32_s32(a); }
INLINE void store_int(int32_t* p, I a) { vst1q_s32(p, a); }
INLINE F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
INLINE void store_f16(uint16_t* p, F x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
INLINE void store_bf16(uint16_t* p, F x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  vst1_u16(p, vshrn_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd), 16));
}
INLINE F load_i8(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return to_float(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
INLINE F load_u8(const uint8_t* p) {
  uint32_t four;
  std::memcpy(&four, p, 4);
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
}

INLINE B load_bytes(const uint8_t* p) { return vld1q_u8(p); }
template <int SHIFT, int MASK>
INLINE B field(B v) {
  if constexpr (SHIFT > 0) v = vshrq_n_u8(v, SHIFT);
  return vandq_u8(v, vdupq_n_u8(MASK));
}
template <int SHIFT>
INLINE B join(B low, B high) {
  return vorrq_u8(low, vshlq_n_u8(high, SHIFT));
}
template <int SHIFT>
INLINE B join_bits(B low, const uint8_t* bits) {
  const uint8x16_t bytes = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
  const uint8x8_t one = vcreate_u8(0x8040201008040201ULL);
  const uint8x16_t is_set = vtstq_u8(bytes, vcombine_u8(one, one));
  return vorrq_u8(low, vandq_u8(is_set, vdupq_n_u8(1 << SHIFT)));
}
// the instruction multiplies signed bytes: 8-bit weights go as w - 128, and their `start` without that shift
template <int BITS>
INLINE I dot(I acc, B weights, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  if constexpr (BITS == 8) weights = veorq_u8(weights, vdupq_n_u8(0x80));
  return vdotq_s32(acc, vreinterpretq_s8_u8(weights), vreinterpretq_s8_s32(vdupq_n_s32(four)));
}
template <int SHIFT>
INLINE I start(const int32_t* sum) {
  return vdupq_n_s32((int32_t)((uint32_t)*sum << SHIFT));
}
INLINE I add_255_times(I a, I b) { return vmlaq_n_s32(a, b, 255); }
INLINE I int_zero() { return vdupq_n_s32(0); }
INLINE float sum_lanes(F a) { return vaddvq_f32(a); }
INLINE float max_lanes(F a) { return vmaxvq_f32(a); }

#else  // portable: arrays that any compiler understands

constexpr int W = 4;
constexpr bool TAKES_SIGNED_BYTES = false;
struct F {
  float v[W];
};
struct I {
  int32_t v[W];
};
struct B {
  uint8_t v[4 * W];
};

#define EACH(T, expression)                            \
  T out;                                               \
  for (int i = 0; i < W; i++) out.v[i] = (expression); \
  return out
INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
  float value;
  if (exponent == 0) {
    value = (float)mantissa * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | mantissa << 13;
  std::memcpy(&value, &bits, 4);
  return value;
}
INLINE uint16_t float_to_half(float x) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = (bits >> 16) & 0x8000;
  const float magnitude = std::fabs(x);
  if (!(magnitude < 65520.0f)) return sign | (magnitude == magnitude ? 0x7C00 : 0x7E00);
  if (magnitude < 0x1p-14f) return sign | (uint16_t)std::nearbyintf(magnitude * 0x1p24f);
  bits &= 0x7FFFFFFF;
  const uint32_t rounded = bits + 0xFFF + ((bits >> 13) & 1);
  return sign | (uint16_t)((rounded >> 13) - (112 << 10));
}
INLINE F zero() { EACH(F, 0.0f); }
INLINE F set1(float x) { EACH(F, x); }
INLINE F load(const float* p) { EACH(F, p[i]); }
INLINE void store(float* p, F x) {
  for (int i = 0; i < W; i++) p[i] = x.v[i];
}
INLINE F add(F a, F b) { EACH(F, a.v[i] + b.v[i]); }
INLINE F sub(F a, F b) { EACH(F, a.v[i] - b.v[i]); }
INLINE F mul(F a, F b) { EACH(F, a.v[i] * b.v[i]); }
INLINE F div(F a, F b) { EACH(F, a.v[i] / b.v[i]); }
INLINE F fma(F a, F b, F c) { EACH(F, a.v[i] * b.v[i] + c.v[i]); }
INLINE F max(F a, F b) { EACH(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE F min(F a, F b) { EACH(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
INLINE F abs(F a) { EACH(F, std::fabs(a.v[i])); }
INLINE F round(F a) { EACH(F, std::nearbyintf(a.v[i])); }
INLINE F less_or_zero(F a, F b, F x) { EACH(F, a.v[i] < b.v[i] ? x.v[i] : 0.0f); }
INLINE F sqrt(F a) { EACH(F, std::sqrt(a.v[i])); }
INLINE F less_or(F a, F b, F x, F y) { EACH(F, a.v[i] < b.v[i] ? x.v[i] : y.v[i]); }
INLINE F times_power_of_two(F a, F n) { EACH(F, std::ldexp(a.v[i], (int)n.v[i])); }
INLINE I to_int(F a) { EACH(I, (int32_t)std::nearbyintf(a.v[i])); }
INLINE F to_float(I a) { EACH(F, (float)a.v[i]); }
INLINE void store_int(int32_t* p, I a) {
  for (int i = 0; i < W; i++) p[i] = a.v[i];
}
INLINE F load_f16(const uint16_t* p) { EACH(F, half_to_float(p[i])); }
INLINE F load_bf16(const uint16_t* p) {
  F out;
  for (int i = 0; i < W; i++) {
    const uint32_t bits = (uint32_t)p[i] << 16;
    std::memcpy(&out.v[i], &bits, 4);
  }
  return out;
}
INLINE void store_f16(uint16_t* p, F x) {
  for (int i = 0; i < W; i++) p[i] = float_to_half(x.v[i]);
}
INLINE void store_bf16(uint16_t* p, F x) {
  for (int i = 0; i < W; i++) {
    uint32_t bits;
    std::memcpy(&bits, &x.v[i], 4);
    p[i] = (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  }
}
INLINE F load_i8(const uint8_t* p) { EACH(F, (float)(int8_t)p[i]); }
INLINE F load_u8(const uint8_t* p) { EACH(F, (float)p[i]); }

INLINE B load_bytes(const uint8_t* p) {
  B out;
  std::memcpy(out.v, p, 4 * W);
  return out;
}
template <int SHIFT, int MASK>
INLINE B field(B v) {
  for (int i = 0; i < 4 * W; i++) v.v[i] = (v.v[i] >> SHIFT) & MASK;
  return v;
}
template <int SHIFT>
INLINE B join(B low, B high) {
  for (int i = 0; i < 4 * W; i++) low.v[i] |= (uint8_t)(high.v[i] << SHIFT);
  return low;
}
template <int SHIFT>
INLINE B join_bits(B low, const uint8_t* bits) {
  for (int i = 0; i < 4 * W; i++) low.v[i] |= (uint8_t)(((bits[i / 8] >> (i % 8)) & 1) << SHIFT);
  return low;
}
template <int BITS>
INLINE I dot(I acc, B weights, const int8_t* x) {
  for (int i = 0; i < W; i++)
    for (int k = 0; k < 4; k++) acc.v[i] += (int32_t)weights.v[4 * i + k] * x[k];
  return acc;
}
template <int SHIFT>
INLINE I start(const int32_t* sum) {
  EACH(I, (int32_t)((uint32_t)*sum << SHIFT));
}
INLINE I add_255_times(I a, I b) { EACH(I, a.v[i] + 255 * b.v[i]); }
INLINE I int_zero() { EACH(I, 0); }
INLINE float sum_lanes(F a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
INLINE float max_lanes(F a) { return std::fmax(std::fmax(a.v[0], a.v[1]), std::fmax(a.v[2], a.v[3])); }
#undef EACH

#endif

// exp(x), for x from -87 to 88 (beyond: as at these ends), to 2 units in the last place: 2^n · e^r with |r| <= ln(2)/2
// and e^r as its Taylor polynomial of degree 7.
INLINE F exp(F x) {
  x = min(max(x, set1(-87.0f)), set1(88.0f));
  const F n = round(mul(x, set1(1.44269504f)));
  const F r = fma(n, set1(1.90465421e-9f), fma(n, set1(-0.693147182f), x));
  F p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return times_power_of_two(p, n);
}
// x · sigmoid(x)
INLINE F silu(F x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

}  // namespace coterie::COTERIE_ISA
