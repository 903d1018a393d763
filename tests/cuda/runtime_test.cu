// The driver of CUDA, with kernels of its own.
#include "device.hpp"

#include "prism/backend/cuda/runtime.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

using prism::Buffer;
using prism::DeviceError;
using prism::device;
using prism::cuda::LibraryProduct;
using prism::cuda::Reg;
using prism::cuda::Runtime;
using prism::cuda::Staged;

namespace {

/// y[i] = a y[i] + b
struct Scale {
    static constexpr int max_threads = 256;
    float*               y;
    std::int64_t         n;
    float                a, b;

    template <class Block>
    PRISM_DEVICE void operator()(Block& blk) const {
        blk.each_alone([&](int t) {
            const std::int64_t i = std::int64_t{blk.x} * max_threads + t;
            if (i < n) y[i] = a * y[i] + b;
        });
    }
};

/// y[0] = the sum of n <= max values of x, by way of as much shared memory as they take.
struct SumShared {
    static constexpr int max_threads = 128;
    const float*         x;
    int                  n;
    float*               y;

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        float* const kept = b.template shared<float>(0);
        float* const scratch = b.template shared<float>(static_cast<std::size_t>(n) * 4);
        b.each([&](int t) {
            for (int i = t; i < n; i += b.n_threads()) kept[n - 1 - i] = x[i];
        });
        Reg<Block, float> sum(b);
        b.each_alone([&](int t) {
            sum[t] = 0;
            for (int i = t; i < n; i += b.n_threads()) sum[t] += kept[i];
        });
        prism::cuda::block_sum(b, sum, scratch);
        b.each([&](int t) {
            if (t == 0) y[b.x] = sum[t];
        });
    }
};

void scale(Runtime& gpu, const Buffer<device>& y, float a, float b) {
    const auto n = static_cast<std::int64_t>(y.bytes() / sizeof(float));
    gpu.launch({static_cast<int>((n + 255) / 256), 1, 1}, Scale::max_threads, 0, Scale{y.as<float>(), n, a, b});
}
std::vector<float> values_of(Runtime& gpu, const Buffer<device>& b) {
    std::vector<float> v(b.bytes() / sizeof(float));
    gpu.to_host(v.data(), b.data(), b.bytes());
    return v;
}
Buffer<device> filled(Runtime& gpu, std::size_t n, float value) {
    Buffer<device> b = gpu.allocate(n * sizeof(float));
    gpu.clear(b.data(), b.bytes());
    scale(gpu, b, 0, value);
    return b;
}
bool all_are(const std::vector<float>& v, float value) {
    return !v.empty() && std::all_of(v.begin(), v.end(), [=](float x) { return x == value; });
}

}  // namespace

TEST_CASE("cuda/runtime: a device has a name, processors and memory") {
    Runtime gpu;
    MESSAGE(gpu.info().name << ", compute capability " << gpu.info().major << '.' << gpu.info().minor << ", driver " << gpu.info().driver_version << ", runtime "
                            << gpu.info().runtime_version << ", cuBLASLt " << gpu.info().cublaslt_version);
    CHECK_FALSE(gpu.info().name.empty());
    CHECK(gpu.info().major >= 8);
    CHECK(gpu.n_processors() > 0);
    CHECK(gpu.info().memory_bytes > std::size_t{1} << 30);
    CHECK(gpu.info().cache_bytes > 0);
    CHECK_THROWS_WITH_AS(Runtime({.device = 4711}), doctest::Contains("device 4711 of"), DeviceError);
}

