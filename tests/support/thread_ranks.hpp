// Ranks that are threads of one process, and what every kind of ranks has to do.
#pragma once

#include "prism/train/ranks.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace prism::test {

/// Runs body(ranks) on n threads; what each of them threw, null where nothing.
template <class Fn>
std::vector<std::exception_ptr> on_ranks(std::size_t n, Fn&& body) {
    using Letter = std::vector<std::byte>;
    std::mutex                                                          mutex;
    std::condition_variable                                             arrived;
    std::map<std::pair<std::size_t, std::size_t>, std::deque<Letter>>   letters;
    std::vector<std::exception_ptr>                                     problems(n);
    std::vector<std::thread>                                            threads;
    for (std::size_t rank = 0; rank < n; ++rank) threads.emplace_back([&, rank] {
        const Ranks ranks{rank, n, [&, rank](std::size_t to, std::span<const std::byte> out, std::size_t from, std::span<std::byte> in) {
            std::unique_lock lock{mutex};
            if (to != Ranks::nobody) letters[{rank, to}].emplace_back(out.begin(), out.end());
            arrived.notify_all();
            if (from == Ranks::nobody) return;
            auto& mine = letters[{from, rank}];
            arrived.wait(lock, [&] { return !mine.empty(); });
            if (mine.front().size() != in.size()) throw Error{"a message of another size"};
            std::ranges::copy(mine.front(), in.begin());
            mine.pop_front();
        }};
        try {
            body(ranks);
        } catch (...) { problems[rank] = std::current_exception(); }
    });
    for (std::thread& thread : threads) thread.join();
    return problems;
}

/// What an exception says; nothing where there is none.
inline std::string said(const std::exception_ptr& problem) {
    try {
        if (problem) std::rethrow_exception(problem);
    } catch (const std::exception& e) { return e.what(); }
    return {};
}

/// What is wrong with ranks as one of them sees it; nothing where all is as it has to be. Collective.
inline std::string fault_of(const Ranks& ranks) {
    const std::size_t n = ranks.n(), me = ranks.rank();
    for (const std::size_t size : {std::size_t{16}, std::size_t{4096}, 3 * Ranks::piece_bytes / sizeof(float) + 48}) {
        std::vector<std::size_t> bounds(n + 1);
        for (std::size_t r = 0; r <= n; ++r) bounds[r] = size / 16 * r / n * 16;
        // Terms whose sum depends on the order in which they are added.
        const auto         term = [](std::size_t r, std::size_t i) { return static_cast<float>(i % 97 + 1) / static_cast<float>(3 * r + 7); };
        std::vector<float> values(size), sums(size);
        for (std::size_t i = 0; i < size; ++i) {
            values[i] = sums[i] = term(0, i);
            for (std::size_t r = 1; r < n; ++r) sums[i] += term(r, i);
            values[i] = term(me, i);
        }
        ranks.sum_shares(values, bounds);
        for (std::size_t i = 0; i < size; ++i)
            if (values[i] != (i >= bounds[me] && i < bounds[me + 1] ? sums[i] : term(me, i))) return "sum_shares, value " + std::to_string(i) + " of " + std::to_string(size);
        ranks.gather_shares(values, bounds);
        if (values != sums) return "gather_shares of " + std::to_string(size);

        std::vector<float> store, share(sums.begin() + static_cast<std::ptrdiff_t>(bounds[me]), sums.begin() + static_cast<std::ptrdiff_t>(bounds[me + 1]));
        const auto         whole = ranks.collect(share, store);
        if (ranks.first() ? !std::ranges::equal(whole, sums) : !whole.empty()) return "collect of " + std::to_string(size);
        std::vector<float> dealt(share.size());
        ranks.deal(std::as_bytes(whole), dealt);
        if (dealt != share) return "deal of " + std::to_string(size);
        std::vector<float> sent(size, ranks.first() ? 7.0f : 0.0f);
        ranks.broadcast(std::span(sent));
        if (sent != std::vector<float>(size, 7.0f)) return "broadcast of " + std::to_string(size);
    }
    const auto all = ranks.gather(me);
    for (std::size_t r = 0; r < n; ++r)
        if (all[r] != r) return "gather";
    if (ranks.of_first(std::string(me, 'x') + "text") != "text") return "of_first";
    if (ranks.together([&] { return me + 1; }) != me + 1 || ranks.stopped()) return "together";
    if (ranks.total(0.5) != 0.5 * static_cast<double>(n)) return "total";
    return {};
}

}  // namespace prism::test
