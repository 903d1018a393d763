// FeatureCache: what frozen towers see in a picture never changes, so it is computed once.
//
//     FeatureCache cache{cpu, vlm, {.bytes = std::size_t{4} << 30}};
//     const In<Cpu> features = cache.features(examples, pixels);         // of those that it knows, pixels are not read
//     trainer.micro_step({.rows = rows, .features = features});
//
// What is in it first stays: every epoch needs every picture once, so forgetting some for others would gain nothing. In f32 the
// features are those of the towers, bit for bit (as long as products are exact, Compute::exact: a row's bits then do not depend on
// how many others there are). In bf16 all features are rounded, whether they are kept or not, so that the outcome of a run depends
// neither on the budget nor on where it was interrupted.
#pragma once

#include "prism/backend/dry/dry.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/core/dtype.hpp"
#include "prism/fusion/splice.hpp"
#include "prism/model/prismatic.hpp"
#include "prism/train/stage.hpp"

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace prism {

struct FeatureCounts {
    std::uint64_t computed = 0, remembered = 0;  // pictures that passed the towers, and that did not need to
    std::size_t   pictures = 0, bytes = 0;       // that are kept
};

/// For backends whose memory the host reads. The model has to stay where it is, and its towers as they are.
template <Backend B>
    requires std::same_as<typename B::space, host>
class FeatureCache {
public:
    /// Throws ConfigError for a type of values that it cannot keep.
    FeatureCache(B& be, const Prismatic<B>& model, const FeatureCacheOptions& options) : be_(&be), model_(&model), twin_(dry_twin(model)), options_(options), ws_(be, 0) {
        if (options.dtype != Dtype::f32 && options.dtype != Dtype::bf16) throw ConfigError{"feature_cache_format", std::string(to_string(options.dtype)), "f32 or bf16"};
    }
    FeatureCache(const FeatureCache&) = delete;
    FeatureCache& operator=(const FeatureCache&) = delete;

    /// Whether the features of this example's picture are kept; from then on they are. From any thread.
    bool knows(std::size_t example) const {
        const std::lock_guard lock{mutex_};
        return kept_.contains(example);
    }

    /// [n_pictures n_patches, d_vision] of the pictures of these examples, until the next call. pixels: one view per tower,
    /// [n_pictures, 3, S, S]; of examples that it knows they may be anything. Throws ShapeError.
    In<B> features(std::span<const std::size_t> examples, std::span<const PixelView<B>> pixels) {
        const std::size_t n_patches = model_->n_soft_tokens(), width = model_->projector.d_vision(), values = n_patches * width;
        features_.resize(examples.size() * values);
        fresh_.clear();
        for (std::size_t i = 0; i < examples.size(); ++i) {
            const std::byte* const at = find(examples[i]);
            if (at) read(at, std::span(features_).subspan(i * values, values));
            else fresh_.push_back(i);
        }
        counts_.remembered += examples.size() - fresh_.size(), counts_.computed += fresh_.size();
        if (!fresh_.empty()) see(pixels, n_patches, width);
        for (std::size_t k = 0; k < fresh_.size(); ++k) {
            const auto one = std::span<const float>(seen_).subspan(k * values, values);
            const auto to = std::span(features_).subspan(fresh_[k] * values, values);
            std::ranges::copy(one, to.begin());
            if (options_.dtype == Dtype::bf16)
                for (float& x : to) x = static_cast<float>(bf16_t{x});
            keep(examples[fresh_[k]], to);
        }
        return {features_.data(), {examples.size() * n_patches, width}};
    }

    const FeatureCounts& counts() const { return counts_; }

private:
    /// The towers' features of the fresh pictures, one behind another.
    void see(std::span<const PixelView<B>> pixels, std::size_t n_patches, std::size_t width) {
        const std::size_t            n = fresh_.size();
        std::vector<PixelView<B>>    views;
        std::vector<PixelView<Dry>>  dry_views;
        pixels_.resize(pixels.size());
        for (std::size_t t = 0; t < pixels.size(); ++t) {
            const std::size_t plane = pixels[t].stride(0);
            pixels_[t].resize(n * plane);
            for (std::size_t k = 0; k < n; ++k) std::copy_n(pixels[t].data() + fresh_[k] * plane, plane, pixels_[t].data() + k * plane);
            views.push_back({pixels_[t].data(), {n, pixels[t].extent(1), pixels[t].extent(2), pixels[t].extent(3)}});
            dry_views.push_back(dry_view(views.back()));
        }
        const std::size_t bytes = dry_run([&](Dry& dry, Workspace<Dry>& ws) { fuse_towers<Dry>(dry, ws, twin_.towers, dry_views, {nullptr, {n * n_patches, width}}); }).workspace_bytes;
        if (bytes > ws_.capacity_bytes()) {
            ws_ = Workspace<B>{*be_, 0};  // both would not have to fit
            ws_ = Workspace<B>{*be_, bytes};
        }
        seen_.resize(n * n_patches * width);
        fuse_towers<B>(*be_, ws_, model_->towers, views, {seen_.data(), {n * n_patches, width}});
        be_->wait();
    }

    const std::byte* find(std::size_t example) const {
        const std::lock_guard lock{mutex_};
        const auto            at = kept_.find(example);
        return at == kept_.end() ? nullptr : at->second.data();
    }
    void read(const std::byte* from, std::span<float> to) const {
        if (options_.dtype == Dtype::f32) return void(std::memcpy(to.data(), from, to.size_bytes()));
        for (std::size_t i = 0; i < to.size(); ++i) {
            bf16_t x;
            std::memcpy(&x, from + 2 * i, 2);
            to[i] = static_cast<float>(x);
        }
    }
    void keep(std::size_t example, std::span<const float> values) {
        const std::size_t bytes = values.size() * item_bytes(options_.dtype);
        if (counts_.bytes + bytes > options_.bytes) return;
        std::vector<std::byte> stored(bytes);
        if (options_.dtype == Dtype::f32) std::memcpy(stored.data(), values.data(), bytes);
        else
            for (std::size_t i = 0; i < values.size(); ++i) {
                const bf16_t x{values[i]};
                std::memcpy(stored.data() + 2 * i, &x, 2);
            }
        const std::lock_guard lock{mutex_};
        if (kept_.try_emplace(example, std::move(stored)).second) counts_.bytes += bytes, ++counts_.pictures;
    }

    B*                  be_;
    const Prismatic<B>* model_;
    Prismatic<Dry>      twin_;
    FeatureCacheOptions options_;
    Workspace<B>        ws_;
    FeatureCounts       counts_;
    std::vector<float>  features_, seen_;
    std::vector<std::size_t>        fresh_;
    std::vector<std::vector<float>> pixels_;
    mutable std::mutex                                      mutex_;
    std::unordered_map<std::size_t, std::vector<std::byte>> kept_;  // by example; values stay where they are
};

}  // namespace prism
