// Session: one conversation's state over a model: the picture that was seen, the tokens that were read. Token ids in,
// token ids out; Chat puts text around it.
//
//     Session session{cpu, vlm, {.max_tokens = 2048}};
//     session.show(pixels);                                  // encoded once, for all prompts that follow
//     auto answer = session.generate(ids, {.max_new_tokens = 64});
#pragma once

#include "prism/backend/dry/twin.hpp"
#include "prism/fusion/splice.hpp"
#include "prism/generate/recorded_step.hpp"
#include "prism/generate/sampling.hpp"
#include "prism/nn/attention.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace prism {

struct SessionOptions {
    std::size_t max_tokens = 2048;    // of picture, prompts and answers together; the cache is taken at once
    std::size_t prefill_chunk = 512;  // rows that are read at a time: what the workspace is sized for
    Dtype       cache = Dtype::f32;   // of keys and values; bf16 takes half the memory, and keeps 8 bits of each
};

struct GenerateOptions {
    std::size_t               max_new_tokens = 512;
    SamplingOptions           sampling = {};
    std::vector<std::int32_t> stop_ids = {};                        // end the answer; the one that did is its last id
    std::function<bool(std::int32_t id)> on_token = {};             // return false to stop
    const std::atomic<bool>*  cancel = nullptr;                     // another thread sets it: stops within one token
    std::size_t               first_id = 0, n_ids = 0;              // score only these ids; n_ids 0: all from the first on
};

/// Why an answer ended.
enum class Stop { stop_id, max_new_tokens, callback, cancelled, context_full };

struct Generated {
    std::vector<std::int32_t> ids;
    Stop                      stop = Stop::max_new_tokens;
    double                    prefill_s = 0, decode_s = 0;
};

/// Composed by users or by prism: `llm` is a decoder, `see` turns pictures into its rows.
template <class M, class B>
concept SeeingModel = requires(const M& m, B& be, Workspace<B>& ws, std::span<const PixelView<B>> pixels, Mat<B> soft) {
    m.see(be, ws, pixels, soft);
    { m.n_soft_tokens() } -> std::convertible_to<std::size_t>;
    { m.llm.vocab_size() } -> std::convertible_to<std::size_t>;
};

/// Throws ConfigError unless a prompt has tokens, and fits together with its picture.
inline void expect_room(std::size_t n_tokens, std::size_t n_soft, std::size_t max_tokens) {
    if (n_tokens == 0) throw ConfigError{"prompt", "empty", "at least one token"};
    if (n_tokens + n_soft > max_tokens)
        throw ConfigError{"prompt", std::to_string(n_tokens) + " tokens with a picture of " + std::to_string(n_soft),
                          "together at most max_tokens = " + std::to_string(max_tokens)};
}

namespace detail {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Takes a token into an answer; false when it ends there, and `out.stop` says why.
template <class Say>
bool take_token(Generated& out, std::int32_t id, const GenerateOptions& options, Say&& say) {
    out.ids.push_back(id);
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) out.stop = Stop::stop_id;
    else if (!say(id)) out.stop = Stop::callback;
    else if (options.cancel && options.cancel->load(std::memory_order_relaxed)) out.stop = Stop::cancelled;
    else if (out.ids.size() == options.max_new_tokens) out.stop = Stop::max_new_tokens;
    else return true;
    return false;
}

/// How many ids are scored. Throws ConfigError unless the vocabulary has them.
inline std::size_t n_scored(const GenerateOptions& options, std::size_t vocab_size) {
    if (options.first_id >= vocab_size) throw ConfigError{"first_id", std::to_string(options.first_id), "below " + std::to_string(vocab_size)};
    const std::size_t most = vocab_size - options.first_id;
    if (options.n_ids > most) throw ConfigError{"n_ids", std::to_string(options.n_ids), "at most " + std::to_string(most)};
    return options.n_ids ? options.n_ids : most;
}

/// Throws GenerationError unless all scores are finite.
inline void expect_finite(std::span<const float> scores, const Generated& so_far) {
    for (float s : scores)
        if (!std::isfinite(s)) throw GenerationError{so_far.ids.size(), so_far.ids};
}

/// Nothing, where the backend does not record.
struct NoStep {};
template <class B>
struct StepOfBackend {
    using type = NoStep;
};
template <RecordingBackend B>
struct StepOfBackend<B> {
    using type = std::optional<RecordedStep<B>>;
};
template <class B>
using StepOf = typename StepOfBackend<B>::type;

}  // namespace detail

