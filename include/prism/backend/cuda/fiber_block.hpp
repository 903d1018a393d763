// FiberBlock: a block whose threads each run the kernel for themselves, as on a device, and wait for each other only where
// the kernel says so. HostBlock (host_block.hpp) runs a phase of all threads before the next; here a thread runs on until a
// barrier stops it, so that a missing one shows: somebody reads what nobody has written yet, or what is overwritten already.
// Copies to shared memory happen as late as they may, or at once.
#pragma once

#include "prism/backend/cuda/host_block.hpp"

#if defined(__linux__)

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#define PRISM_TELLS_OF_STACKS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PRISM_TELLS_OF_STACKS 1
#endif
#endif
#ifdef PRISM_TELLS_OF_STACKS
#include <sanitizer/common_interface_defs.h>
#endif

namespace prism::cuda {

/// Something that runs on a stack of its own. AddressSanitizer is told whenever another stack is in use.
struct Coroutine {
    ucontext_t  context{};
    void*       fake_stack = nullptr;  // the sanitizer's
    const void* bottom = nullptr;
    std::size_t bytes = 0;

    /// Stops here and goes on in `to`, until somebody comes back.
    void switch_to(Coroutine& to) {
        leave(&fake_stack, to);
        ::swapcontext(&context, &to.context);
        arrive(fake_stack);
    }
    /// Ends here; `to` is what the context continues with.
    static void end_in(const Coroutine& to) { leave(nullptr, to); }
    /// The first thing of a new one: where whoever began it has its stack.
    static void begin(Coroutine& from) { arrive(nullptr, &from); }

private:
#ifdef PRISM_TELLS_OF_STACKS
    static void leave(void** fake, const Coroutine& to) { __sanitizer_start_switch_fiber(fake, to.bottom, to.bytes); }
    static void arrive(void* fake, Coroutine* from = nullptr) { __sanitizer_finish_switch_fiber(fake, from ? &from->bottom : nullptr, from ? &from->bytes : nullptr); }
#else
    static void leave(void**, const Coroutine&) {}
    static void arrive(void*, Coroutine* = nullptr) {}
#endif
};
#undef PRISM_TELLS_OF_STACKS

/// The threads of a block, one after another on the processor.
class Fibers {
public:
    explicit Fibers(int n) : fibers_(static_cast<std::size_t>(n)) {}

    /// Runs body(t) for all threads, in the order of `turns` whenever several could go on.
    void run(std::span<const int> turns, const std::function<void(int)>& body) {
        body_ = &body;
        for (int t : turns) {
            Fiber& f = fibers_[static_cast<std::size_t>(t)];
            if (!f.stack) f.stack = std::make_unique<std::byte[]>(stack_bytes);
            f.state = State::ready;
            ucontext_t& context = f.self.context;
            ::getcontext(&context);
            f.self.bottom = context.uc_stack.ss_sp = f.stack.get(), f.self.bytes = context.uc_stack.ss_size = stack_bytes, context.uc_link = &main_.context;
            const auto self = reinterpret_cast<std::uintptr_t>(this);
            ::makecontext(&context, reinterpret_cast<void (*)()>(&Fibers::enter), 2, static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
        }
        for (bool any = true; any;) {
            any = false;
            for (int t : turns) {
                if (fibers_[static_cast<std::size_t>(t)].state != State::ready) continue;
                any = true, current_ = t;
                main_.switch_to(fibers_[static_cast<std::size_t>(t)].self);
            }
            any = release() || any;
        }
    }

    int current() const { return current_; }
    /// The calling thread waits for all of its block, or of its warp.
    void wait_for_block() { wait(State::at_block); }
    void wait_for_warp() { wait(State::at_warp); }

private:
    enum class State : std::uint8_t { ready, at_block, at_warp, done };
    struct Fiber {
        Coroutine                    self{};
        std::unique_ptr<std::byte[]> stack{};
        State                        state = State::done;
    };
    static constexpr std::size_t stack_bytes = std::size_t{64} << 10;

    static void enter(unsigned high, unsigned low) {
        auto* const self = reinterpret_cast<Fibers*>(std::uintptr_t{high} << 32 | low);
        Coroutine::begin(self->main_);
        (*self->body_)(self->current_);
        self->fibers_[static_cast<std::size_t>(self->current_)].state = State::done;
        Coroutine::end_in(self->main_);
    }
    void wait(State at) {
        Fiber& f = fibers_[static_cast<std::size_t>(current_)];
        f.state = at;
        f.self.switch_to(main_);
    }
    /// Lets go whoever waits for nobody any more; a thread that is done is waited for no longer.
    bool release() {
        bool       released = false;
        const auto let = [&](std::size_t first, std::size_t n, State at) {
            std::size_t waiting = 0, here = 0;
            for (std::size_t i = first; i < first + n; ++i) waiting += fibers_[i].state == at, here += fibers_[i].state == at || fibers_[i].state == State::done;
            if (waiting == 0 || here < n) return;
            for (std::size_t i = first; i < first + n; ++i)
                if (fibers_[i].state == at) fibers_[i].state = State::ready;
            released = true;
        };
        for (std::size_t w = 0; w < fibers_.size(); w += warp_size) let(w, warp_size, State::at_warp);
        let(0, fibers_.size(), State::at_block);
        return released;
    }

    std::vector<Fiber>              fibers_;
    const std::function<void(int)>* body_ = nullptr;
    Coroutine                       main_{};
    int                             current_ = 0;
};

class FiberBlock {
public:
    /// A variable of the calling thread; its bits are ones until it is written.
    template <class T>
    class Reg {
    public:
        explicit Reg(const FiberBlock&) { std::memset(static_cast<void*>(&value_), 0xff, sizeof value_); }
        T&       operator[](int) { return value_; }
        const T& operator[](int) const { return value_; }

