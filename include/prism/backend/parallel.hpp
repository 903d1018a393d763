// ParallelBackend: a backend that is one of several which hold a model together, and the threads that these run on.
//
//     prism::cuda::Nccl nccl{{0, 1}};                                   // backend/cuda/nccl.cuh: two GPUs
//     prism::run_ranks(nccl, [&](prism::Rank& rank) {                   // on a thread for each
//         prism::Cuda cuda{{.driver = nccl.options(rank.number())}};
//         auto vlm = prism::from_pretrained(cuda, folder);              // its share of the decoder, all of the rest
//         prism::Chat chat{cuda, vlm};                                  // the same calls on every rank, in the same order
//         ...
//     });
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/core/error.hpp"

#include <concepts>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace prism {

/// A product with a weight that is `partial` gives, on every rank, the sum of what all ranks make of their columns.
template <class B>
concept ParallelBackend = Backend<B> && requires(const B& be) {
    { be.rank() } -> std::same_as<std::size_t>;
    { be.n_ranks() } -> std::same_as<std::size_t>;
};

/// Which of how many devices that hold a model together; others than parallel backends hold theirs alone.
struct RankOf {
    std::size_t number = 0, n = 1;
};
template <Backend B>
RankOf rank_of(const B& be) {
    if constexpr (ParallelBackend<B>) return {be.rank(), be.n_ranks()};
    else return {};
}

/// Where n threads wait for each other.
class Meeting {
public:
    explicit Meeting(std::size_t n) : n_(n) {}

    /// Returns on all threads once all have called it, and then whether all said yes. Throws Error after stop().
    bool all(bool yes = true) {
        std::unique_lock lock(mutex_);
        expect_going();
        yes_ = yes_ && yes;
        if (++arrived_ == n_) {
            arrived_ = 0, ++turn_, last_ = yes_, yes_ = true;
            changed_.notify_all();
            return last_;
        }
        changed_.wait(lock, [this, turn = turn_] { return stopped_ || turn_ != turn; });
        expect_going();
        return last_;  // nobody can end the next turn without this thread
    }
    /// Nobody waits any more: all() throws, now and later.
    void stop() noexcept {
        const std::lock_guard lock(mutex_);
        stopped_ = true;
        changed_.notify_all();
    }

private:
    void expect_going() const {
        if (stopped_) throw Error("stopped, because another rank failed");
    }

    const std::size_t       n_;
    std::mutex              mutex_;
    std::condition_variable changed_;
    std::size_t             arrived_ = 0, turn_ = 0;
    bool                    yes_ = true, last_ = true, stopped_ = false;
};

/// A thread's place among those of run_ranks().
class Rank {
public:
    Rank(Meeting& meeting, std::size_t number, std::size_t n) : meeting_(&meeting), number_(number), n_(n) {}

    std::size_t number() const { return number_; }
    std::size_t n() const { return n_; }
    bool        first() const { return number_ == 0; }
    /// Whether all ranks say yes; waits for them. How callbacks agree to go on, which only one of them may know:
    ///     .on_token = [&](std::int32_t id) { return rank.all(!rank.first() || say(id)); }
    bool all(bool yes = true) { return meeting_->all(yes); }

private:
    Meeting*    meeting_;
    std::size_t number_, n_;
};

/// Runs work(rank) on a thread for each of link.n() ranks, which do the same in the same order: their sums over all ranks
/// wait for each other. Where work throws on one, link.stop() ends what the others wait for, and what was thrown first is
/// thrown here, once all threads have ended. A link serves one call that fails, or many that do not.
template <class Link, class Work>
void run_ranks(Link& link, Work&& work) {
    const std::size_t        n = link.n();
    Meeting                  meeting(n);
    std::mutex               mutex;
    std::exception_ptr       problem;
    std::vector<std::thread> threads;
    const auto               give_up = [&](std::exception_ptr why) {
        {
            const std::lock_guard lock(mutex);
            if (problem) return;
            problem = why;
        }
        meeting.stop();
        link.stop();
    };
    try {
        for (std::size_t number = 0; number < n; ++number)
            threads.emplace_back([&, number] {
                try {
                    Rank rank(meeting, number, n);
                    work(rank);
                } catch (...) { give_up(std::current_exception()); }
            });
    } catch (...) { give_up(std::current_exception()); }  // no more threads
    for (std::thread& thread : threads) thread.join();
    if (problem) std::rethrow_exception(problem);
}

}  // namespace prism
