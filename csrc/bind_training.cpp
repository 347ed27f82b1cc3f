// The kernels of training in `coterie._native`; kernels/training.py, their only caller, has checked the tensors.
#include <mutex>
#include <new>
#include <string>

#include "bind.h"
#include "threads.h"

namespace nb = nanobind;

namespace coterie {

namespace {

// torch's products and these kernels alternate, so they share torch's threads where they can (`set_team`).
std::mutex one_at_a_time;
Pool* pool = nullptr;
Pool::Team team = nullptr;

Pool& the_pool() {
  if (!pool || pool->size() != chosen_threads() || pool->team() != team) {
    delete pool;
    pool = nullptr;
    pool = new Pool(chosen_threads(), team);
  }
  return *pool;
}

template <class Call>
void run(void (*TrainingKernels::*kernel)(Pool&, const Call&), const Call& call) {
  nb::gil_scoped_release unlocked;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  (chosen_training().*kernel)(the_pool(), call);
}

void* at(uintptr_t p) { return (void*)p; }
using Address = uintptr_t;
using Int = int64_t;

}  // namespace

void forget_training_threads() {
  new (&one_at_a_time) std::mutex;
  pool = nullptr;
}

void bind_training(nb::module_& m) {
  using K = TrainingKernels;
  m.def("set_team", [](Address f) { team = (Pool::Team)f; });
  m.def("sort_pairs", [](Address ids, Int T, Int S, Int E, Address pairs, Address tokens, Address places,
                         Address counts) {
    return sort_pairs((const int32_t*)ids, T, S, E, (Int*)pairs, (Int*)tokens, (Int*)places, (Int*)counts);
  });
  m.def("swiglu_forward", [](Address h, int type, Int n, Int F, Address out) {
    run(&K::swiglu_forward, {at(h), (Type)type, n, F, at(out)});
  });
  m.def("swiglu_backward", [](Address h, int type, Int n, Int F, Address weights, Address grad, Address grad_h,
                              Address grad_weights) {
    run(&K::swiglu_backward,
        {at(h), (Type)type, n, F, (const float*)weights, at(grad), at(grad_h), (float*)grad_weights});
  });
  m.def("combine", [](Address rows, int type, Int T, Int S, Int D, Address places, Address weights, Address out) {
    run(&K::combine, {at(rows), (Type)type, T, S, D, (const Int*)places, (const float*)weights, at(out)});
  });
  m.def("norm_forward",
        [](Address x, int type, Int T, Int D, Address weight, float eps, Address out, Address inverse) {
          run(&K::norm_forward, {at(x), (Type)type, T, D, at(weight), eps, at(out), (float*)inverse});
        });
  m.def("norm_backward", [](Address x, int type, Int T, Int D, Address weight, Address inverse, Address grad,
                            Address grad_x, Address grad_weight) {
    run(&K::norm_backward, {at(x), (Type)type, T, D, at(weight), (const float*)inverse, at(grad), at(grad_x),
                            (float*)grad_weight});
  });
  m.def("causal_forward", [](Address qkv, int type, Int B, Int S, Int H, Int G, Int P, Address cos, Address sin,
                             Address documents, Address out, Address logs) {
    run(&K::causal_forward, {at(qkv), (Type)type, B, S, H, G, P, (const float*)cos, (const float*)sin,
                             (const float*)documents, at(out), (float*)logs, nullptr, nullptr});
  });
  m.def("causal_backward", [](Address qkv, int type, Int B, Int S, Int H, Int G, Int P, Address cos, Address sin,
                              Address documents, Address out, Address logs, Address grad, Address grad_qkv) {
    run(&K::causal_backward, {at(qkv), (Type)type, B, S, H, G, P, (const float*)cos, (const float*)sin,
                              (const float*)documents, at(out), (float*)logs, at(grad), at(grad_qkv)});
  });
  m.def("cross_entropy", [](Address logits, int type, Int T, Int V, Address targets, Address losses) {
    run(&K::cross_entropy, {at(logits), (Type)type, T, V, (const Int*)targets, (float*)losses});
  });
  m.def("adam", [](Int n, Address weight, Address grad, int grad_type, Address mean, Address square, Address out,
                   int out_type, float scale, float keep, float beta1, float beta2, float step, float root, float eps) {
    run(&K::adam, {n, (float*)weight, at(grad), (Type)grad_type, (float*)mean, (float*)square, at(out),
                   (Type)out_type, scale, keep, beta1, beta2, step, root, eps});
  });
  m.def("square_sum", [](Address x, int type, Int n) {
    double sum = 0;
    run(&K::square_sum, {at(x), (Type)type, n, &sum});
    return sum;
  });
}

}  // namespace coterie
