// The kernels, for prism::compiled and for our own programs that need nothing else of it.
#include "prism/compiled_kernels.hpp"

template struct prism::cpu::KernelTables<>;
