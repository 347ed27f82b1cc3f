// The Python module `coterie._native`. Memory comes as addresses: kernels/cpu.py, its only importer, has checked
// shapes, types and contiguity and keeps the tensors alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>  // of names
#include <pthread.h>

#include <new>
#include <stdexcept>
#include <string>
#if defined(COTERIE_ARM) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "bind.h"
#include "packed.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace coterie {

namespace {

struct Choice {
  const char* name;
  const Kernels* kernels;
  const TrainingKernels* training;
  bool bf16;
};

std::vector<Choice> supported() {  // the fastest first
  std::vector<Choice> found;
#if defined(COTERIE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni");
  if (vnni && __builtin_cpu_supports("avx512bf16"))
    found.push_back({"avx512bf16", &kernels_avx512, &training_avx512, true});
  if (vnni) found.push_back({"avx512vnni", &kernels_avx512, &training_avx512, false});
  if (avx2) found.push_back({"avx2", &kernels_avx2, &training_avx2, false});
#elif defined(COTERIE_ARM) && defined(__linux__)
  const unsigned long needed = HWCAP_ASIMDDP | HWCAP_ASIMDHP;
  if ((getauxval(AT_HWCAP) & needed) == needed) found.push_back({"neon", &kernels_neon, &training_neon, false});
#elif defined(COTERIE_ARM)
  found.push_back({"neon", &kernels_neon, &training_neon, false});
#endif
  found.push_back({"portable", &kernels_portable, &training_portable, false});
  return found;
}

Choice chosen{};

void choose(const Choice& choice) { chosen = choice, use_bf16_instructions = choice.bf16; }

std::mutex one_at_a_time;
Pool* pool = nullptr;  // never destroyed at the end of the process, where there may be nobody left to join
int n_threads = 1;

Pool& the_pool() {
  if (!pool || pool->size() != n_threads) {
    delete pool;
    pool = nullptr;
    pool = new Pool(n_threads);
  }
  return *pool;
}

// A forked child has none of its parent's threads, and if one of them was in a call, a lock that nobody will open.
void forget_threads() {
  new (&one_at_a_time) std::mutex;
  pool = nullptr;
  forget_training_threads();
}

// Runs a call of the chosen kernels: one at a time, without Python's lock.
template <class Call>
void run(void (*Kernels::*kernel)(Pool&, const Call&), const Call& call) {
  nb::gil_scoped_release unlocked;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  (chosen.kernels->*kernel)(the_pool(), call);
}

struct Matrices {
  std::vector<Matrix> all;
};

struct Experts {
  std::vector<Matrix> gate_up, down;
};

struct Decoder {
  struct Layer {
    Norm attention_norm, moe_norm;
    Matrices qkv, o;
    Experts experts;
    const float* router;
    int64_t E, K;
    bool renormalise;
    int64_t F;
  };
  std::vector<Layer> layers;
};

void* address(uintptr_t p) { return (void*)p; }

}  // namespace

const TrainingKernels& chosen_training() { return *chosen.training; }
int chosen_threads() { return n_threads; }

}  // namespace coterie

