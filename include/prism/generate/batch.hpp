// generate_batch: several prompts, each with a picture of its own or none, decoded together. Every step reads each
// weight once for all of them.
//
//     std::vector<BatchItem<B>> items{{ids_a, soft_a}, {ids_b, soft_b}};
//     auto answers = generate_batch(be, vlm.llm, std::span<const BatchItem<B>>(items), {.max_new_tokens = 64});
#pragma once

#include "prism/generate/session.hpp"

#include <span>
#include <vector>

namespace prism {

/// One prompt of a batch. `soft` [n_soft, d_model] stands before ids[picture_at]; empty: text alone.
template <Backend B>
struct BatchItem {
    std::vector<std::int32_t> ids;
    In<B>                     soft{};
    std::size_t               picture_at = 1;
};

/// Answers to all items, in their order. Each item draws with a generator of its own, seeded alike, so an item's answer
/// does not depend on which others are there beyond the rounding of f32 sums. on_token gets (item, id); returning false
/// ends that item. Throws as Session::generate does.
template <Backend B, class Llm>
std::vector<Generated> generate_batch(B& be, const Llm& llm, std::span<const BatchItem<B>> items, const GenerateOptions& options,
                                      const std::function<bool(std::size_t item, std::int32_t id)>& on_token = {}) {
    struct Stream {
        std::size_t               item;
        KvCache<B>                cache;
        Sampler                   sampler;
        std::vector<std::int32_t> history;
    };
    constexpr std::size_t  chunk = 512;
    std::vector<Generated> results(items.size());
    std::vector<Stream>    streams;
    const std::size_t      d = llm.d_model();
    const std::size_t      n_first = options.first_id, n_scores = detail::n_scored(options, llm.vocab_size());
    Workspace<B>           ws{be, reading_cost(llm, std::max(chunk, items.size()), items.size()).workspace_bytes};
    Buffer<typename B::space> last = be.allocate(items.size() * d * sizeof(float));
    const auto last_rows = [&](std::size_t n) { return Mat<B>{last.template as<float>(), {n, d}}; };

    const auto start = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < items.size(); ++i) {
        const auto sequence = splice(items[i].ids, std::min(items[i].picture_at, items[i].ids.size()), items[i].soft.rows());
        if (items[i].ids.empty()) throw ConfigError{"prompt", "empty", "at least one token"};
        streams.push_back({i, llm.make_cache(be, sequence.size() + options.max_new_tokens), Sampler{options.sampling}, items[i].ids});
        std::size_t soft_read = 0;
        for (std::size_t at = 0; at < sequence.size(); at += chunk) {
            auto              scope = ws.scope();
            const std::size_t n = std::min(chunk, sequence.size() - at);
            const auto        part = std::span(sequence).subspan(at, n);
            Mat<B>            x = ws.mat(n, d);
            embed_sequence<B>(be, llm, part, items[i].soft, soft_read, x);
            soft_read += static_cast<std::size_t>(std::count(part.begin(), part.end(), soft_token));
            const Segment<B> batch[]{{&streams.back().cache, n}};
            llm.forward(be, ws, batch, x);
            if (at + n == sequence.size()) be.copy(x.rows(n - 1, 1), last_rows(items.size()).rows(i, 1));
        }
    }
    be.wait();  // for the time
    const double prefill_s = detail::seconds_since(start);
    for (auto& r : results) r.prefill_s = prefill_s;
    if (options.max_new_tokens == 0) return results;

    std::vector<float> scores(n_scores);
    while (!streams.empty()) {
        std::vector<std::int32_t> ids;
        std::vector<Segment<B>>   batch;
        std::vector<Stream>       going;
        {
            auto   scope = ws.scope();
            Mat<B> logits = ws.mat(streams.size(), n_scores);
            llm.logits(be, last_rows(streams.size()), n_first, n_scores, logits);
            for (std::size_t s = 0; s < streams.size(); ++s) {
                Stream&    stream = streams[s];
                Generated& out = results[stream.item];
                be.download(logits.row(s), scores);
                detail::expect_finite(scores, out);
                const std::int32_t id = stream.sampler.next(scores, stream.history, static_cast<std::int32_t>(n_first));
                stream.history.push_back(id);
                const auto say = [&](std::int32_t t) { return !on_token || on_token(stream.item, t); };
                if (detail::take_token(out, id, options, say)) {
                    ids.push_back(id);
                    going.push_back(std::move(stream));
                }
                out.decode_s = detail::seconds_since(start) - prefill_s;
            }
        }
        streams = std::move(going);
        if (streams.empty()) break;
        for (auto& stream : streams) batch.push_back({&stream.cache, 1});
        Mat<B> x = last_rows(streams.size());
        llm.embed(be, ids, x);
        llm.forward(be, ws, batch, x);
    }
    return results;
}

}  // namespace prism
