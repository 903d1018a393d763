// What the trainers of towers share: which parameters an objective reaches, a tower that is trained where it stands, the pictures
// of a batch, how they pass a tower some at a time, sums over the patches of a picture.
#pragma once

#include "draw.hpp"

#include "prism/backend/cpu/training.hpp"
#include "prism/backend/dry/training.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/image/transform.hpp"
#include "prism/train/optimizer.hpp"
#include "prism/train/run/train_run.hpp"
#include "prism/train/vision_backward.hpp"

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::shapes {

/// Whether the features of a tower, which a language model reads, depend on its parameter of this name: they end before the
/// last block, the last norm and the pooling head.
inline bool reaches_features(const VitConfig& tower, std::string_view name) {
    return !name.starts_with("blocks." + std::to_string(tower.n_layers - 1) + ".") && !name.starts_with("norm.") && !name.starts_with("attn_pool.");
}

/// The parameters of `to` that have values in `from` and the same shape there become those: one memory, owned by both. Both
/// are of one type and depth.
template <class M>
void share_parameters(const M& from, M& to) {
    struct Place {
        std::vector<std::size_t> shape{};
        Placed                   values{};
        Dtype                    dtype = Dtype::f32;
    };
    std::vector<Place> places;
    visit(from, [&](const std::string&, const auto& param) {
        places.emplace_back();
        if (!param.bound()) return;
        const TensorInfo t = param.stored();
        places.back() = {t.shape, {t.data, t.owner, t.panels}, t.dtype};
    });
    auto next = places.begin();
    visit(to, [&](const std::string&, auto& param) {
        if (const Place& place = *next++; !place.shape.empty() && place.shape == param.shape()) param.take(place.values, place.dtype);
    });
}

/// The parameters of `to` get the values of those of `from`, of the same type and configuration, as f32.
template <class M>
void copy_parameters(Cpu& be, const M& from, M& to) {
    const ArenaLayout layout = arena_layout(from, [](std::string_view) { return true; });
    share_parameters(from, to);
    Arena<Cpu>{be, layout}.adopt(be, to);
}

/// The pictures of a batch as towers read them, used again from batch to batch.
class Pictures {
public:
    /// One transform for each tower.
    explicit Pictures(std::vector<ImageTransform> transforms) : transforms_(std::move(transforms)), pixels_(transforms_.size()) {}

    /// Draws scene(i) for i in 0 ... n - 1, on several threads: `scene` may write down what else it knows of picture i.
    template <class SceneOf>
    void draw(Cpu& be, std::size_t n, SceneOf&& scene) {
        for (std::size_t t = 0; t < pixels_.size(); ++t) pixels_[t].resize(n * values(t));
        n_ = n;
        be.parallel_for(n, 1, [&](std::size_t i, std::size_t) {
            const Image picture = shapes::draw(scene(i));
            for (std::size_t t = 0; t < pixels_.size(); ++t) {
                const std::size_t side = transforms_[t].size;
                transforms_[t].apply(picture, {pixels_[t].data() + i * values(t), {3, side, side}});
            }
        });
    }
    /// [n, 3, S, S] of tower t.
    PixelView<Cpu> view(std::size_t t = 0) const { return {pixels_[t].data(), {n_, 3, transforms_[t].size, transforms_[t].size}}; }
    std::vector<PixelView<Cpu>> views() const {
        std::vector<PixelView<Cpu>> all;
        for (std::size_t t = 0; t < pixels_.size(); ++t) all.push_back(view(t));
        return all;
    }

private:
    std::size_t values(std::size_t t) const { return 3 * transforms_[t].size * transforms_[t].size; }

    std::vector<ImageTransform>     transforms_;
    std::vector<std::vector<float>> pixels_;
    std::size_t                     n_ = 0;
};

/// The parameters and moments of an optimiser as a run saves them.
inline std::vector<NamedSpan> named_parameters(const Optimizer<Cpu>& optimizer) {
    std::vector<NamedSpan> all;
    for (const Slot& slot : optimizer.layout().slots) all.push_back({slot.name, slot.shape, optimizer.parameters().values(slot).span()});
    return all;
}
inline std::vector<NamedSpan> named_moments(const Optimizer<Cpu>& optimizer) {
    return {{"m", {optimizer.m().size()}, optimizer.m().span()}, {"v", {optimizer.v().size()}, optimizer.v().span()}};
}

/// The same as a part of the recipe saves it.
inline std::vector<NamedSpan> whole_state(const Optimizer<Cpu>& optimizer) {
    auto all = named_moments(optimizer);
    all.push_back({"parameters", {optimizer.layout().size}, optimizer.parameters().values().span()});
    return all;
}

/// Takes a larger workspace where this one is too small.
inline void make_room(Cpu& be, Workspace<Cpu>& ws, std::size_t bytes) {
    if (bytes <= ws.capacity_bytes()) return;
    ws = Workspace<Cpu>{be, 0};  // both would not have to fit
    ws = Workspace<Cpu>{be, bytes};
}

/// sums [n, d]: row i += all rows of the ith of the n equal parts of x.
template <TrainingBackend B>
void add_sums(B& be, In<B> x, Mat<B> sums) {
    const std::size_t length = x.rows() / sums.rows();
    for (std::size_t i = 0; i < sums.rows(); ++i) ops::add_table_backward<B>(be, x.rows(i * length, length), sums.rows(i, 1));
}
/// Its gradient: the rows of the ith part of dx are row i of d.
template <TrainingBackend B>
void add_sums_backward(B& be, In<B> d, Mat<B> dx) {
    const std::size_t length = dx.rows() / d.rows();
    ops::clear<B>(be, dx);
    for (std::size_t i = 0; i < d.rows(); ++i) ops::add_table<B>(be, d.rows(i, 1), dx.rows(i * length, length));
}

/// Calls f(i, first, pictures) for pixels [n, 3, S, S], `together` pictures at a time: what a few of them need stays in the
/// caches.
template <Backend B, class Fn>
void in_parts(PixelView<B> pixels, std::size_t together, Fn&& f) {
    const std::size_t n = pixels.extent(0);
    for (std::size_t i = 0, first = 0; first < n; ++i, first += together)
        f(i, first, PixelView<B>{pixels.data() ? pixels.data() + first * pixels.stride(0) : nullptr,
                                 {std::min(together, n - first), pixels.extent(1), pixels.extent(2), pixels.extent(3)}});
}

}  // namespace prism::shapes
