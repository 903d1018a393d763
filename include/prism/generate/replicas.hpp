// ask_batch over several backends, each with a copy of the model and a thread of its own: questions are shared out.
//
//     const std::vector<prism::Replica<B>> replicas{{be0, vlm0}, {be1, vlm1}};
//     for (const auto& answer : prism::ask_batch(replicas, questions)) std::cout << answer.text << '\n';
#pragma once

#include "prism/generate/ask_batch.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace prism {

/// A backend and a model that is loaded on it. No two replicas share a backend.
template <Backend B, class M = Pretrained<B>>
struct Replica {
    B&       be;
    const M& model;
};

/// Calls ask(replica, its questions, options) on a thread for each replica: each has as many questions as the others, or one
/// more, in their order. options.on_token is called by one of them at a time. Answers are in the order of the questions, and
/// the same as those of one replica. Where one throws, the others stop within a token, and what the first of them threw is thrown.
template <Backend B, class M, class Ask>
std::vector<Answer> ask_replicas(const std::vector<Replica<B, M>>& replicas, std::span<const Question> questions, const AskBatchOptions& options, Ask&& ask) {
    if (replicas.empty()) throw ConfigError{"replicas", "0", "at least one"};
    const std::size_t                n = replicas.size();
    const auto                       first_of = [&](std::size_t i) { return questions.size() * i / n; };
    std::vector<std::vector<Answer>> parts(n);
    std::vector<std::exception_ptr>  problems(n);
    std::atomic<bool>                failed{false};
    std::mutex                       saying;
    const auto                       run = [&](std::size_t i) {
        try {
            AskBatchOptions mine = options;
            mine.on_token = [&, i](std::size_t question, std::int32_t id) {
                if (failed.load(std::memory_order_relaxed)) return false;
                if (!options.on_token) return true;
                const std::lock_guard lock(saying);
                return options.on_token(first_of(i) + question, id);
            };
            parts[i] = ask(replicas[i], questions.subspan(first_of(i), first_of(i + 1) - first_of(i)), mine);
        } catch (...) { problems[i] = std::current_exception(), failed = true; }
    };
    {
        std::vector<std::jthread> threads;
        for (std::size_t i = 1; i < n; ++i)
            if (first_of(i) < first_of(i + 1)) threads.emplace_back(run, i);
        if (first_of(0) < first_of(1)) run(0);
    }
    for (const auto& problem : problems)
        if (problem) std::rethrow_exception(problem);
    std::vector<Answer> answers;
    for (auto& part : parts) std::ranges::move(part, std::back_inserter(answers));
    return answers;
}

template <Backend B>
std::vector<Answer> ask_batch(const std::vector<Replica<B>>& replicas, std::span<const Question> questions, const AskBatchOptions& options = {}) {
    return ask_replicas(replicas, questions, options, [](const Replica<B>& r, std::span<const Question> mine, const AskBatchOptions& o) {
        return ask_batch(r.be, r.model, mine, o);
    });
}
/// The same for models of users, as the single ask_batch takes them.
template <Backend B, class M>
std::vector<Answer> ask_batch(const std::vector<Replica<B, M>>& replicas, const ChatParts& parts, std::span<const Question> questions, const AskBatchOptions& options = {}) {
    return ask_replicas(replicas, questions, options, [&](const Replica<B, M>& r, std::span<const Question> mine, const AskBatchOptions& o) {
        return ask_batch(r.be, r.model, parts, mine, o);
    });
}

}  // namespace prism
