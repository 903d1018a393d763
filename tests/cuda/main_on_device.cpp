// Without a device there is nothing to test, and no reason to fail.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cuda_runtime_api.h>

#include <iostream>

int main(int argc, char** argv) {
    int               n = 0;
    const cudaError_t code = cudaGetDeviceCount(&n);
    if (code != cudaSuccess || n == 0) {
        std::cout << "tests of CUDA are skipped: " << (code == cudaSuccess ? "no device" : cudaGetErrorString(code)) << '\n';
        return 0;
    }
    return doctest::Context(argc, argv).run();
}
