// NCCL, with as many GPUs as there are; one is enough. What ranks do together is in parallel_test.cpp.
#include "prism/backend/cuda/nccl.cuh"

#include <doctest/doctest.h>

#include <numeric>
#include <vector>

using prism::Buffer;
using prism::device;
using prism::cuda::Nccl;
using prism::cuda::Runtime;

TEST_CASE("cuda/nccl: sums over all GPUs, one or more; recorded sums are replayed") {
    int found = 0;
    REQUIRE(cudaGetDeviceCount(&found) == cudaSuccess);
    std::vector<int> devices(static_cast<std::size_t>(found));
    std::iota(devices.begin(), devices.end(), 0);
    constexpr std::size_t count = 5003;
    Nccl                  nccl{devices};
    CHECK(nccl.n() == devices.size());
    std::vector<std::vector<float>> results(nccl.n());
    prism::run_ranks(nccl, [&](prism::Rank& rank) {
        Runtime            gpu{nccl.options(rank.number())};
        Buffer<device>     b = gpu.allocate(count * sizeof(float));
        std::vector<float> values(count, static_cast<float>(rank.number() + 1));
        gpu.to_device(b.data(), values.data(), b.bytes());
        gpu.all_reduce(b.as<float>(), count);
        const auto twice = gpu.record([&] {
            gpu.all_reduce(b.as<float>(), count);
            gpu.all_reduce(b.as<float>(), count);
        });
        CHECK(twice.n_steps() == 2);
        gpu.replay(twice);
        gpu.to_host(values.data(), b.data(), b.bytes());
        results[rank.number()] = values;
    });
    const auto n = static_cast<float>(found);
    for (const auto& values : results) CHECK(values == std::vector<float>(count, n * n * n * (n + 1) / 2));
}

TEST_CASE("cuda/nccl: devices that cannot work together, and ranks that are given up, are errors") {
    CHECK_THROWS_AS(Nccl(std::vector<int>{}), prism::DeviceError);
    CHECK_THROWS_AS(Nccl(std::vector<int>{9999}), prism::DeviceError);
    Nccl           nccl{{0}};
    Runtime        gpu{nccl.options(0)};
    Buffer<device> b = gpu.allocate(256);
    gpu.clear(b.data(), b.bytes());
    gpu.all_reduce(b.as<float>(), 64);
    gpu.wait();
    nccl.stop();
    CHECK_THROWS_AS(gpu.all_reduce(b.as<float>(), 64), prism::Error);
}
