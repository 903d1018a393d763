#include "prism/backend/cpu/kernels.hpp"

template struct prism::cpu::KernelTables<>;