/// What it costs to read `n_rows` rows at once, and the scratch for scoring up to `n_scored` of them.
template <class Llm>
Cost reading_cost(const Llm& llm, std::size_t n_rows, std::size_t n_scored = 1) {
    return dry_run([&, twin = dry_twin(llm)](Dry& be, Workspace<Dry>& ws) {
        auto               cache = twin.make_cache(be, n_rows);
        const Segment<Dry> batch[]{{&cache, n_rows}};
        Mat<Dry>           x = ws.mat(n_rows, twin.d_model());
        twin.forward(be, ws, batch, x);
        ws.mat(n_scored, twin.vocab_size());
    });
}

/// What it costs to turn pictures, pixels[tower] [n, 3, S, S], into rows of the language model.
template <class M, class Space>
Cost seeing_cost(const M& model, std::span<const View<const float, Space, dyn, dyn, dyn, dyn>> pixels) {
    return dry_run([&, twin = dry_twin(model)](Dry& be, Workspace<Dry>& ws) {
        std::vector<PixelView<Dry>> dry;
        for (const auto& p : pixels) dry.push_back(dry_view(p));
        const std::size_t n = pixels.empty() ? 0 : pixels[0].extent(0);
        twin.see(be, ws, dry, {nullptr, {n * model.n_soft_tokens(), model.llm.d_model()}});
    });
}

/// Holds a cache, a workspace and the soft tokens of a picture; the model is shared and constant. What a prompt has in
/// common with the one before is not read again: further questions on one picture skip the picture.
template <Backend B, class M>
class Session {
public:
    Session(B& be, const M& model, SessionOptions options = {})
        : be_(&be), model_(&model), options_(options), chunk_(std::max<std::size_t>(1, std::min(options.prefill_chunk, options.max_tokens))),
          cache_(model.llm.make_cache(be, options.max_tokens, options.cache)),
          ws_(be, reading_cost(model.llm, chunk_, rows_scored_together).workspace_bytes) {}

    const M&    model() const { return *model_; }
    B&          backend() const { return *be_; }
    std::size_t max_tokens() const { return options_.max_tokens; }
    bool        has_picture() const { return n_soft_ > 0; }
    /// Tokens of the current conversation that are read, soft tokens counted.
    std::size_t length() const { return cache_.length(); }

    /// Encodes a picture: pixels[tower] [1, 3, S, S], normalised. Prompts that follow are about it.
    void show(std::span<const PixelView<B>> pixels) requires SeeingModel<M, B> {
        const std::size_t n = model_->n_soft_tokens(), d = model_->llm.d_model();
        const std::size_t bytes = seeing_cost(*model_, pixels).workspace_bytes;
        if (!vision_ws_ || vision_ws_->capacity_bytes() < bytes) vision_ws_.emplace(*be_, bytes);
        if (soft_.bytes() < n * d * sizeof(float)) soft_ = be_->allocate(n * d * sizeof(float));
        model_->see(*be_, *vision_ws_, pixels, {soft_.template as<float>(), {n, d}});
        n_soft_ = n;
        forget();
    }

    /// Takes soft tokens [n, d_model] that were made elsewhere, in place of a picture. They are copied.
    void show_soft(In<B> soft) {
        expect("Session", "soft", {any, model_->llm.d_model()}, soft);
        soft_ = be_->allocate(soft.size() * sizeof(float));
        be_->copy(soft, {soft_.template as<float>(), {soft.rows(), soft.cols()}});
        n_soft_ = soft.rows();
        forget();
    }

    /// Text alone from here on.
    void hide() {
        n_soft_ = 0;
        forget();
    }

    /// Drops what was read; the picture stays.
    void forget() {
        read_.clear();
        cache_.truncate(0);
    }

