// Compiled once for each instruction set: CMakeLists.txt gives COTERIE_ISA (the name) and the compiler's flags.
#include "attention.h"
#include "experts.h"

#define TABLE_(x) kernels_##x
#define TABLE(x) TABLE_(x)

namespace coterie {

extern const Kernels TABLE(COTERIE_ISA) = {
    &COTERIE_ISA::linear, &COTERIE_ISA::experts, &COTERIE_ISA::attention, &COTERIE_ISA::route,  &COTERIE_ISA::norm,
    &COTERIE_ISA::swiglu, &COTERIE_ISA::add,     &COTERIE_ISA::embed,     &COTERIE_ISA::argmax,
};

}  // namespace coterie
