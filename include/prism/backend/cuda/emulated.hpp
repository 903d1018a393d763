// EmulatedCuda: the CUDA backend without a device, for tests and debuggers. The same operations, launches and kernels, on the
// processor: slow, and exact about who may read what when.
//
//     prism::EmulatedCuda be{{.driver = {.threads = prism::cuda::Threads::fibers}}};
#pragma once

#include "prism/backend/cuda/cuda.hpp"
#include "prism/backend/cuda/emulator.hpp"

namespace prism {

using EmulatedCuda = BasicCuda<cuda::Emulator>;
static_assert(RecordingBackend<EmulatedCuda>);

}  // namespace prism
