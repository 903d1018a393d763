// The kernels of gradients, beside kernels.cpp.
#include "prism/backend/cpu/training_kernels.hpp"

template struct prism::cpu::TrainingTables<>;
