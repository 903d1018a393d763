// Put before every source of the tests that compute: the kernels are compiled once, in kernels_once.cpp.
#pragma once

#include "prism/backend/cpu/kernels.hpp"

extern template struct prism::cpu::KernelTables<>;
