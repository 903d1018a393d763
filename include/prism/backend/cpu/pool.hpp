// ThreadPool: a fixed team of threads for loops whose pieces do not depend on how many there are.
//
//     ThreadPool pool{4};
//     pool.parallel_for(n, 16, [&](std::size_t begin, std::size_t end) { ... });   // every piece runs exactly once
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <fstream>
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
inline std::size_t physical_cores() {
#if defined(__linux__)
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        std::set<std::string> cores;  // threads of one core name the same siblings
        std::size_t           unknown = 0;
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
            std::string   siblings;
            if (file >> siblings) cores.insert(siblings);
            else ++unknown;
        }
        if (cores.size() + unknown > 0) return cores.size() + unknown;
    }
#endif
    const unsigned n = std::thread::hardware_concurrency();
    return n ? n : 1;
}

/// Threads wait a few microseconds for the next loop by spinning, then sleep. The calling thread works too.
class ThreadPool {
public:
    explicit ThreadPool(std::size_t n_threads) {
        try {
            for (std::size_t i = 1; i < n_threads; ++i) workers_.emplace_back([this] { work(); });
        } catch (...) {  // no memory or no more threads: those that run already have to be joined
            stop();
            throw;
        }
    }
    ~ThreadPool() { stop(); }
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    std::size_t size() const { return workers_.size() + 1; }

    /// Calls body(begin, end) for [0, n) cut in pieces of `piece`. An exception of the body reaches the caller, after
    /// all threads have left the loop; the pool stays usable. Loops do not nest: an inner one runs on its own thread.
    template <class Body>
    void parallel_for(std::size_t n, std::size_t piece, Body&& body) {
        const std::size_t n_pieces = (n + piece - 1) / piece;
        if (n_pieces == 0) return;
        if (n_pieces == 1 || workers_.empty() || inside_) {
            for (std::size_t p = 0; p < n_pieces; ++p) body(p * piece, p + 1 < n_pieces ? (p + 1) * piece : n);
            return;
        }
        std::lock_guard caller(callers_);  // one loop at a time, also when several threads share the backend
        Loop            loop{n, piece, n_pieces, const_cast<void*>(static_cast<const void*>(&body)), [](void* b, std::size_t begin, std::size_t end) {
                      (*static_cast<std::remove_reference_t<Body>*>(b))(begin, end);
                  }};
        {
            std::lock_guard lock(mutex_);
            loop_ = &loop;
            generation_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        run(loop);
        {   // no new worker may enter; those inside finish their pieces
            std::lock_guard lock(mutex_);
            loop_ = nullptr;
        }
        for (std::size_t spins = 0; loop.inside.load(std::memory_order_acquire) != 0; ++spins) pause(spins);
        if (loop.error) std::rethrow_exception(loop.error);
    }

private:
    void stop() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
            generation_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (auto& w : workers_) w.join();
    }

    struct Loop {
        std::size_t n, piece, n_pieces;
        void*       body;
        void (*call)(void*, std::size_t, std::size_t);
        std::atomic<std::size_t> next{0}, inside{0};
        std::mutex               error_mutex{};
        std::exception_ptr       error{};
    };

    static void pause(std::size_t spins) {
        if (spins < spin_limit) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            std::this_thread::yield();
        }
    }

    static void run(Loop& loop) {
        inside_ = true;
        try {
            for (std::size_t p; (p = loop.next.fetch_add(1, std::memory_order_relaxed)) < loop.n_pieces;)
                loop.call(loop.body, p * loop.piece, p + 1 < loop.n_pieces ? (p + 1) * loop.piece : loop.n);
        } catch (...) {
            loop.next.store(loop.n_pieces, std::memory_order_relaxed);
            std::lock_guard lock(loop.error_mutex);
            if (!loop.error) loop.error = std::current_exception();
        }
        inside_ = false;
    }

    void work() {
        std::size_t seen = 0;
        for (;;) {
            for (std::size_t spins = 0; spins < spin_limit && generation_.load(std::memory_order_acquire) == seen; ++spins)
                pause(spins);
            Loop* loop = nullptr;
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
                seen = generation_.load(std::memory_order_relaxed);
                if (stop_) return;
                loop = loop_;
                if (loop) loop->inside.fetch_add(1, std::memory_order_relaxed);
            }
            if (!loop) continue;
            run(*loop);
            loop->inside.fetch_sub(1, std::memory_order_release);
        }
    }

    static constexpr std::size_t spin_limit = 4000;  // some tens of microseconds: the gap between two operations

    inline static thread_local bool inside_ = false;

    std::mutex               callers_, mutex_;
    std::condition_variable  wake_;
    std::atomic<std::size_t> generation_{0};
    Loop*                    loop_ = nullptr;
    bool                     stop_ = false;
    std::vector<std::thread> workers_;  // last: they use everything above
};

}  // namespace prism
