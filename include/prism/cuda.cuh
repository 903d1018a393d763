// prism on NVIDIA's GPUs, in one include: prism/prism.hpp and what runs models on a device. For sources that nvcc
// compiles (12.4 or later, -std=c++20) and that link prism::cuda.
#pragma once

#if !defined(__CUDACC__)
#error "prism/cuda.cuh is for nvcc; other compilers include prism/prism.hpp"
#endif

// Eigen takes nvcc for a reason to leave vector instructions out, on the processor as well.
#if !defined(EIGEN_NO_CUDA)
#if defined(EIGEN_WORLD_VERSION)
#error "Eigen was included before prism/cuda.cuh, without EIGEN_NO_CUDA: include it after, or define that (prism::cuda does)"
#endif
#define EIGEN_NO_CUDA
#endif

#include "prism/backend/cuda/cuda.hpp"
#include "prism/backend/cuda/runtime.cuh"
#include "prism/prism.hpp"

namespace prism {

/// The first GPU, or the one that the options name. Throws DeviceError where there is none.
using Cuda = BasicCuda<cuda::Runtime>;
static_assert(RecordingBackend<Cuda>);

}  // namespace prism
