// The kernels of the CPU backend, compiled already. For sources that link prism::compiled and include single headers:
//
//     #include <prism/compiled_kernels.hpp>
//     #include <prism/backend/cpu/cpu.hpp>
//
// prism.hpp and compiled.hpp bring it with them.
#pragma once

#include "prism/backend/cpu/kernels.hpp"

extern template struct prism::cpu::KernelTables<>;
