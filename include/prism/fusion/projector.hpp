// Projectors: from the features of the towers to embeddings of the language model ("soft tokens").
//
//     prism::FusedMlpProjector<B> projector{{.d_vision = 1024 + 1152, .d_model = 4096}};
#pragma once

#include "prism/core/workspace.hpp"
#include "prism/nn/mlp.hpp"

#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace prism {

struct ProjectorConfig {
    std::size_t d_vision, d_model;
};

/// x [n, d_vision] -> out [n, d_model]. Source of all three: TRI-ML/prismatic-vlms, util/nn_utils.py; names are those of
/// its nn.Sequential.
template <Backend B>
struct LinearProjector {
    Linear<B> linear;

    static constexpr auto params = fields(field("", &LinearProjector::linear));

    explicit LinearProjector(const ProjectorConfig& c) : linear(c.d_vision, c.d_model) {}

    std::size_t d_vision() const { return linear.d_in(); }
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>&, In<B> x, Mat<B> out, K keep = {}) const {
        keep("x", x);
        linear.forward(be, x, out);
    }
};

/// d_vision -> d_model, GELU, d_model -> d_model: "gelu-mlp".
template <Backend B>
struct MlpProjector {
    Linear<B> fc1, fc2;

    static constexpr auto params = fields(field("0", &MlpProjector::fc1), field("2", &MlpProjector::fc2));

    explicit MlpProjector(const ProjectorConfig& c) : fc1(c.d_vision, c.d_model), fc2(c.d_model, c.d_model) {}

    std::size_t d_vision() const { return fc1.d_in(); }
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, In<B> x, Mat<B> out, K keep = {}) const {
        auto scope = keep.scope(ws);
        fc2.forward(be, activated(be, ws, fc1, Activation::gelu_erf, x, keep.at("fc1")), out);
    }
};

/// d_vision -> 4 d_vision, GELU, -> d_model, GELU, -> d_model: "fused-gelu-mlp".
template <Backend B>
struct FusedMlpProjector {
    Linear<B> fc1, fc2, fc3;

    static constexpr auto params =
        fields(field("0", &FusedMlpProjector::fc1), field("2", &FusedMlpProjector::fc2), field("4", &FusedMlpProjector::fc3));

    explicit FusedMlpProjector(const ProjectorConfig& c)
        : fc1(c.d_vision, 4 * c.d_vision), fc2(4 * c.d_vision, c.d_model), fc3(c.d_model, c.d_model) {}

    std::size_t d_vision() const { return fc1.d_in(); }
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, In<B> x, Mat<B> out, K keep = {}) const {
        auto         scope = keep.scope(ws);
        const Mat<B> wide = activated(be, ws, fc1, Activation::gelu_erf, x, keep.at("fc1"));
        const Mat<B> h = activated(be, ws, fc2, Activation::gelu_erf, In<B>(wide), keep.at("fc2"));
        fc3.forward(be, h, out);
    }
};

enum class ProjectorKind { linear, gelu_mlp, fused_gelu_mlp };

/// The kind that an `arch_specifier` names; a "no-align+" in front speaks of training only. Throws ConfigError.
inline ProjectorKind projector_from_arch(std::string_view arch) {
    if (arch == "linear") return ProjectorKind::linear;
    if (arch.ends_with("fused-gelu-mlp")) return ProjectorKind::fused_gelu_mlp;
    if (arch.ends_with("gelu-mlp")) return ProjectorKind::gelu_mlp;
    throw ConfigError{"arch_specifier", std::string(arch), "linear, gelu-mlp, fused-gelu-mlp, no-align+gelu-mlp, no-align+fused-gelu-mlp"};
}

/// Whichever projector a configuration asks for.
template <Backend B>
struct Projector {
    std::variant<LinearProjector<B>, MlpProjector<B>, FusedMlpProjector<B>> kind;

    static constexpr auto params = fields(field("", &Projector::kind));

    Projector(ProjectorKind which, const ProjectorConfig& c) : kind(make(which, c)) {}

    std::size_t d_vision() const {
        return std::visit([](const auto& p) { return p.d_vision(); }, kind);
    }
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, In<B> x, Mat<B> out, K keep = {}) const {
        std::visit([&](const auto& p) { p.forward(be, ws, x, out, keep); }, kind);
    }

private:
    static decltype(kind) make(ProjectorKind which, const ProjectorConfig& c) {
        if (which == ProjectorKind::linear) return LinearProjector<B>{c};
        if (which == ProjectorKind::gelu_mlp) return MlpProjector<B>{c};
        return FusedMlpProjector<B>{c};
    }
};

}  // namespace prism
