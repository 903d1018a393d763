// Modules with random weights, without files.
#pragma once

#include "prism/core/fields.hpp"
#include "prism/core/tensor.hpp"
#include "support/arrays.hpp"

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace prism::test {

/// A tensor of these values in a type of floats.
inline TensorInfo tensor(std::string name, std::vector<std::size_t> shape, const std::vector<float>& values, Dtype dtype = Dtype::f32) {
    auto owner = std::make_shared<std::vector<std::byte>>(values.size() * item_bytes(dtype));
    for (std::size_t i = 0; i < values.size(); ++i) {
        std::byte* const at = owner->data() + i * item_bytes(dtype);
        const bf16_t     b{values[i]};
        const fp16_t     h{values[i]};
        if (dtype == Dtype::f32) std::memcpy(at, &values[i], 4);
        else std::memcpy(at, dtype == Dtype::bf16 ? static_cast<const void*>(&b) : static_cast<const void*>(&h), 2);
    }
    TensorInfo t{std::move(name), dtype, std::move(shape), {}, owner->data(), nullptr, "made by the test"};
    t.owner = std::move(owner);
    return t;
}

/// A random tensor for every parameter of a module, under the parameter's path. Matrices keep the size of what passes
/// through them; norms are about one.
template <class M>
std::vector<TensorInfo> random_tensors(const M& module, unsigned seed, Dtype dtype = Dtype::f32) {
    std::vector<TensorInfo> tensors;
    visit(module, [&](const std::string& path, const auto& p) {
        if (p.shape().empty()) return;
        const bool  matrix = p.shape().size() > 1, norm = path.find("norm") != path.npos && path.ends_with("weight");
        const float spread = matrix ? 1 / std::sqrt(static_cast<float>(p.size() / p.shape()[0])) : 0.2f;
        tensors.push_back(tensor(path, p.shape(), normal(p.size(), seed++, path.find("embed") != path.npos ? 0.5f : spread, norm ? 1.0f : 0.0f), dtype));
    });
    return tensors;
}

/// Binds tensors in the order of visit.
template <Backend B, class M>
void bind_all(B& be, M& module, const std::vector<TensorInfo>& tensors) {
    auto next = tensors.begin();
    visit(module, [&](const std::string&, auto& p) {
        if (!p.shape().empty()) p.bind(be, *next++);
    });
}
template <Backend B, class M>
void randomise(B& be, M& module, unsigned seed, Dtype dtype = Dtype::f32) {
    bind_all(be, module, random_tensors(module, seed, dtype));
}

}  // namespace prism::test