    private:
        T value_;
    };

    /// What the threads of a block share.
    struct Shared {
        std::span<std::byte>                   memory;
        bool                                   late = false;  // copies happen when they are waited for
        std::vector<std::array<std::byte, 64>> slots{};       // what a thread shows to its warp
        std::uint32_t                          ticket = 0;
        int                                    n_threads = 0;
    };

    FiberBlock(int block_x, int block_y, int block_z, int blocks_x, Fibers& fibers, Shared& shared)
        : x(block_x), y(block_y), z(block_z), grid_x(blocks_x), fibers_(&fibers), shared_(&shared) {}

    const int x, y, z, grid_x;
    int       n_threads() const { return shared_->n_threads; }

    template <class Phase>
    void each(Phase&& phase) {
        phase(me());
        fibers_->wait_for_block();
    }
    template <class Phase>
    void each_warp(Phase&& phase) {
        phase(me());
        fibers_->wait_for_warp();
    }
    template <class Phase>
    void each_alone(Phase&& phase) {
        phase(me());
    }
    void barrier() { fibers_->wait_for_block(); }

    template <class T>
    T* shared(std::size_t offset) {
        return reinterpret_cast<T*>(shared_->memory.data() + offset);
    }

    template <class T>
    Reg<T> shuffle_xor(const Reg<T>& r, int mask) const {
        static_assert(sizeof(T) <= 64);
        Reg<T> other(*this);
        show(0, &r[0], sizeof(T));
        fibers_->wait_for_warp();
        std::memcpy(static_cast<void*>(&other[0]), slot(me() ^ mask), sizeof(T));
        fibers_->wait_for_warp();
        return other;
    }

    template <class D, class A, class B>
    void mma_bf16(D&& d, A&& a, B&& b) {
        mma(d, a, b, [](std::uint32_t bits) { return from_bf16(bits); });
    }
    template <class D, class A, class B>
    void mma_f16(D&& d, A&& a, B&& b) {
        mma(d, a, b, [](std::uint32_t bits) { return from_f16(bits); });
    }

    template <class To, class From>
    void load_matrix_4(To&& to, From&& from) {
        load_matrix(to, from, false);
    }
    template <class To, class From>
    void load_matrix_4_transposed(To&& to, From&& from) {
        load_matrix(to, from, true);
    }

    void copy_16(void* to, const void* from, bool valid) {
        copies_.back().push_back({to, valid ? from : nullptr});
        if (!shared_->late) finish(0, true);
    }
    void copies_commit() { copies_.emplace_back(); }
    template <int n>
    void copies_wait() {
        finish(n, false);
    }

