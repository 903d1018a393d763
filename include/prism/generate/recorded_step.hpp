// RecordedStep: reading a token and choosing the next one, recorded once and then done again at every later position with
// one call. On backends that record (Cuda) a step so costs the device's time alone.
#pragma once

#include "prism/backend/recording.hpp"
#include "prism/core/buffer.hpp"
#include "prism/generate/sampling.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace prism {

/// What a recorded step was recorded for.
struct StepKind {
    std::size_t  first_id = 0, n_ids = 0;
    float        temperature = 0, top_p = 1;
    std::int64_t top_k = 0;

    bool operator==(const StepKind&) const = default;
};

template <RecordingBackend B>
class RecordedStep {
public:
    explicit RecordedStep(B& be) : be_(&be), integers_(be.allocate(2 * sizeof(std::int32_t))), uniform_(be.allocate(sizeof(double))) {}

    bool records(const StepKind& kind) const { return recording_ && kind == kind_; }

    /// Records the step at position `at`. read() enqueues the embedding of one token, the model and the scores, and returns
    /// the scores [n_ids].
    template <class Read>
    void record(const StepKind& kind, std::size_t at, Read&& read) {
        recording_.reset();
        recording_.emplace(be_->record([&] {
            Vec<B, const float> scores;
            {
                const FromDevice from(*be_, token(), shift());
                scores = read();
            }
            const auto first = static_cast<std::int32_t>(kind.first_id);
            if (kind.temperature == 0) be_->take_likeliest(scores, first, token());
            else be_->take_drawn(scores, first, kind.temperature, kind.top_k, kind.top_p, uniform_.template as<const double>(), token());
        }));
        kind_ = kind, at_ = at;
    }

    /// The token that follows `id`, which stands at `position`; -1 where scores are not finite. `sampler` gives the random
    /// number where one is needed.
    std::int32_t next(std::int32_t id, std::size_t position, Sampler& sampler) {
        const std::array<std::int32_t, 2> state{id, static_cast<std::int32_t>(static_cast<std::ptrdiff_t>(position) - static_cast<std::ptrdiff_t>(at_))};
        be_->upload(std::span<const std::int32_t>(state), token());
        if (kind_.temperature != 0) {
            const double number = sampler.uniform();
            be_->upload(std::span(&number, 1), uniform_.template as<double>());
        }
        be_->replay(*recording_);
        std::int32_t chosen = -1;
        be_->download(token(), std::span(&chosen, 1));
        return chosen;
    }

private:
    std::int32_t* token() const { return integers_.template as<std::int32_t>(); }
    std::int32_t* shift() const { return token() + 1; }

    B*                                     be_;
    Buffer<typename B::space>              integers_, uniform_;
    std::optional<typename B::Recording>   recording_;
    StepKind                               kind_;
    std::size_t                            at_ = 0;
};

}  // namespace prism