    /// Generates after a prompt. The soft tokens of the picture, if there is one, stand before `ids[picture_at]`:
    /// Prismatic puts them after the start token. Throws ConfigError when the prompt does not fit or is empty, before any
    /// work, and GenerationError when scores are not finite.
    Generated generate(std::span<const std::int32_t> ids, const GenerateOptions& options = {}, std::size_t picture_at = 1) {
        Sampler            sampler{options.sampling};
        Generated          out;
        std::vector<float> scores(detail::n_scored(options, model_->llm.vocab_size()));
        std::vector<std::int32_t> history(ids.begin(), ids.end());

        auto start = std::chrono::steady_clock::now();
        read(splice(ids, n_soft_ ? std::min(picture_at, ids.size()) : 0, n_soft_));
        if (options.max_new_tokens == 0) return out;
        score(options.first_id, scores);
        out.prefill_s = detail::seconds_since(start);
        start = std::chrono::steady_clock::now();
        detail::expect_finite(scores, out);
        for (std::int32_t id = sampler.next(scores, history, static_cast<std::int32_t>(options.first_id));; id = following(id, options, sampler, history, scores, out)) {
            history.push_back(id);
            if (!detail::take_token(out, id, options, [&](std::int32_t t) { return !options.on_token || options.on_token(t); })) break;
            if (cache_.length() == cache_.capacity()) {
                out.stop = Stop::context_full;
                break;
            }
        }
        out.decode_s = detail::seconds_since(start);
        return out;
    }

    /// The scores [vocab] of the token that follows a prompt.
    std::vector<float> next_logits(std::span<const std::int32_t> ids, std::size_t picture_at = 1) {
        read(splice(ids, n_soft_ ? std::min(picture_at, ids.size()) : 0, n_soft_));
        std::vector<float> scores(model_->llm.vocab_size());
        score(0, scores);
        return scores;
    }

    /// Scores of every position of a prompt, the picture's included, row by row: on_row(position, logits [vocab]).
    template <class OnRow>
    void all_logits(std::span<const std::int32_t> ids, OnRow&& on_row, std::size_t picture_at = 1) {
        forget();
        std::vector<float> scores(model_->llm.vocab_size());
        read(splice(ids, n_soft_ ? std::min(picture_at, ids.size()) : 0, n_soft_), [&](std::size_t position, In<B> hidden) {
            for (std::size_t first = 0; first < hidden.rows(); first += rows_scored_together) {
                auto              scope = ws_.scope();
                const std::size_t n = std::min(rows_scored_together, hidden.rows() - first);
                Mat<B>            logits = ws_.mat(n, scores.size());
                model_->llm.logits(*be_, hidden.rows(first, n), logits);
                for (std::size_t i = 0; i < n; ++i) {
                    be_->download(logits.row(i), scores);
                    be_->wait();
                    on_row(position + first + i, std::span<const float>(scores));
                }
            }
        });
    }

    /// For each choice of token ids, the log-probability of reading it after the prompt.
    std::vector<double> log_probabilities(std::span<const std::int32_t> ids, std::span<const std::vector<std::int32_t>> choices,
                                          std::size_t picture_at = 1) {
        std::vector<double> result;
        const std::vector<float> first = next_logits(ids, picture_at);
        const auto        prompt = read_;
        for (const auto& choice : choices) {
            if (choice.empty()) throw ConfigError{"choice", "\"\"", "a string of at least one token"};
            std::vector<float> scores = first;
            double             sum = 0;
            for (std::size_t i = 0; i < choice.size(); ++i) {
                if (choice[i] < 0 || static_cast<std::size_t>(choice[i]) >= scores.size())
                    throw ConfigError{"choice", std::to_string(choice[i]), "an id below " + std::to_string(scores.size())};
                sum += log_softmax(scores, static_cast<std::size_t>(choice[i]));
                if (i + 1 == choice.size()) break;
                append(choice[i]);
                score(0, scores);
            }
            result.push_back(sum);
            cache_.truncate(prompt.size());
            read_ = prompt;
        }
        return result;
    }

private:
    static constexpr std::size_t rows_scored_together = 16;  // each takes a row of the vocabulary's width

    static double log_softmax(std::span<const float> scores, std::size_t at) {
        double top = -INFINITY, sum = 0;
        for (float s : scores) top = std::max(top, static_cast<double>(s));
        for (float s : scores) sum += std::exp(static_cast<double>(s) - top);
        return static_cast<double>(scores[at]) - top - std::log(sum);
    }

