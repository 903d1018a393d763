// initialise: a fresh projector, with the numbers that PyTorch would have drawn.
//
//     prism::initialise(cpu, vlm.projector);         // as the reference leaves a projector before training
// Source: pytorch/pytorch, torch/nn/modules/linear.py; TRI-ML/prismatic-vlms, models/vlms/prismatic.py (the seed of the projector).
#pragma once

#include "prism/core/fields.hpp"
#include "prism/core/tensor.hpp"
#include "prism/fusion/projector.hpp"
#include "prism/model/reference_random.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace prism {

/// Gives a projector the values that the reference starts from: its layers in order, drawn after seeding with the width
/// of its input, unless another seed is given.
template <Backend B>
void initialise(B& be, Projector<B>& projector, std::optional<std::uint64_t> seed = {}) {
    ReferenceRandom random{seed.value_or(projector.d_vision())};
    const auto      layer = [&](Linear<B>& linear) {
        const auto bind = [&](auto& param, std::vector<float> values) {
            auto       owner = std::make_shared<const std::vector<float>>(std::move(values));
            TensorInfo tensor{"projector", Dtype::f32, param.shape(), {}, reinterpret_cast<const std::byte*>(owner->data()), nullptr, "a fresh projector"};
            tensor.owner = std::move(owner);
            param.bind(be, tensor);
        };
        std::vector<float> weight(linear.weight.size()), bias(linear.bias.size());
        random.linear(linear.d_in(), weight, bias);
        bind(linear.weight, std::move(weight)), bind(linear.bias, std::move(bias));
    };
    std::visit([&](auto& kind) {
        using Kind = std::remove_cvref_t<decltype(kind)>;
        std::apply([&](const auto&... field) { (layer(kind.*(field.member)), ...); }, Kind::params);
    }, projector.kind);
}

}  // namespace prism
