// The kernels of the CPU backend, compiled once for all of our own programs.
#include "prism/backend/cpu/kernels.hpp"

template struct prism::cpu::KernelTables<>;
