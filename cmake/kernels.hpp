// Put before every source of our own programs that compute: the kernels are compiled once, in kernels.cpp.
#pragma once

#include "prism/backend/cpu/kernels.hpp"

extern template struct prism::cpu::KernelTables<>;
