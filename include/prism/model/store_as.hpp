// store_as: the weights of a loaded model in another format: less memory, or less work per product.
//
//     auto vlm = prism::from_pretrained(cpu, "prism-dinosiglip+7b");   // f32 in its file
//     prism::store_as(cpu, vlm.model, prism::Dtype::bf16);
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/core/fields.hpp"
#include "prism/nn/param.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace prism {

/// Converts every matrix of a module to f32, bf16 or f16 (rounding to nearest, ties to even); the small parameters stay
/// f32. One matrix at a time, on all threads: of the old weights only those are in memory twice that are at work.
/// on_progress(values done, values in all) is called after each. Throws ConfigError for another type.
template <Backend B, class M>
    requires std::same_as<typename B::space, host>
void store_as(B& be, M& module, Dtype dtype, const std::function<void(std::size_t done, std::size_t total)>& on_progress = {}) {
    if (dtype != Dtype::f32 && dtype != Dtype::bf16 && dtype != Dtype::f16)
        throw ConfigError{"weights", std::string(to_string(dtype)), "F32, BF16, F16"};
    constexpr std::size_t piece = 1 << 16;
    std::size_t           total = 0, done = 0;
    visit(module, [&](const std::string&, const auto& param) { total += param.size(); });

    visit(module, [&](const std::string& path, auto& param) {
        if constexpr (requires { param.visit([](const auto&) {}); }) {
            if (param.size() > 0 && param.dtype() != dtype) {
                auto buffer = std::make_shared<Buffer<host>>(be.allocate(param.size() * item_bytes(dtype)));
                param.visit([&]<class F>(const Packed<F, host>& old) {
                    const auto convert = [&]<class T>(T* to) {
                        be.parallel_for(param.size(), piece, [&](std::size_t begin, std::size_t end) {
                            std::array<float, 256> values;
                            for (std::size_t i = begin; i < end; i += values.size()) {
                                const std::size_t n = std::min(values.size(), end - i);
                                F::decode({old.data + i, n}, std::span(values).first(n));
                                std::transform(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(n), to + i, [](float x) { return T(x); });
                            }
                        });
                    };
                    if (dtype == Dtype::f32) convert(buffer->template as<float>());
                    else if (dtype == Dtype::bf16) convert(buffer->template as<bf16_t>());
                    else convert(buffer->template as<fp16_t>());
                });
                const auto* data = static_cast<const std::byte*>(buffer->data());
                param.bind(be, {path, dtype, param.shape(), {}, data, std::move(buffer), "(memory)"});
            }
        }
        done += param.size();
        if (on_progress) on_progress(done, total);
    });
}

}  // namespace prism