    std::uint32_t take_ticket(std::uint32_t* counter) {
        fibers_->wait_for_block();
        if (me() == 0) shared_->ticket = (*counter)++;
        fibers_->wait_for_block();
        const std::uint32_t drawn = shared_->ticket;
        fibers_->wait_for_block();
        return drawn;
    }

private:
    struct Copy {
        void*       to;
        const void* from;  // null: zeros
    };

    int              me() const { return fibers_->current(); }
    std::byte*       slot(int t) const { return shared_->slots[static_cast<std::size_t>(t)].data(); }
    void             show(std::size_t at, const void* what, std::size_t bytes) const { std::memcpy(slot(me()) + at, what, bytes); }
    static int       warp_of(int t) { return t / warp_size * warp_size; }

    /// Does what is under way but for the last `n` whole groups, and with `open` what is in none yet.
    void finish(std::size_t n, bool open) {
        const std::size_t whole = copies_.size() - 1, done = open ? copies_.size() : whole > n ? whole - n : 0;
        for (std::size_t i = 0; i < done; ++i) {
            for (const Copy& c : copies_[i]) {
                if (c.from) std::memcpy(c.to, c.from, 16);
                else std::memset(c.to, 0, 16);
            }
            copies_[i].clear();
        }
        if (!open) copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(done));
    }

    template <class D, class A, class B, class Value>
    void mma(D& d, A& a, B& b, Value value) {
        show(0, a(me()), 16), show(16, b(me()), 8);
        fibers_->wait_for_warp();
        const auto of = [&](int lane, std::size_t reg, int half) {
            std::uint32_t u;
            std::memcpy(&u, slot(warp_of(me()) + lane) + 4 * reg, 4);
            return value(half ? u >> 16 : u & 0xffffU);
        };
        float* const to = d(me());
        const int    lane = me() % warp_size;
        for (int i = 0; i < 4; ++i) {
            float sum = 0;
            for (int k = 0; k < 16; ++k) {
                const int holder = k % 8 / 2, half = k % 2;
                sum += of(lane / 4 * 4 + holder, static_cast<std::size_t>(i / 2 + k / 8 * 2), half) *
                       of((lane % 4 * 2 + i % 2) * 4 + holder, static_cast<std::size_t>(4 + k / 8), half);
            }
            to[i] += sum;
        }
        fibers_->wait_for_warp();
    }
    template <class To, class From>
    void load_matrix(To& to, From& from, bool transposed) {
        const void* const mine = from(me());
        show(0, static_cast<const void*>(&mine), sizeof mine);
        fibers_->wait_for_warp();
        std::uint32_t* const registers = to(me());
        for (int i = 0; i < 4; ++i)
            registers[i] = matrix_register(me() % warp_size, transposed, [&](int row) {
                const void* address;
                std::memcpy(static_cast<void*>(&address), slot(warp_of(me()) + 8 * i + row), sizeof address);
                return address;
            });
        fibers_->wait_for_warp();
    }

    Fibers*                        fibers_;
    Shared*                        shared_;
    std::vector<std::vector<Copy>> copies_{1};  // groups; the last is not committed yet
};

/// Runs a kernel over a grid with threads that go their own ways. Shared memory is poisoned before each block.
template <class Kernel>
void run_as_fibers(const Kernel& kernel, std::array<int, 3> grid, int threads, std::size_t shared_bytes, Order order, bool late_copies) {
    const std::vector<int> thread_turns = turns(order, threads), block_turns = turns(order, grid[0] * grid[1] * grid[2]);
    SharedMemory           memory(shared_bytes);
    FiberBlock::Shared     shared{.memory = memory.span(), .late = late_copies};
    shared.slots.resize(static_cast<std::size_t>(threads));
    shared.n_threads = threads;
    Fibers fibers(threads);
    for (int i : block_turns) {
        memory.poison();
        fibers.run(thread_turns, [&](int) {
            FiberBlock b(i % grid[0], i / grid[0] % grid[1], i / (grid[0] * grid[1]), grid[0], fibers, shared);
            kernel(b);
        });
    }
}

}  // namespace prism::cuda

#endif
