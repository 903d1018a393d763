// Emulator: the driver without a device. The kernels of the CUDA backend run on the processor, block by block, thread by
// thread: slow, exact about who may read what when, and open to every sanitizer and debugger.
//
//     prism::EmulatedCuda be;      // prism/backend/cuda/emulated.hpp: the same backend as Cuda, launches and all
#pragma once

#include "prism/backend/cuda/driver.hpp"
#include "prism/backend/cuda/fiber_block.hpp"
#include "prism/backend/cuda/host_block.hpp"
#include "prism/backend/cuda/pool.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace prism::cuda {

/// How the threads of a block run.
enum class Threads : std::uint8_t {
    phases,  // all of them one phase, then all the next
    fibers,  // each for itself, until it waits for others: finds missing barriers; some ten times slower. Linux only
    fibers_with_late_copies,  // the same, copies to shared memory happen when they are waited for
};

struct EmulatorOptions {
    Order       order = Order::forward;  // of threads, of blocks, and of the two parts of a fork
    int         n_processors = 4;
    Threads     threads = Threads::phases;
    bool        library = false;         // multiply() takes products, as a device's library does
    bool        library_adds = true;     // also those that are added to what is there
    std::size_t memory_bytes = std::numeric_limits<std::size_t>::max();  // of the device
    Collective<> ranks{};                // emulated_ranks.hpp
};

class Emulator {
    using Step = std::function<void()>;
    using Steps = std::vector<Step>;

public:
    using Options = EmulatorOptions;

    /// What a function enqueued. It refers to the emulator that made it in nothing.
    class Recording {
    public:
        Recording() = default;
        Recording(Recording&&) noexcept = default;
        Recording& operator=(Recording&&) noexcept = default;

        /// What copy `s` brings to the device from now on. Throws DeviceError where it is not of this recording or smaller.
        void rewrite(Staged s, const void* from, std::size_t bytes) {
            if (s.number >= inputs_.size() || bytes > inputs_[s.number]->size())
                throw DeviceError{"rewrite", 1, "the copy is not one of this recording, or it copies fewer bytes"};
            std::memcpy(inputs_[s.number]->data(), from, bytes);
        }
        /// Launches, products and copies.
        std::size_t n_steps() const { return steps_.size(); }

    private:
        friend class Emulator;
        Steps                                                steps_;
        std::vector<std::shared_ptr<std::vector<std::byte>>> inputs_;
        MemoryPool::Held                                     held_;
    };

    explicit Emulator(EmulatorOptions options = {}) : options_(options) {}

    /// Filled with ones, which are NaN: what is read before it is written shows.
    Buffer<device> allocate(std::size_t bytes) {
        if (bytes == 0) return {};
        const std::size_t free = options_.memory_bytes - pool_->bytes_taken();
        if (bytes > free)
            throw DeviceError{"allocate", 2, "out of memory: " + std::to_string(bytes) + " bytes were asked for, " + std::to_string(free) + " are free"};
        Buffer<device> b = pool_->allocate(bytes);
        std::memset(b.data(), 0xff, bytes);
        return b;
    }
    Buffer<device> allocate_cleared(std::size_t bytes, std::size_t zeros) {
        Buffer<device> b = allocate(bytes);
        if (zeros > 0) std::memset(b.data(), 0, zeros);
        return b;
    }
    Staged to_device(void* to, const void* from, std::size_t bytes) {
        if (!recording_ && !forked_) {
            if (bytes > 0) std::memcpy(to, from, bytes);
            return {};
        }
        const auto* const first = static_cast<const std::byte*>(from);
        const auto        kept = std::make_shared<std::vector<std::byte>>(first, first + bytes);
        enqueue([to, kept] {
            if (!kept->empty()) std::memcpy(to, kept->data(), kept->size());
        });
        if (!recording_) return {};
        recording_->inputs_.push_back(kept);
        return {recording_->inputs_.size() - 1};
    }
    void to_host(void* to, const void* from, std::size_t bytes) {
        if (recording_) refuse_while_recording("to_host");
        finish_branch();
        if (bytes > 0) std::memcpy(to, from, bytes);
    }
    void clear(void* to, std::size_t bytes) {
        enqueue([to, bytes] {
            if (bytes > 0) std::memset(to, 0, bytes);
        });
    }
    void wait() {
        if (recording_) refuse_while_recording("wait");
        finish_branch();
    }
    int n_processors() const { return options_.n_processors; }

    void all_reduce(float* data, std::size_t n) {
        if (options_.ranks.sum && n > 0) enqueue([data, n, sum = options_.ranks.sum] { sum(data, n); });
    }
    std::size_t rank() const { return options_.ranks.rank; }
    std::size_t n_ranks() const { return options_.ranks.n; }

