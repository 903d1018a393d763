// Whether cuDNN has kernels for the shapes of our towers, on a GPU that is only described to it.
#include "prism/backend/cuda/cudnn/sdpa.cuh"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

using prism::cuda::CudnnAttention;
using prism::cuda::SdpaShape;

namespace {

// The fields that cuDNN wants, with an H100's values.
constexpr const char* h100 = R"({"deviceName": "NVIDIA H100 80GB HBM3", "cudaDeviceId": 0, "deviceVer": 900, "multiProcessorCount": 132, "driverVer": 13000,
    "maxSharedMemoryPerBlockOptin": 232448, "totalGlobalMem": 85000000000, "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536, "smClockRateKHz": 1980000, "memClockRateKHz": 2619000, "l2CacheSize": 52428800, "warpSize": 32, "maxSharedMemoryPerBlock": 49152,
    "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "isTccDriver": 0,
    "supportCoopLaunch": 1, "pciDeviceId": 0, "sharedMemPerMultiprocessor": 233472})";

/// q, k and v side by side in one row, as a tower's product leaves them.
SdpaShape packed(std::int64_t n_heads, std::int64_t head_dim, std::int64_t n_tokens) {
    const std::int64_t d = n_heads * head_dim;
    return {.n_heads = n_heads, .n_kv_heads = n_heads, .head_dim = head_dim, .n_q = n_tokens, .n_kv = n_tokens, .ldq = 3 * d, .ldk = 3 * d, .ldv = 3 * d, .ldo = d};
}

}  // namespace

TEST_CASE("cuda/cudnn: there are kernels for the heads of DINOv2, SigLIP and Llama, and none for a width that is no multiple of 8") {
    CudnnAttention sdpa{h100};
    CHECK(sdpa.supported(packed(16, 64, 261)));
    CHECK(sdpa.supported(packed(16, 72, 729)));
    CHECK(sdpa.supported(packed(32, 128, 300)));
    SdpaShape shared = packed(32, 128, 300);
    shared.n_kv_heads = 8;
    CHECK(sdpa.supported(shared));
    CHECK_FALSE(sdpa.supported(packed(16, 70, 261)));
    CHECK_THROWS_AS(sdpa.run(packed(16, 64, 261), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr), prism::DeviceError);
}

TEST_CASE("cuda/cudnn: a description that lacks something is refused") { CHECK_THROWS_AS(CudnnAttention{"{}"}, prism::DeviceError); }
