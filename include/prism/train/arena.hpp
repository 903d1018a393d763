// Arena: the trained parameters of a model in one flat vector, and what lies beside them: gradients, moments.
//
//     const ArenaLayout layout = arena_layout(model, [](std::string_view name) { return name.starts_with("projector."); });
//     Arena<B> theta{be, layout}, gradients{be, layout};
//     theta.adopt(be, model);               // the parameters move into the arena: what is written there, the model reads
//     auto grads = unbound_twin<B>(model);  // the same modules without values
//     gradients.bind(grads);                // leaves of parts that are not trained stay without a place
#pragma once

#include "prism/core/fields.hpp"
#include "prism/nn/linear.hpp"
#include "prism/ops/backward.hpp"
#include "prism/ops/rows.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

/// Where one parameter lies in an arena.
struct Slot {
    std::string              name;    // the path of visit
    std::vector<std::size_t> shape;   // as in the model
    std::size_t              offset = 0, size = 0;  // in values
};

/// The parameters of an arena in the order of visit. Each begins at a multiple of 16 values; what lies between is 0 and stays
/// 0, so that norms, steps and reductions run over everything at once.
struct ArenaLayout {
    std::vector<Slot> slots;
    std::size_t       size = 0;  // values in all

    /// The slot of this name; null where there is none.
    const Slot* find(std::string_view name) const {
        const auto at = std::find_if(slots.begin(), slots.end(), [&](const Slot& s) { return s.name == name; });
        return at == slots.end() ? nullptr : &*at;
    }
};

/// The parameters of `module` whose names `trained` picks. Parts that are absent by configuration take no part.
template <class M, class Pick>
ArenaLayout arena_layout(const M& module, Pick&& trained) {
    ArenaLayout layout;
    visit(module, [&](const std::string& path, const auto& param) {
        if (param.shape().empty() || !trained(std::string_view(path))) return;
        layout.slots.push_back({path, param.shape(), layout.size, param.size()});
        layout.size += (param.size() + 15) / 16 * 16;
    });
    return layout;
}

namespace detail {

/// to [rows, cols] = the values of w, whatever their format.
template <Backend B>
void decode(B& be, const Weight<B>& w, Mat<B> to) {
    std::vector<std::int32_t> ids(w.rows());
    std::iota(ids.begin(), ids.end(), 0);
    w.visit([&](const auto& matrix) { ops::gather<B>(be, matrix, ids, to); });
}

}  // namespace detail

/// A flat vector of f32 with a layout. Zero at first. Move-only; modules that are bound to it keep its memory alive.
template <Backend B>
class Arena {
public:
    Arena(B& be, ArenaLayout layout) : layout_(std::move(layout)), buffer_(std::make_shared<Buffer<typename B::space>>(be.allocate(layout_.size * sizeof(float)))) {
        clear(be);
    }
    Arena(Arena&&) noexcept = default;
    Arena& operator=(Arena&&) noexcept = default;

    const ArenaLayout& layout() const { return layout_; }
    /// All values, and those of one parameter.
    Vec<B> values() const { return {data(0), {layout_.size}}; }
    Vec<B> values(const Slot& slot) const { return {data(slot.offset), {slot.size}}; }

    void clear(B& be) const {
        if (layout_.size) ops::clear<B>(be, {data(0), {layout_.size / 16, 16}});
    }

    /// The parameters of the layout that the module has have their values here from now on. Those of a module with values have
    /// to be copied before: see adopt.
    template <class M>
    void bind(M& module) const {
        each(module, [&](const Slot& slot, auto& param) { param.take({data(slot.offset), buffer_}, Dtype::f32); });
    }
    /// The values that the module has, whatever their format.
    template <class M>
    void copy(B& be, const M& module) const {
        each(module, [&](const Slot& slot, const auto& param) {
            if constexpr (requires { param.rows(); }) {
                detail::decode<B>(be, param, {data(slot.offset), {param.rows(), param.cols()}});
            } else {
                ops::copy<B>(be, {param.view().data(), {1, slot.size}}, {data(slot.offset), {1, slot.size}});
            }
        });
        be.wait();
    }
    /// Both: the values move here.
    template <class M>
    void adopt(B& be, M& module) const {
        copy(be, module);
        bind(module);
    }

private:
    template <class M, class Fn>
    void each(M& module, Fn&& f) const {
        auto next = layout_.slots.begin();
        visit(module, [&](const std::string& path, auto& param) {
            if (next != layout_.slots.end() && next->name == path) f(*next++, param);
        });
    }
    float* data(std::size_t offset) const {
        auto* all = buffer_->template as<float>();
        return all ? all + offset : nullptr;
    }

    ArenaLayout                                     layout_;
    std::shared_ptr<Buffer<typename B::space>> buffer_;
};

/// Where the gradient of a parameter is summed: the same leaf of a module that is bound to an arena of gradients. Empty where
/// the leaf has no place, which is how parts of a module are frozen.
template <Backend B>
Vec<B> gradient(const Param<B>& of) {
    if (!of.bound()) return {};
    return {const_cast<float*>(of.view().data()), {of.size()}};  // the arena's memory, which is not constant
}
/// As rows of the last extent.
template <Backend B>
Mat<B> gradient_rows(const Param<B>& of) {
    if (!of.bound()) return {};
    return {const_cast<float*>(of.mat().data()), of.mat().shape()};
}
template <Backend B, class Formats>
Mat<B> gradient(const Weight<B, Formats>& of) {
    if (!of.bound()) return {};
    return {static_cast<float*>(const_cast<void*>(of.any().data)), {of.rows(), of.cols()}};
}

/// The gradients of a part; null where those of the whole are.
template <class M, class P>
P* part(M* grads, P M::*member) {
    return grads ? &(grads->*member) : nullptr;
}

}  // namespace prism