    /// One sum after another, in f32. What is in the rows' padding is never read.
    bool multiply(const LibraryProduct& p) {
        if (!options_.library || (p.add && !options_.library_adds)) return false;
        enqueue([p] {
            if (p.type == Dtype::bf16) multiply_as<bf16_t>(p);
            else if (p.type == Dtype::f16) multiply_as<fp16_t>(p);
            else multiply_as<float>(p);
        });
        ++products_;
        return true;
    }

    template <class Kernel>
    void launch(std::array<int, 3> grid, int threads, std::size_t shared_bytes, const Kernel& kernel) {
        ++launches_;
        enqueue([=, order = options_.order, way = options_.threads] {
#if defined(__linux__)
            if (way != Threads::phases) return run_as_fibers(kernel, grid, threads, shared_bytes, order, way == Threads::fibers_with_late_copies);
#endif
            run_on_host(kernel, grid, threads, shared_bytes, order);
        });
    }
    /// Kernels launched so far, also into recordings; products that the library took.
    std::size_t launches() const { return launches_; }
    std::size_t products() const { return products_; }

    /// Runs nothing. Throws what `work` throws, DeviceError where a recording is being made.
    template <class Work>
    Recording record(Work&& work) {
        if (recording_ || forked_) refuse_while_recording("record");
        Recording r;
        recording_ = &r;
        pool_->hold();
        try {
            work();
        } catch (...) {
            recording_ = nullptr;
            pool_->let_go();
            throw;
        }
        recording_ = nullptr;
        r.held_ = pool_->let_go();
        return r;
    }
    void replay(const Recording& r) {
        if (recording_) refuse_while_recording("replay");
        for (const Step& step : r.steps_) enqueue(step);
    }

    /// Runs the steps of both in an order that a device might: reversed, b before a; shuffled, in turns.
    template <class A, class B>
    void fork(A&& a, B&& b) {
        if (forked_) {
            a();
            b();
            return;
        }
        forked_ = true;
        pool_->hold();
        const auto join = [&] {
            forked_ = false, branch_ = 0;
            for (Step& step : together(std::exchange(branches_[0], {}), std::exchange(branches_[1], {}))) enqueue(std::move(step));
            pool_->let_go();
        };
        try {
            a();
            branch_ = 1;
            b();
        } catch (...) {
            join();
            throw;
        }
        join();
    }
    int  branch() const { return branch_; }
    bool recording() const { return recording_ != nullptr; }

private:
    void enqueue(Step step) {
        if (forked_) branches_[static_cast<std::size_t>(branch_)].push_back(std::move(step));
        else if (recording_) recording_->steps_.push_back(std::move(step));
        else step();
    }
    void finish_branch() {
        for (const Step& step : std::exchange(branches_[static_cast<std::size_t>(branch_)], {})) step();
    }
    Steps together(Steps a, Steps b) const {
        Steps        all;
        std::mt19937 random(4321);
        for (std::size_t i = 0, j = 0; i < a.size() || j < b.size();) {
            const bool from_a = i < a.size() && (j == b.size() || options_.order == Order::forward || (options_.order == Order::shuffled && random() % 2 == 0));
            all.push_back(std::move(from_a ? a[i++] : b[j++]));
        }
        return all;
    }
    template <class T>
    static void multiply_as(const LibraryProduct& p) {
        const auto *const x = static_cast<const T*>(p.x), *const w = static_cast<const T*>(p.w);
        for (std::int64_t i = 0; i < p.m; ++i)
            for (std::int64_t j = 0; j < p.n; ++j) {
                float sum = 0;
                for (std::int64_t l = 0; l < p.k; ++l) sum += load(x + i * p.ldx + l) * load(w + j * p.ldw + l);
                if (p.bias) sum += p.bias[j];
                float& y = p.y[i * p.ldy + j];
                y = p.add ? y + sum : sum;
            }
    }

    EmulatorOptions             options_;
    std::shared_ptr<MemoryPool> pool_ = MemoryPool::make({
        .take = [](int, std::size_t bytes) { return ::operator new(bytes, std::align_val_t{MemoryPool::alignment}); },
        .give = [](int, void* p) noexcept { ::operator delete(p, std::align_val_t{MemoryPool::alignment}); },
        .whole_chunks = true,
    });
    std::array<Steps, 2> branches_;  // of a fork: what each enqueued
    Recording*           recording_ = nullptr;
    int                  branch_ = 0;
    bool                 forked_ = false;
    std::size_t          launches_ = 0, products_ = 0;
};
static_assert(Driver<Emulator>);

}  // namespace prism::cuda
