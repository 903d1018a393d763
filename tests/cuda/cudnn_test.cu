// cuDNN's attention on a GPU, against the definition.
#include "prism/backend/cuda/cudnn/sdpa.cuh"
#include "prism/backend/cuda/runtime.cuh"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

using prism::bf16_t;
using prism::cuda::CudnnAttention;
using prism::cuda::Runtime;
using prism::cuda::SdpaShape;

TEST_CASE("cuda/cudnn: attention without a mask is that of its definition, also from a recording") {
    Runtime                         gpu;
    CudnnAttention                  sdpa;
    std::mt19937                    random(7);
    std::normal_distribution<float> normal;
    for (const std::int64_t head_dim : {64, 72, 128}) {
        CAPTURE(head_dim);
        const std::int64_t n_heads = 3, n = 61, n_sequences = 2, d = n_heads * head_dim, ld = 3 * d;
        const SdpaShape    s{.n_sequences = n_sequences, .n_heads = n_heads, .n_kv_heads = n_heads, .head_dim = head_dim, .n_q = n, .n_kv = n,
                             .ldq = ld, .ldk = ld, .ldv = ld, .ldo = d, .scale = 1 / std::sqrt(static_cast<float>(head_dim))};
        if (!sdpa.supported(s)) {
            MESSAGE("cuDNN has no engine for heads of " << head_dim << " on " << gpu.info().name);
            continue;
        }
        std::vector<bf16_t> qkv(static_cast<std::size_t>(n_sequences * n * ld)), got(static_cast<std::size_t>(n_sequences * n * d));
        for (bf16_t& v : qkv) v = bf16_t{normal(random)};
        const auto in = gpu.allocate(qkv.size() * 2), out = gpu.allocate(got.size() * 2), workspace = gpu.allocate(sdpa.workspace_bytes(s) + 1);
        gpu.to_device(in.data(), qkv.data(), in.bytes());
        const auto run = [&] { sdpa.run(s, in.as<bf16_t>(), in.as<bf16_t>() + d, in.as<bf16_t>() + 2 * d, out.data(), workspace.data(), gpu.stream()); };
        run();
        gpu.to_host(got.data(), out.data(), out.bytes());

        double     error = 0, size = 0;
        const auto at = [&](std::int64_t row, std::int64_t column) { return static_cast<double>(static_cast<float>(qkv[static_cast<std::size_t>(row * ld + column)])); };
        for (std::int64_t b = 0; b < n_sequences; ++b)
            for (std::int64_t h = 0; h < n_heads; ++h)
                for (std::int64_t i = 0; i < n; ++i) {
                    std::vector<double> p(static_cast<std::size_t>(n));
                    double              sum = 0;
                    for (std::int64_t j = 0; j < n; ++j) {
                        double score = 0;
                        for (std::int64_t c = 0; c < head_dim; ++c) score += at(b * n + i, h * head_dim + c) * at(b * n + j, d + h * head_dim + c);
                        sum += p[static_cast<std::size_t>(j)] = std::exp(score * s.scale);
                    }
                    for (std::int64_t c = 0; c < head_dim; ++c) {
                        double o = 0;
                        for (std::int64_t j = 0; j < n; ++j) o += p[static_cast<std::size_t>(j)] / sum * at(b * n + j, 2 * d + h * head_dim + c);
                        const double g = static_cast<float>(got[static_cast<std::size_t>((b * n + i) * d + h * head_dim + c)]);
                        error += (g - o) * (g - o), size += o * o;
                    }
                }
        CHECK(std::sqrt(error / size) <= 6e-3);  // weights and results are rounded to bf16

        const auto          recorded = gpu.record(run);
        std::vector<bf16_t> again(got.size());
        gpu.clear(out.data(), out.bytes());
        gpu.replay(recorded);
        gpu.to_host(again.data(), out.data(), out.bytes());
        CHECK(std::equal(got.begin(), got.end(), again.begin(), [](bf16_t a, bf16_t b) { return a.bits == b.bits; }));
    }
}
