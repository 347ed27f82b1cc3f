// What the two halves of the Python module share.
#pragma once

#include <nanobind/nanobind.h>

#include "training.h"

namespace coterie {

const TrainingKernels& chosen_training();  // those of the chosen instruction set
int chosen_threads();
void bind_training(nanobind::module_&);
void forget_training_threads();  // in a forked child

}  // namespace coterie
