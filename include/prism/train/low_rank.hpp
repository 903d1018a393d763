// Low-rank adapters (LoRA; Hu et al. 2021): W + alpha / rank B A in place of W, where B and A are trained and W is not.
//
// The model computes with merged weights, in forward and in backward, so that neither knows of adapters: what is merged in the
// end is what was trained. Gradients go to A and B alone, without one of W:
//     dB += alpha / rank dy^T (x A^T)          dA += alpha / rank (dy B)^T x
// With dropout in front of A, the product of merged weights is followed by what the adapter did not see, factor (d(x) - x) A^T B^T,
// and the gradients are those of d(x); the model without training is the merged one.
// That takes the memory of the adapted matrices in f32, besides what they were loaded as; gradients and moments are those of A
// and B alone.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/config.hpp"
#include "prism/model/random.hpp"
#include "prism/train/arena.hpp"
#include "prism/train/stage.hpp"
#include "prism/train/tape.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

/// The adapters of linear layers of a decoder's blocks.
template <TrainingBackend B>
class LowRankAdapters {
public:
    /// Slots for A and B of every adapted matrix behind those of `layout`, under PEFT's names ("...q_proj.lora_A.weight").
    /// Throws ConfigError for a target that no block has.
    template <class M>
    static ArenaLayout with_slots(ArenaLayout layout, const M& model, const LoraOptions& options) {
        const auto add = [&](std::string name, std::vector<std::size_t> shape) {
            const std::size_t size = shape[0] * shape[1];
            layout.slots.push_back({std::move(name), std::move(shape), layout.size, size});
            layout.size += (size + 15) / 16 * 16;
        };
        std::vector<std::string> known;
        visit(model, [&](const std::string& path, const auto& param) {
            if (!options.rank || !in_block(path, param)) return;
            const std::string name{module_name(path)};
            if (std::ranges::find(known, name) == known.end()) known.push_back(name);
            if (!options.targets.empty() && std::ranges::find(options.targets, name) == options.targets.end()) return;
            add(with_letter(path, "A"), {options.rank, param.shape()[1]});
            add(with_letter(path, "B"), {param.shape()[0], options.rank});
        });
        for (const std::string& target : options.targets)
            if (options.rank && std::ranges::find(known, target) == known.end()) throw ConfigError{"lora_target_modules", target, ConfigReader::one_of(known)};
        return layout;
    }

    /// Adapts `model`, which has to stay where it is: A gets its first values in `parameters`, the adapted matrices are f32
    /// from now on, and `tape` is told where gradients go.
    template <class M>
    LowRankAdapters(B& be, M& model, const Arena<B>& parameters, const Arena<B>& gradients, Tape<B>& tape, const LoraOptions& options)
        : merged_(be, arena_layout(model, [&](std::string_view name) { return options.rank && parameters.layout().find(with_letter(name, "A")); })),
          factor_(be, {{}, options.rank}), opposite_(be, {{}, options.rank}), scratch_(be, {{}, most_rows(merged_.layout()) * options.rank}) {
        if (!options.rank) return;
        const auto factor = static_cast<float>(options.alpha / static_cast<double>(options.rank));
        be.upload(std::vector<float>(options.rank, factor), factor_.values());
        be.upload(std::vector<float>(options.rank, -factor), opposite_.values());
        visit(model, [&](const std::string& path, auto& param) {
            if constexpr (requires { param.rows(); }) {
                const Slot* const a = merged_.layout().find(path) ? parameters.layout().find(with_letter(path, "A")) : nullptr;
                if (!a) return;
                const auto    matrix = [](const Arena<B>& arena, const Slot& s) { return Mat<B>{arena.values(s).data(), {s.shape[0], s.shape[1]}}; };
                std::uint64_t seed = options.seed;
                for (char c : path) seed = detail::random_bits(seed, static_cast<unsigned char>(c));
                std::vector<float> values(a->size);
                const double       bound = 1 / std::sqrt(static_cast<double>(a->shape[1]));
                for (std::size_t i = 0; i < values.size(); ++i)
                    values[i] = static_cast<float>(bound * (static_cast<double>(detail::random_bits(seed, i) >> 11) * 0x1p-52 - 1));
                be.upload(values, parameters.values(*a));
                const TensorInfo stored = param.stored();
                bases_.push_back({Weight<B>(param.shape()), {matrix(parameters, a[0]), matrix(parameters, a[1]), matrix(gradients, a[0]), matrix(gradients, a[1]), factor_.values(), opposite_.values(), static_cast<float>(options.dropout), seed}});
                bases_.back().weight.take({stored.data, stored.owner, stored.panels}, stored.dtype);
                tape.adapt(&param, bases_.back().adapter);
            }
        });
        merged_.bind(model);
        merge(be);
    }

    /// W + alpha / rank B A, in the model: after every step, and when A or B were set from outside.
    void merge(B& be) const {
        for (std::size_t i = 0; i < bases_.size(); ++i) {
            const LowRank<B>& adapter = bases_[i].adapter;
            const Slot&       slot = merged_.layout().slots[i];
            const Mat<B>      to{merged_.values(slot).data(), {slot.shape[0], slot.shape[1]}}, b{scratch_.values().data(), adapter.b.shape()};
            detail::decode<B>(be, bases_[i].weight, to);
            ops::clear<B>(be, b);
            ops::add_scaled<B>(be, adapter.b, adapter.factor, b);
            ops::linear_dx<B>(be, b, detail::as_weight<B>(adapter.a), to, true);
        }
    }

    /// The adapted matrices of the model, W + alpha / rank B A, under their own names.
    const Arena<B>& merged() const { return merged_; }
    /// Their memory, and that of merging.
    std::size_t bytes() const { return (merged_.layout().size + factor_.layout().size + opposite_.layout().size + scratch_.layout().size) * sizeof(float); }

private:
    struct Base {
        Weight<B>  weight;  // as it was loaded
        LowRank<B> adapter;
    };

    template <class P>
    static bool in_block(std::string_view path, const P& param) {
        return requires { param.rows(); } && param.shape().size() == 2 && path.find("model.layers.") != path.npos;
    }
    /// "q_proj" of "....q_proj.weight"
    static std::string_view module_name(std::string_view path) {
        path = path.substr(0, path.rfind('.'));
        return path.substr(path.rfind('.') + 1);
    }
    /// "q_proj.weight" to "q_proj.lora_A.weight"
    static std::string with_letter(std::string_view path, const char* letter) {
        constexpr std::string_view weight = "weight";
        if (!path.ends_with(weight)) return {};
        return std::string(path.substr(0, path.size() - weight.size())) + "lora_" + letter + ".weight";
    }
    static std::size_t most_rows(const ArenaLayout& layout) {
        std::size_t most = 0;
        for (const Slot& s : layout.slots) most = std::max(most, s.shape[0]);
        return (most + 15) / 16 * 16;
    }

    Arena<B>          merged_, factor_, opposite_, scratch_;
    std::vector<Base> bases_;
};

}  // namespace prism