    /// Makes the cache hold `sequence`, reading what it does not hold yet; at least the last token is read.
    template <class OnRows = std::nullptr_t>
    void read(const std::vector<std::int32_t>& sequence, OnRows&& on_rows = nullptr) {
        expect_room(sequence.size() - n_soft_, n_soft_, options_.max_tokens);
        std::size_t n_soft = 0;
        for (std::int32_t id : sequence)
            if (id == soft_token ? ++n_soft > n_soft_ : id < 0 || static_cast<std::size_t>(id) >= model_->llm.vocab_size())
                throw ConfigError{"token id", std::to_string(id), "0 ... " + std::to_string(model_->llm.vocab_size() - 1)};
        const auto  differs = std::mismatch(read_.begin(), read_.end(), sequence.begin(), sequence.end());
        std::size_t at = std::min(static_cast<std::size_t>(differs.first - read_.begin()), sequence.size() - 1);
        cache_.truncate(at);
        read_.resize(at);
        while (at < sequence.size()) {
            auto              scope = ws_.scope();
            const std::size_t n = std::min(chunk_, sequence.size() - at);
            const auto        part = std::span(sequence).subspan(at, n);
            const auto        first_soft = static_cast<std::size_t>(std::count(sequence.begin(), sequence.begin() + static_cast<std::ptrdiff_t>(at), soft_token));
            Mat<B>            x = ws_.mat(n, model_->llm.d_model());
            embed_sequence<B>(*be_, model_->llm, part, {soft_.template as<const float>(), {n_soft_, x.cols()}}, first_soft, x);
            const Segment<B> batch[]{{&cache_, n}};
            model_->llm.forward(*be_, ws_, batch, x);
            read_.insert(read_.end(), part.begin(), part.end());
            if constexpr (!std::is_same_v<std::remove_cvref_t<OnRows>, std::nullptr_t>) on_rows(at, In<B>(x));
            at += n;
            if (at == sequence.size()) keep_last(x.rows(n - 1, 1));
        }
    }

    /// Reads a token and chooses the next: recorded where the backend records, the second time that there is such a step.
    std::int32_t following(std::int32_t id, const GenerateOptions& options, Sampler& sampler, std::span<const std::int32_t> history,
                           std::vector<float>& scores, const Generated& so_far) {
        if constexpr (RecordingBackend<B>) {
            const auto&    s = options.sampling;
            const StepKind kind{options.first_id, scores.size(), s.temperature, s.top_p, s.top_k};
            if (s.repetition_penalty == 1 && done_once_ == kind) {
                if (!step_) step_.emplace(*be_);
                if (!step_->records(kind))
                    step_->record(kind, cache_.length(), [&] {
                        const std::size_t before = cache_.length();
                        auto              scope = ws_.scope();
                        advance_by(0);
                        cache_.truncate(before);  // recorded, not done
                        return Vec<B, const float>(scored(options.first_id, scores.size()).row(0));
                    });
                cache_.reserve(1);
                const std::int32_t next = step_->next(id, cache_.length(), sampler);
                cache_.advance(1);
                read_.push_back(id);
                if (next < 0) throw GenerationError{so_far.ids.size(), so_far.ids};
                return next;
            }
            done_once_ = kind;
        }
        append(id);
        score(options.first_id, scores);
        detail::expect_finite(scores, so_far);
        return sampler.next(scores, history, static_cast<std::int32_t>(options.first_id));
    }

    /// Reads one token more.
    void append(std::int32_t id) {
        auto scope = ws_.scope();
        advance_by(id);
        read_.push_back(id);
    }
    void advance_by(std::int32_t id) {
        Mat<B> x = ws_.mat(1, model_->llm.d_model());
        model_->llm.embed(*be_, {&id, 1}, x);
        const Segment<B> batch[]{{&cache_, 1}};
        model_->llm.forward(*be_, ws_, batch, x);
        keep_last(x);
    }

    void keep_last(In<B> hidden) {
        if (last_.bytes() == 0) last_ = be_->allocate(hidden.cols() * sizeof(float));
        be_->copy(hidden, {last_.template as<float>(), {1, hidden.cols()}});
    }

    void score(std::size_t first, std::span<float> scores) {
        auto scope = ws_.scope();
        be_->download(scored(first, scores.size()).row(0), scores);
        be_->wait();
    }
    /// The scores [1, n] of the token that follows what was read, in scratch of the caller's scope.
    Mat<B> scored(std::size_t first, std::size_t n) {
        const In<B> last{last_.template as<const float>(), {1, model_->llm.d_model()}};
        Mat<B>      logits = ws_.mat(1, n);
        model_->llm.logits(*be_, last, first, n, logits);
        return logits;
    }

    B*                        be_;
    const M*                  model_;
    SessionOptions            options_;
    std::size_t               chunk_;
    KvCache<B>                cache_;
    Workspace<B>              ws_;
    std::optional<Workspace<B>> vision_ws_;
    Buffer<typename B::space> soft_, last_;
    std::size_t               n_soft_ = 0;
    std::vector<std::int32_t> read_;  // what the cache holds, soft tokens as such
    detail::StepOf<B>         step_;
    StepKind                  done_once_;
};

}  // namespace prism
