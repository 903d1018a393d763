// RecordedAction: a whole action of an OpenVLA policy as one recording, from pixels to its tokens: the towers, the
// projector, the prompt, and a decode step for every further token, each of which reads the token before it on the device.
// The host uploads pictures and ids, starts it, and gets the tokens.
#pragma once

#include "prism/backend/recording.hpp"
#include "prism/generate/session.hpp"
#include "prism/image/transform.hpp"
#include "prism/model/prismatic.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace prism {

/// Which scores an action's tokens are chosen from, and how many tokens there are.
struct ActionRequest {
    std::size_t n_tokens = 7, first_id = 0, n_ids = 0;
    std::size_t picture_at = 1;

    bool operator==(const ActionRequest&) const = default;
};

/// Memory for prompts of up to `max_tokens`, picture and action included, is taken once. The model has to outlive it.
template <RecordingBackend B>
class RecordedAction {
public:
    RecordedAction(B& be, const Prismatic<B>& model, std::size_t max_tokens)
        : be_(&be), model_(&model), transforms_(model.transforms()), cache_(model.llm.make_cache(be, max_tokens)),
          soft_(be.allocate(model.n_soft_tokens() * model.llm.d_model() * sizeof(float))),
          ids_(be.allocate(max_tokens * sizeof(std::int32_t))),
          chosen_(be.allocate(max_tokens * sizeof(std::int32_t))) {
        for (const ImageTransform& t : transforms_) {
            values_.emplace_back(3 * t.size * t.size);
            pixels_.push_back(be.allocate(values_.back().size() * sizeof(float)));
            views_.push_back({pixels_.back().template as<const float>(), {1, 3, t.size, t.size}});
        }
        vision_ws_.emplace(be, seeing_cost(model, std::span<const PixelView<B>>(views_)).workspace_bytes);
    }

    /// Prepares a picture and sends it to the device.
    void show(const Image& image) {
        for (std::size_t i = 0; i < transforms_.size(); ++i) {
            const std::size_t side = transforms_[i].size;
            transforms_[i].apply(image, {values_[i].data(), {3, side, side}});
            be_->upload(values_[i], {pixels_[i].template as<float>(), {values_[i].size()}});
        }
    }

    /// The tokens of the action after this prompt. The first call for a length of prompt does the work step by step, the
    /// second records it, later ones replay. Throws ConfigError when it does not fit, GenerationError where scores are not
    /// finite.
    std::vector<std::int32_t> act(std::span<const std::int32_t> ids, const ActionRequest& request) {
        const std::size_t n_soft = model_->n_soft_tokens();
        expect_room(ids.size(), n_soft, cache_.capacity());
        expect_room(ids.size() + request.n_tokens, n_soft, cache_.capacity() + 1);
        if (ids.size() != n_ids_ || request != request_) {
            recording_.reset(), done_once_ = false;
            n_ids_ = ids.size(), request_ = request;
            ws_.emplace(*be_, reading_cost(model_->llm, n_soft + ids.size()).workspace_bytes);
        }
        be_->upload(ids, ids_.template as<std::int32_t>());
        if (!recording_ && done_once_) recording_.emplace(be_->record([&] { work(ids); }));
        if (recording_) be_->replay(*recording_);
        else work(ids);
        done_once_ = true;

        std::vector<std::int32_t> tokens(request.n_tokens);
        be_->download(chosen_.template as<const std::int32_t>(), tokens);
        if (const auto bad = std::find(tokens.begin(), tokens.end(), -1); bad != tokens.end())
            throw GenerationError{static_cast<std::size_t>(bad - tokens.begin()), {tokens.begin(), bad}};
        return tokens;
    }

private:
    /// Everything between the pixels and the tokens. Ids are read on the device; those of `ids` only say how many there are.
    void work(std::span<const std::int32_t> ids) {
        const std::size_t d = model_->llm.d_model(), n_soft = model_->n_soft_tokens();
        const Mat<B>      soft{soft_.template as<float>(), {n_soft, d}};
        auto* const       chosen = chosen_.template as<std::int32_t>();
        cache_.truncate(0);
        model_->see(*be_, *vision_ws_, views_, soft);
        const FromDevice  from(*be_, ids_.template as<const std::int32_t>());
        const auto        sequence = splice(ids, std::min(request_.picture_at, ids.size()), n_soft);
        for (std::size_t i = 0; i < request_.n_tokens; ++i) {
            const std::size_t n = i == 0 ? sequence.size() : 1;
            auto              scope = ws_->scope();
            Mat<B>            x = ws_->mat(n, d);
            if (i == 0) {
                embed_sequence<B>(*be_, model_->llm, sequence, soft, 0, x);
            } else {
                be_->ids_from(chosen + i - 1);
                model_->llm.embed(*be_, std::array<std::int32_t, 1>{}, x);
            }
            const Segment<B> batch[]{{&cache_, n}};
            model_->llm.forward(*be_, *ws_, batch, x);
            Mat<B> logits = ws_->mat(1, request_.n_ids);
            model_->llm.logits(*be_, x.rows(n - 1, 1), request_.first_id, request_.n_ids, logits);
            be_->take_likeliest(logits.row(0), static_cast<std::int32_t>(request_.first_id), chosen + i);
        }
    }

    B*                                     be_;
    const Prismatic<B>*                    model_;
    std::vector<ImageTransform>            transforms_;
    KvCache<B>                             cache_;
    Buffer<typename B::space>              soft_, ids_, chosen_;
    std::vector<std::vector<float>>        values_;  // of the picture, a tower's after another's
    std::vector<Buffer<typename B::space>> pixels_;
    std::vector<PixelView<B>>              views_;
    std::optional<Workspace<B>>            vision_ws_, ws_;
    std::optional<typename B::Recording>   recording_;
    ActionRequest                          request_{};
    std::size_t                            n_ids_ = 0;
    bool                                   done_once_ = false;
};

}  // namespace prism
