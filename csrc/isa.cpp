// Compiled once for each instruction set: CMakeLists.txt gives COTERIE_ISA (the name) and the compiler's flags.
#include "attention.h"
#include "experts.h"
#include "training_attention_backward.h"
#include "training_experts.h"
#include "training_route.h"

#define JOINED_(x, y) x##y
#define JOINED(x, y) JOINED_(x, y)

namespace coterie {

extern const Kernels JOINED(kernels_, COTERIE_ISA) = {
    &COTERIE_ISA::linear, &COTERIE_ISA::experts, &COTERIE_ISA::attention, &COTERIE_ISA::route,  &COTERIE_ISA::norm,
    &COTERIE_ISA::swiglu, &COTERIE_ISA::add,     &COTERIE_ISA::embed,     &COTERIE_ISA::argmax,
};
extern const TrainingKernels JOINED(training_, COTERIE_ISA) = {
    &COTERIE_ISA::swiglu_forward,   &COTERIE_ISA::swiglu_backward, &COTERIE_ISA::combine, &COTERIE_ISA::norm_forward,
    &COTERIE_ISA::norm_backward,    &COTERIE_ISA::causal_forward,  &COTERIE_ISA::causal_backward,
    &COTERIE_ISA::cross_entropy,    &COTERIE_ISA::adam,            &COTERIE_ISA::square_sum,
    &COTERIE_ISA::route,            &COTERIE_ISA::route_backward,
#if defined(COTERIE_AVX512)
    &COTERIE_ISA::strips,           &COTERIE_ISA::product,         &COTERIE_ISA::transposed_product,
    &COTERIE_ISA::sparse_forward,   &COTERIE_ISA::sparse_backward, &COTERIE_ISA::sparse_scratch,
#else
    nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
#endif
};

}  // namespace coterie
