// ThreadPool: a fixed team of threads for loops whose pieces do not depend on how many there are.
//
//     ThreadPool pool{4};
//     pool.parallel_for(n, 16, [&](std::size_t begin, std::size_t end) { ... });   // every piece runs exactly once
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace prism {

/// Physical cores that this process may run on; 1 when that cannot be found out.
template <class = void>
std::size_t physical_cores() {
#if defined(__linux__)
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        std::set<std::string> cores;  // threads of one core name the same siblings
        std::size_t           unknown = 0;
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            const std::string path = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list";
            const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file{std::fopen(path.c_str(), "r"), &std::fclose};
            char                                                  siblings[256];
            if (file && std::fscanf(file.get(), "%255s", siblings) == 1) cores.insert(siblings);
            else ++unknown;
        }
        if (cores.size() + unknown > 0) return cores.size() + unknown;
    }
#endif
    const unsigned n = std::thread::hardware_concurrency();
    return n ? n : 1;
}

/// Threads wait a few microseconds for the next loop by spinning, then sleep. The calling thread works too. A loop takes no
/// lock and no memory: pieces are claimed with one atomic addition each.
class ThreadPool {
public:
    /// Each thread of its own calls `prepare` first, and all have when the constructor returns; the caller does not.
    template <class = void>
    explicit ThreadPool(std::size_t n_threads, void (*prepare)() = nullptr) {
        try {
            for (std::size_t i = 1; i < n_threads; ++i) workers_.emplace_back([this, i, prepare] { begin(prepare), work(i); });
        } catch (...) {  // no memory or no more threads: those that run already have to be joined
            stop();
            throw;
        }
        for (std::size_t n; (n = ready_.load()) < workers_.size();) ready_.wait(n);
        if (!error_) return;
        stop();
        std::rethrow_exception(error_);
    }
    ~ThreadPool() { stop(); }
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    std::size_t size() const { return workers_.size() + 1; }

    /// The place in its team of the thread that runs a piece: below size(), 0 for the thread that called the loop.
    static std::size_t place() { return place_; }

    /// Calls body(begin, end) for [0, n) cut in pieces of `piece`. An exception of the body reaches the caller, after
    /// all threads have left the loop; the pool stays usable. Loops do not nest: an inner one runs on its own thread.
    template <class Body>
    void parallel_for(std::size_t n, std::size_t piece, Body&& body) {
        const std::size_t n_pieces = (n + piece - 1) / piece;
        if (n_pieces == 0) return;
        if (n_pieces == 1 || workers_.empty() || inside_) {
            const Seat seat{0, inside_};
            for (std::size_t p = 0; p < n_pieces; ++p) body(p * piece, p + 1 < n_pieces ? (p + 1) * piece : n);
            return;
        }
        while (busy_.test_and_set(std::memory_order_acquire)) busy_.wait(true);  // one loop at a time, also when several threads share the backend
        n_ = n, piece_ = piece, n_pieces_ = n_pieces;
        body_ = const_cast<void*>(static_cast<const void*>(&body));
        call_ = [](void* b, std::size_t begin, std::size_t end) { (*static_cast<std::remove_reference_t<Body>*>(b))(begin, end); };
        next_.store(0, std::memory_order_relaxed);
        round_.fetch_add(1);  // odd: open
        round_.notify_all();
        run(0);
        round_.fetch_add(1);  // even: nobody enters any more, and those inside finish their pieces
        for (std::size_t spins = 0; working_.load() != 0; ++spins) pause(spins);
        const std::exception_ptr error = std::exchange(error_, nullptr);
        busy_.clear(std::memory_order_release);
        busy_.notify_one();
        if (error) std::rethrow_exception(error);
    }

private:
    void stop() {
        stop_.store(true);
        round_.fetch_add(2);
        round_.notify_all();
        for (auto& w : workers_) w.join();
    }

    static void pause(std::size_t spins) {
        if (spins < spin_limit) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            std::this_thread::yield();
        }
    }

    /// Of the thread while it runs pieces; what it had before comes back.
    struct Seat {
        std::size_t place = place_;
        bool        inside = inside_;
        Seat(std::size_t at, bool in) { place_ = at, inside_ = in; }
        ~Seat() { place_ = place, inside_ = inside; }
    };

    void run(std::size_t place) {
        const Seat seat{place, true};
        try {
            for (std::size_t p; (p = next_.fetch_add(1, std::memory_order_relaxed)) < n_pieces_;)
                call_(body_, p * piece_, p + 1 < n_pieces_ ? (p + 1) * piece_ : n_);
        } catch (...) {
            next_.store(n_pieces_, std::memory_order_relaxed);
            std::lock_guard lock(error_mutex_);
            if (!error_) error_ = std::current_exception();
        }
    }

    void begin(void (*prepare)()) {
        try {
            if (prepare) prepare();
        } catch (...) {
            std::lock_guard lock(error_mutex_);
            error_ = std::current_exception();
        }
        ready_.fetch_add(1);
        ready_.notify_one();
    }

    void work(std::size_t place) {
        std::uint32_t seen = 0;
        for (;;) {
            for (std::size_t spins = 0; spins < spin_limit && round_.load(std::memory_order_relaxed) == seen; ++spins) pause(spins);
            round_.wait(seen);
            seen = round_.load();
            if (stop_.load()) return;
            if (seen % 2 == 0) continue;
            // Either this thread sees that the loop has been closed, or whoever closes it sees this thread at work; only
            // then may the loop's fields be read.
            working_.fetch_add(1);
            if (round_.load() == seen) run(place);
            working_.fetch_sub(1);
        }
    }

    static constexpr std::size_t spin_limit = 4000;  // some tens of microseconds: the gap between two operations

    inline static thread_local bool        inside_ = false;
    inline static thread_local std::size_t place_ = 0;

    // The loop that is open. Written only while no thread works on one.
    std::size_t n_ = 0, piece_ = 0, n_pieces_ = 0;
    void*       body_ = nullptr;
    void (*call_)(void*, std::size_t, std::size_t) = nullptr;

    alignas(64) std::atomic<std::size_t> next_{0};       // piece
    alignas(64) std::atomic<std::uint32_t> round_{0};    // odd while a loop is open
    alignas(64) std::atomic<std::size_t> working_{0};    // threads other than the caller that are in the loop
    std::atomic<std::size_t> ready_{0};                  // threads other than the caller that have prepared
    std::atomic_flag         busy_{};
    std::atomic<bool>        stop_{false};
    std::mutex               error_mutex_;
    std::exception_ptr       error_;
    std::vector<std::thread> workers_;  // last: they use everything above
};

}  // namespace prism
