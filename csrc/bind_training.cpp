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

SparseCall sparse_call(Int D, Int F, Int E, Address tokens, Address counts, Address x, Address gate_up, Address down,
                       Address h, Address scratch) {
  SparseCall c{};
  c.D = D, c.F = F, c.E = E, c.tokens = (const Int*)tokens, c.counts = (const Int*)counts;
  c.x = (const uint16_t*)x, c.gate_up = (const uint16_t*)gate_up, c.down = (const uint16_t*)down;
  c.h = (uint16_t*)h, c.scratch = (uint32_t*)scratch;
  return c;
}

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
  m.def("route_forward", [](Address x, int type, Int T, Int D, Address weight, Int E, Int slots, Address ids,
                            Address logits) {
    run(&K::route, {at(x), (Type)type, T, D, (const float*)weight, E, slots, slots, true, {}, (int32_t*)ids, nullptr,
                    (float*)logits});
  });
  m.def("route_backward", [](Address x, int type, Int T, Int D, Int E, Address weight, Address grad, Address grad_x,
                             Address grad_weight) {
    run(&K::route_backward, {at(x), (Type)type, T, D, E, (const float*)weight, (const float*)grad, at(grad_x),
                             (float*)grad_weight});
  });
  m.def("has_bf16_products", [] { return use_bf16_instructions && chosen_training().product; });
  m.def("strips", [](Address x, Int n, Int width, bool of_rows, Address out) {
    run(&K::strips, {(const uint16_t*)x, n, width, of_rows, (uint32_t*)out});
  });
  m.def("product", [](Address x, Int T, Int width, Int N, Address strips, Address out) {
    run(&K::product, {(const uint16_t*)x, T, width, N, (const uint32_t*)strips, (uint16_t*)out});
  });
  m.def("transposed_product", [](Address a, Address b, Int n, Int M, Int N, Address out, Address sums) {
    run(&K::transposed_product, {(const uint16_t*)a, (const uint16_t*)b, n, M, N, (uint16_t*)out, (float*)sums});
  });
  m.def("sparse_scratch", [](Int D, Int F, Int E, Address counts, bool is_backward) {
    SparseCall c{};
    c.D = D, c.F = F, c.E = E, c.counts = (const Int*)counts;
    return chosen_training().sparse_scratch(c, is_backward);
  });
  m.def("sparse_forward", [](Int D, Int F, Int E, Address tokens, Address counts, Address x, Address gate_up,
                             Address down, Address h, Address y, Address scratch) {
    SparseCall c = sparse_call(D, F, E, tokens, counts, x, gate_up, down, h, scratch);
    c.y = (uint16_t*)y;
    run(&K::sparse_forward, c);
  });
  m.def("sparse_backward", [](Int D, Int F, Int E, Address tokens, Address counts, Address x, Address gate_up,
                              Address down, Address h, Address scratch, Address grad, Address weights, Address grad_x,
                              Address dots, Address grad_gate_up, Address grad_down) {
    SparseCall c = sparse_call(D, F, E, tokens, counts, x, gate_up, down, h, scratch);
    c.grad = (const uint16_t*)grad, c.weights = (const float*)weights, c.dots = (float*)dots;
    c.grad_x = (uint16_t*)grad_x, c.grad_gate_up = (uint16_t*)grad_gate_up, c.grad_down = (uint16_t*)grad_down;
    run(&K::sparse_backward, c);
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