TEST_CASE("cuda/runtime: copies of any size arrive and come back") {
    Runtime                         gpu;
    std::mt19937                    random(1);
    const std::size_t               large = (std::size_t{5} << 24) + 12345;  // the ring goes round
    std::vector<unsigned char>      from(large), back(large);
    std::generate(from.begin(), from.end(), [&] { return static_cast<unsigned char>(random()); });
    for (const std::size_t n : {std::size_t{1}, std::size_t{3}, std::size_t{255}, std::size_t{4096}, (std::size_t{1} << 20) + 1, std::size_t{1} << 24, large}) {
        CAPTURE(n);
        const auto b = gpu.allocate(n);
        CHECK(reinterpret_cast<std::uintptr_t>(b.data()) % 256 == 0);
        gpu.to_device(b.data(), from.data(), n);
        std::fill(back.begin(), back.end(), static_cast<unsigned char>(0));
        gpu.to_host(back.data(), b.data(), n);
        CHECK(std::equal(back.begin(), back.begin() + static_cast<std::ptrdiff_t>(n), from.begin()));
    }
    // Thousands of small ones, each free to change at once.
    const auto b = gpu.allocate(5000 * sizeof(int));
    for (int i = 0; i < 5000; ++i) gpu.to_device(b.as<int>() + i, &i, sizeof i);
    std::vector<int> got(5000), want(5000);
    std::iota(want.begin(), want.end(), 0);
    gpu.to_host(got.data(), b.data(), b.bytes());
    CHECK(got == want);
    gpu.clear(b.data(), b.bytes());
    gpu.to_host(got.data(), b.data(), b.bytes());
    CHECK(got == std::vector<int>(5000, 0));
}