NB_MODULE(_native, m) {
  using namespace coterie;
  choose(supported().front());
  pthread_atfork(nullptr, nullptr, forget_threads);

  m.def("names", [] {
    std::vector<std::string> names;
    for (const Choice& c : supported()) names.emplace_back(c.name);
    return names;
  });
  m.def("chosen", [] { return std::string(chosen.name); });
  m.def("choose", [](const std::string& name) {
    for (const Choice& c : supported())
      if (name == c.name) return choose(c);
    throw nb::value_error(name.c_str());
  });
  m.def("set_threads", [](int n) { n_threads = n; });
  m.def("threads", [] { return n_threads; });

  nb::class_<Format>(m, "Format").def("__init__", [](Format* f, int bits, int unit, int group_units, int scales) {
    new (f) Format{bits, unit, group_units, (Scales)scales};
  });
  m.def("packed_bytes", &packed_bytes);

  nb::class_<Matrix>(m, "Matrix")
      .def(
          "__init__",
          [](Matrix* x, int layout, const Format& format, int64_t N, int64_t K, uintptr_t data, int64_t half,
             uintptr_t up, int64_t head_rows) {
            new (x) Matrix{(Layout)layout, format, N, K, (const uint8_t*)data, half, (const uint8_t*)up, head_rows};
          },
          "layout"_a, "format"_a, "N"_a, "K"_a, "data"_a, "half"_a = 0, "up"_a = 0, "head_rows"_a = 0);
  nb::class_<Experts>(m, "Experts")
      .def(nb::init<>())
      .def("append",
           [](Experts& e, const Matrix& gate_up, const Matrix& down) {
             e.gate_up.push_back(gate_up);
             e.down.push_back(down);
           })
      .def("stacked", [](Experts& e, int gate_up_type, uintptr_t gate_up, int down_type, uintptr_t down, int64_t n,
                         int64_t D, int64_t F) {
        for (int64_t i = 0; i < n; i++) {  // gate rows, then up rows
          const uint8_t* gate = (const uint8_t*)gate_up + i * 2 * F * D * (gate_up_type ? 2 : 4);
          const uint8_t* rows = (const uint8_t*)down + i * D * F * (down_type ? 2 : 4);
          e.gate_up.push_back({(Layout)gate_up_type, {}, 2 * F, D, gate, F, gate + F * D * (gate_up_type ? 2 : 4), 0});
          e.down.push_back({(Layout)down_type, {}, D, F, rows});
        }
      });
  nb::class_<Matrices>(m, "Matrices").def(nb::init<>()).def("append", [](Matrices& v, const Matrix& x) {
    v.all.push_back(x);
  });

  m.def("linear", [](const Matrices& matrices, uintptr_t x, int x_type, int64_t T, int64_t x_stride, uintptr_t norm,
                     int norm_type, float eps, uintptr_t out, int out_type, int64_t out_stride) {
    run(&Kernels::linear, LinearCall{address(x),
                                     (Type)x_type,
                                     T,
                                     x_stride,
                                     {address(norm), (Type)norm_type, eps},
                                     matrices.all.data(),
                                     (int)matrices.all.size(),
                                     address(out),
                                     (Type)out_type,
                                     out_stride});
  });
  m.def("experts", [](const Experts& e, uintptr_t x, int type, int64_t T, int64_t D, int64_t F, uintptr_t ids,
                      uintptr_t weights, int64_t S, uintptr_t out) {
    run(&Kernels::experts, ExpertsCall{address(x), (Type)type, T, D, F, (const int32_t*)ids, (const float*)weights, S,
                                       e.gate_up.data(), e.down.data(), (int64_t)e.down.size(), address(out)});
  });
  m.def("attention",
        [](uintptr_t qkv, int type, int64_t T, int64_t H, int64_t G, int64_t P, uintptr_t cos, uintptr_t sin,
           uintptr_t k, uintptr_t v, uintptr_t k_scales, uintptr_t v_scales, int cache_type, uintptr_t tables,
           int64_t table_stride, uintptr_t sequences, int64_t B, int64_t window, float scale, uintptr_t out) {
          run(&Kernels::attention, AttentionCall{address(qkv),
                                                 (Type)type,
                                                 T,
                                                 H,
                                                 G,
                                                 P,
                                                 (const float*)cos,
                                                 (const float*)sin,
                                                 {address(k), address(v), (float*)k_scales, (float*)v_scales},
                                                 (Type)cache_type,
                                                 (const int32_t*)tables,
                                                 table_stride,
                                                 (const int64_t*)sequences,
                                                 B,
                                                 window,
                                                 scale,
                                                 address(out)});
        });
  m.def("route", [](uintptr_t x, int type, int64_t T, int64_t D, uintptr_t weight, int64_t E, int64_t S, int64_t K,
                    bool renormalise, uintptr_t edit_of_row, uintptr_t bias, uintptr_t top_k, uintptr_t ids,
                    uintptr_t weights, uintptr_t logits) {
    run(&Kernels::route, RouteCall{address(x),
                                   (Type)type,
                                   T,
                                   D,
                                   (const float*)weight,
                                   E,
                                   S,
                                   K,
                                   renormalise,
                                   {(const int32_t*)edit_of_row, (const float*)bias, E, (const int32_t*)top_k},
                                   (int32_t*)ids,
                                   (float*)weights,
                                   (float*)logits});
  });
  m.def("norm",
        [](uintptr_t x, int type, int64_t T, int64_t D, uintptr_t weight, int weight_type, float eps, uintptr_t out) {
          run(&Kernels::norm,
              NormCall{address(x), (Type)type, T, D, {address(weight), (Type)weight_type, eps}, address(out)});
        });
  m.def("swiglu", [](uintptr_t x, int type, int64_t T, int64_t F, uintptr_t out) {
    run(&Kernels::swiglu, SwigluCall{address(x), (Type)type, T, F, address(out)});
  });
  m.def("add", [](uintptr_t a, uintptr_t b, int type, int64_t n, uintptr_t out) {
    run(&Kernels::add, AddCall{address(a), address(b), (Type)type, n, address(out)});
  });
  m.def("argmax", [](uintptr_t x, int type, int64_t T, int64_t V, uintptr_t ids, uintptr_t values) {
    run(&Kernels::argmax, ArgmaxCall{address(x), (Type)type, T, V, (int64_t*)ids, (float*)values});
  });
  nb::class_<Decoder>(m, "Decoder")
      .def(nb::init<>())
      .def("append",
           [](Decoder& d, const Matrices& qkv, const Matrices& o, uintptr_t attention_norm, uintptr_t moe_norm,
              int norm_type, float eps, uintptr_t router, int64_t E, int64_t K, bool renormalise,
              const Experts& experts, int64_t F) {
             const Norm first{address(attention_norm), (Type)norm_type, eps},
                 second{address(moe_norm), (Type)norm_type, eps};
             d.layers.push_back({first, second, qkv, o, experts, (const float*)router, E, K, renormalise, F});
           })
      .def("run", [](const Decoder& d, uintptr_t x, int type, int64_t T, int64_t D, int64_t H, int64_t G, int64_t P,
                     uintptr_t cos, uintptr_t sin, const std::vector<uintptr_t>& pages, int cache_type,
                     uintptr_t tables, int64_t table_stride, uintptr_t sequences, int64_t B, int64_t window,
                     float scale, int64_t S, uintptr_t edit_of_row, uintptr_t bias, uintptr_t top_k, uintptr_t ids,
                     uintptr_t weights, uintptr_t logits) {
        std::vector<LayerWeights> layers;  // pages: four addresses a layer
        for (size_t l = 0; l < d.layers.size(); l++) {
          const Decoder::Layer& w = d.layers[l];
          const uintptr_t* p = pages.data() + 4 * l;
          layers.push_back({w.attention_norm,
                            w.moe_norm,
                            w.qkv.all.data(),
                            (int)w.qkv.all.size(),
                            w.o.all.data(),
                            (int)w.o.all.size(),
                            w.router,
                            w.E,
                            w.K,
                            w.renormalise,
                            w.experts.gate_up.data(),
                            w.experts.down.data(),
                            w.F,
                            {address(p[0]), address(p[1]), (float*)p[2], (float*)p[3]}});
        }
        const AttentionCall attention{nullptr,
                                      (Type)type,
                                      T,
                                      H,
                                      G,
                                      P,
                                      (const float*)cos,
                                      (const float*)sin,
                                      {},
                                      (Type)cache_type,
                                      (const int32_t*)tables,
                                      table_stride,
                                      (const int64_t*)sequences,
                                      B,
                                      window,
                                      scale,
                                      nullptr};
        const RouteEdits edits{(const int32_t*)edit_of_row, (const float*)bias,
                               layers.empty() ? 0 : layers[0].E * (int64_t)layers.size(), (const int32_t*)top_k};
        nb::gil_scoped_release unlocked;
        std::lock_guard<std::mutex> lock(one_at_a_time);
        decode(*chosen.kernels, the_pool(),
               {address(x), (Type)type, T, D, layers.data(), (int64_t)layers.size(), attention, S, edits, (int32_t*)ids,
                (float*)weights, (float*)logits});
      });
  m.def("rotary", [](uintptr_t positions, int64_t T, uintptr_t frequencies, int64_t P, uintptr_t cos, uintptr_t sin) {
    rotary((const int64_t*)positions, T, (const float*)frequencies, P, (float*)cos, (float*)sin);
  });
  m.def("embed", [](const Matrix& table, uintptr_t ids, int64_t T, uintptr_t out, int type) {
    run(&Kernels::embed, EmbedCall{(const int64_t*)ids, T, table, address(out), (Type)type});
  });
  m.def("repack", [](const Matrix& from, uintptr_t out, int64_t bytes) {
    if (from.layout != Layout::GGML ||
        bytes != packed_bytes(from.format, from.half ? ceil_div(from.half, PANEL) * 2 * PANEL : from.N, from.K))
      throw nb::value_error("repack: a GGUF matrix and room for its packed bytes");
    nb::gil_scoped_release unlocked;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    return repack(the_pool(), from, (uint8_t*)out);
  });
  bind_training(m);
}
