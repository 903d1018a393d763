// Without a device there is nothing to test, and no reason to fail, unless PRISM_GPU_REQUIRED says that there has to be one.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <iostream>

int main(int argc, char** argv) {
    int               n = 0;
    const cudaError_t code = cudaGetDeviceCount(&n);
    if (code != cudaSuccess || n == 0) {
        const char* const why = code == cudaSuccess ? "no device" : cudaGetErrorString(code);
        if (const char* const required = std::getenv("PRISM_GPU_REQUIRED"); required && *required) {
            std::cerr << "no GPU can be tested, and PRISM_GPU_REQUIRED is set: " << why << '\n';
            return 1;
        }
        std::cout << "tests of CUDA are skipped: " << why << '\n';
        return 0;
    }
    return doctest::Context(argc, argv).run();
}