TEST_CASE("cuda/runtime: kernels run in order, with more shared memory than is plain") {
    Runtime    gpu;
    const auto y = filled(gpu, 100'003, 1);
    scale(gpu, y, 2, 1);
    scale(gpu, y, 10, 0);
    CHECK(all_are(values_of(gpu, y), 30));
    for (const int n : {1000, 16'000, 20'000, 24'000}) {
        if (static_cast<std::size_t>(n) * 4 + 128 > gpu.info().shared_bytes) continue;
        CAPTURE(n);
        const auto x = filled(gpu, static_cast<std::size_t>(n), 1), sums = filled(gpu, 7, 0);
        gpu.launch({7, 1, 1}, 128, static_cast<std::size_t>(n) * 4 + 128, SumShared{x.as<float>(), n, sums.as<float>()});
        CHECK(all_are(values_of(gpu, sums), static_cast<float>(n)));
    }
    const std::size_t launches = gpu.launches();
    gpu.launch({0, 1, 1}, 256, 0, Scale{nullptr, 0, 0, 0});
    CHECK(gpu.launches() == launches);
}

TEST_CASE("cuda/runtime: what cannot be launched says so, and the next one runs") {
    Runtime    gpu;
    const auto y = filled(gpu, 10, 1);
    CHECK_THROWS_WITH_AS(gpu.launch({1, 70'000, 1}, 256, 0, Scale{y.as<float>(), 10, 1, 1}), doctest::Contains("at most 65535 blocks"), DeviceError);
    CHECK_THROWS_WITH_AS(gpu.launch({1, 1, 1}, 128, std::size_t{1} << 20, SumShared{y.as<float>(), 10, y.as<float>()}), doctest::Contains("1048576 bytes of shared memory"),
                         DeviceError);
    scale(gpu, y, 1, 1);
    CHECK(all_are(values_of(gpu, y), 2));
}

TEST_CASE("cuda/runtime: after a request for too much memory a smaller one works") {
    Runtime gpu;
    try {
        gpu.allocate(std::size_t{1} << 46);
        FAIL("64 TiB were there");
    } catch (const DeviceError& e) {
        CHECK(e.code == cudaErrorMemoryAllocation);
        CHECK(std::string(e.what()).find("out of memory (70368744177664 bytes were asked for") != std::string::npos);
    }
    const auto y = filled(gpu, 1000, 3);
    CHECK(all_are(values_of(gpu, y), 3));
}

TEST_CASE("cuda/runtime: buffers outlive their runtime, and other threads allocate too") {
    std::vector<Buffer<device>> kept;
    {
        Runtime                                gpu;
        std::array<std::vector<Buffer<device>>, 4> theirs;
        std::vector<std::thread>               threads;
        for (auto& mine : theirs)
            threads.emplace_back([&gpu, &mine] {
                for (std::size_t i = 1; i < 200; ++i) {
                    mine.push_back(gpu.allocate(i * 700));
                    if (i % 3 == 0) mine.erase(mine.begin());
                }
            });
        for (auto& t : threads) t.join();
        for (auto& mine : theirs)
            for (auto& b : mine) kept.push_back(std::move(b));
        std::vector<std::pair<std::byte*, std::size_t>> ranges;
        for (const auto& b : kept) ranges.emplace_back(b.as<std::byte>(), b.bytes());
        std::sort(ranges.begin(), ranges.end());
        for (std::size_t i = 1; i < ranges.size(); ++i) CHECK(ranges[i - 1].first + ranges[i - 1].second <= ranges[i].first);
    }
    kept.clear();
    Runtime gpu;
    CHECK(gpu.bytes_in_use() == 0);
}

TEST_CASE("cuda/runtime: a recording is replayed with the same bits, and with other input") {
    Runtime            gpu;
    const std::size_t  n = 1000;
    const auto         y = filled(gpu, n, 0);
    std::vector<float> in(n, 1.0f);
    Staged             id;
    auto               twice = gpu.record([&] {
        id = gpu.to_device(y.data(), in.data(), n * sizeof(float));
        const auto h = gpu.allocate(n * sizeof(float));  // stays with the recording
        gpu.clear(h.data(), h.bytes());
        scale(gpu, y, 2, 0);
        scale(gpu, y, 1, 5);
        CHECK(gpu.recording());
    });
    CHECK_FALSE(gpu.recording());
    CHECK(twice.n_steps() == 4);
    CHECK(all_are(values_of(gpu, y), 0));  // recording ran nothing
    std::fill(in.begin(), in.end(), 99.0f);
    gpu.replay(twice);
    CHECK(all_are(values_of(gpu, y), 7));
    twice.rewrite(id, in.data(), n * sizeof(float));
    gpu.replay(twice);
    gpu.replay(twice);
    CHECK(all_are(values_of(gpu, y), 203));
    CHECK_THROWS_AS(twice.rewrite(Staged{}, in.data(), 4), DeviceError);

    // What waits cannot be recorded, and a recording that failed leaves everything usable.
    CHECK_THROWS_WITH_AS(gpu.record([&] { gpu.wait(); }), doctest::Contains("a recording is being made"), DeviceError);
    CHECK_THROWS_AS(gpu.record([&] { gpu.replay(twice); }), DeviceError);
    gpu.replay(twice);
    CHECK(all_are(values_of(gpu, y), 203));
}

TEST_CASE("cuda/runtime: both parts of a fork are done before what comes later, recorded or not") {
    Runtime           gpu;
    const std::size_t n = 1 << 20;
    const auto        p = filled(gpu, n, 1), q = filled(gpu, n, 2);
    const auto        work = [&] {
        scale(gpu, p, 1, 1);
        scale(gpu, q, 1, 1);
        gpu.fork(
            [&] {
                CHECK(gpu.branch() == 0);
                for (int i = 0; i < 20; ++i) scale(gpu, p, 1, 1);
            },
            [&] {
                CHECK(gpu.branch() == 1);
                for (int i = 0; i < 30; ++i) scale(gpu, q, 1, 1);
                gpu.fork([&] { scale(gpu, q, 1, 1); }, [&] { scale(gpu, q, 1, 1); });
            });
        CHECK(gpu.branch() == 0);
        scale(gpu, p, 2, 0);
        scale(gpu, q, 2, 0);
    };
    work();
    CHECK(all_are(values_of(gpu, p), 44));
    CHECK(all_are(values_of(gpu, q), 70));
    const auto recorded = gpu.record(work);
    gpu.replay(recorded);
    CHECK(all_are(values_of(gpu, p), 130));
    CHECK(all_are(values_of(gpu, q), 206));
    CHECK_THROWS_AS(gpu.fork([] {}, [] { throw prism::Error{"on purpose"}; }), prism::Error);
    CHECK(gpu.branch() == 0);
}

TEST_CASE_TEMPLATE("cuda/runtime: products by cuBLASLt are those of their definition", T, float, prism::bf16_t, prism::fp16_t) {
    Runtime      gpu;
    std::mt19937 random(2);
    const auto   type = std::is_same_v<T, float> ? prism::Dtype::f32 : std::is_same_v<T, prism::bf16_t> ? prism::Dtype::bf16 : prism::Dtype::f16;
    const auto   up = [&](const auto& v) {
        auto b = gpu.allocate(v.size() * sizeof(v[0]));
        gpu.to_device(b.data(), v.data(), b.bytes());
        return b;
    };
    std::normal_distribution<float> normal;
    for (const std::int64_t m : {1, 17, 261})
        for (const std::int64_t n : {8, 136})
            for (const std::int64_t k : {592, 1024})
                for (const bool add : {false, true})
                    for (const bool bias : {false, true}) {
                        CAPTURE(m);
                        CAPTURE(n);
                        CAPTURE(k);
                        CAPTURE(add);
                        CAPTURE(bias);
                        const std::int64_t ldx = k + 8, ldw = k, ldy = n + 24;
                        std::vector<T>     x(static_cast<std::size_t>(m * ldx)), w(static_cast<std::size_t>(n * ldw));
                        std::vector<float> b(static_cast<std::size_t>(n)), y(static_cast<std::size_t>(m * ldy)), got(y.size());
                        for (T& v : x) v = T(normal(random));
                        for (T& v : w) v = T(normal(random));
                        for (float& v : b) v = normal(random);
                        for (float& v : y) v = normal(random);
                        const auto           dx = up(x), dw = up(w), db = up(b), dy = up(y), dz = up(y);
                        LibraryProduct p{.type = type, .m = m, .n = n, .k = k, .x = dx.data(), .ldx = ldx, .w = dw.data(), .ldw = ldw,
                                         .bias = bias ? db.template as<float>() : nullptr, .add = add, .y = dy.template as<float>(), .ldy = ldy};
                        REQUIRE(gpu.multiply(p));
                        gpu.to_host(got.data(), dy.data(), dy.bytes());
                        double error = 0, size = 0;
                        for (std::int64_t i = 0; i < m; ++i)
                            for (std::int64_t j = 0; j < ldy; ++j) {
                                const auto at = static_cast<std::size_t>(i * ldy + j);
                                if (j >= n) {
                                    CHECK(got[at] == y[at]);  // beside the rows nothing is written
                                    continue;
                                }
                                double sum = (add ? double(y[at]) : 0.0) + (bias ? double(b[static_cast<std::size_t>(j)]) : 0.0);
                                for (std::int64_t l = 0; l < k; ++l)
                                    sum += double(float(x[static_cast<std::size_t>(i * ldx + l)])) * double(float(w[static_cast<std::size_t>(j * ldw + l)]));
                                error += (sum - got[at]) * (sum - got[at]), size += sum * sum;
                            }
                        CHECK(std::sqrt(error / size) <= 2e-6 + (type == prism::Dtype::f32 ? 0 : prism::test::cut_off(static_cast<std::size_t>(k))));  // sums in f32

                        // The same bits again, and from a recording.
                        p.y = dz.template as<float>();
                        const auto recorded = gpu.record([&] { CHECK(gpu.multiply(p)); });
                        gpu.replay(recorded);
                        std::vector<float> again(got.size());
                        gpu.to_host(again.data(), dz.data(), dz.bytes());
                        CHECK(std::memcmp(again.data(), got.data(), dz.bytes()) == 0);
                    }
}

TEST_CASE("cuda/runtime: a product that the library does not take is left alone") {
    Runtime        gpu;
    const auto     b = filled(gpu, 1000, 1);
    LibraryProduct p{.type = prism::Dtype::bf16, .m = 3, .n = 5, .k = 7, .x = b.data(), .ldx = 7, .w = b.data(), .ldw = 7, .y = b.as<float>(), .ldy = 5};
    p.ldw = 3;  // less than a row
    CHECK_FALSE(gpu.multiply(p));
    p.m = 0;
    CHECK(gpu.multiply(p));
    CHECK(all_are(values_of(gpu, b), 1));
}
