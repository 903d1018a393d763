// The kernels, compiled once for all of the program.
#include "prism/backend/cpu/kernels.hpp"

template struct prism::cpu::KernelTables<>;
