// HostBlock: a block of threads on the processor. The same kernels, one thread after another in each phase; the same
// trees of sums, so the same bits wherever device and processor round alike.
#pragma once

#include "prism/backend/cuda/block.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <vector>

namespace prism::cuda {

/// In which order the threads of a phase (and the blocks of a grid) take their turns. A kernel whose result depends on it
/// lacks a barrier.
enum class Order : std::uint8_t { forward, reversed, shuffled };

/// 0 ... n-1 in that order.
inline std::vector<int> turns(Order order, int n) {
    std::vector<int> t(static_cast<std::size_t>(n));
    std::iota(t.begin(), t.end(), 0);
    if (order == Order::reversed) std::reverse(t.begin(), t.end());
    if (order == Order::shuffled) {
        std::mt19937 random(12345);
        for (std::size_t i = t.size(); i > 1; --i) std::swap(t[i - 1], t[random() % i]);  // the standard's shuffle differs between libraries
    }
    return t;
}

/// A block's shared memory, aligned to 16 bytes. Poisoned, its bits are ones.
class SharedMemory {
public:
    explicit SharedMemory(std::size_t bytes) : pieces_((bytes + 15) / 16), bytes_(bytes) {}

    std::span<std::byte> span() { return {reinterpret_cast<std::byte*>(pieces_.data()), bytes_}; }
    void                 poison() {
        if (!pieces_.empty()) std::memset(static_cast<void*>(pieces_.data()), 0xff, pieces_.size() * sizeof(Piece));
    }

private:
    struct alignas(16) Piece {
        std::byte bytes[16];
    };
    std::vector<Piece> pieces_;
    std::size_t        bytes_;
};

/// What ldmatrix gives a lane of a matrix of 8 x 8 values of 16 bits, whose row j lies at row(j): two neighbours of row
/// lane / 4; transposed: two of column lane / 4.
template <class Row>
std::uint32_t matrix_register(int lane, bool transposed, Row&& row) {
    const auto at = [&](int i, int column) -> std::uint32_t {
        std::uint16_t v;
        std::memcpy(&v, static_cast<const std::byte*>(row(i)) + 2 * column, 2);
        return v;
    };
    const int major = lane / 4, minor = lane % 4 * 2;
    return transposed ? at(minor, major) | at(minor + 1, major) << 16 : at(major, minor) | at(major, minor + 1) << 16;
}

class HostBlock {
public:
    /// A variable of each thread; its bits are ones until it is written, which is NaN.
    template <class T>
    class Reg {
    public:
        explicit Reg(const HostBlock& b) : values_(static_cast<std::size_t>(b.n_threads())) {
            std::memset(static_cast<void*>(values_.data()), 0xff, values_.size() * sizeof(T));
        }
        T&       operator[](int t) { return values_[static_cast<std::size_t>(t)]; }
        const T& operator[](int t) const { return values_[static_cast<std::size_t>(t)]; }

    private:
        std::vector<T> values_;
    };

    /// `memory`: the block's shared memory, aligned to 16 bytes. `turns`: the order of the threads.
    HostBlock(int block_x, int block_y, int block_z, int blocks_x, std::span<std::byte> memory, std::span<const int> turns)
        : x(block_x), y(block_y), z(block_z), grid_x(blocks_x), memory_(memory), turns_(turns) {}

    const int x, y, z, grid_x;
    int       n_threads() const { return static_cast<int>(turns_.size()); }

    template <class Phase>
    void each(Phase&& phase) {
        for (int t : turns_) phase(t);
    }
    template <class Phase>
    void each_warp(Phase&& phase) {
        each(phase);
    }
    template <class Phase>
    void each_alone(Phase&& phase) {
        each(phase);
    }
    void barrier() {}

    template <class T>
    T* shared(std::size_t offset) {
        return reinterpret_cast<T*>(memory_.data() + offset);
    }

    template <class T>
    Reg<T> shuffle_xor(const Reg<T>& r, int mask) const {
        Reg<T> other(*this);
        for (int t = 0; t < n_threads(); ++t) other[t] = r[t ^ mask];
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

    /// Four matrices; lane 8 i + j names row j of matrix i.
    template <class To, class From>
    void load_matrix_4(To&& to, From&& from) {
        load_matrix(to, from, false);
    }
    template <class To, class From>
    void load_matrix_4_transposed(To&& to, From&& from) {
        load_matrix(to, from, true);
    }

    void copy_16(void* to, const void* from, bool valid) {
        if (valid) std::memcpy(to, from, 16);
        else std::memset(to, 0, 16);
    }
    void copies_commit() {}
    template <int n>
    void copies_wait() {}

    std::uint32_t take_ticket(std::uint32_t* counter) { return (*counter)++; }

private:
    template <class D, class A, class B, class Value>
    void mma(D& d, A& a, B& b, Value value) {
        for (int warp = 0; warp < n_threads(); warp += warp_size) {
            std::array<std::array<float, 16>, 16> left{};   // [row][k]
            std::array<std::array<float, 16>, 8>  right{};  // [column][k]
            for (int lane = 0; lane < warp_size; ++lane) {
                const std::uint32_t* const ra = a(warp + lane);
                const std::uint32_t* const rb = b(warp + lane);
                const auto                 row = static_cast<std::size_t>(lane / 4), k = static_cast<std::size_t>(lane % 4 * 2);
                for (std::size_t half = 0; half < 2; ++half) {
                    const auto of = [&](std::uint32_t r) { return value(half ? r >> 16 : r & 0xffffU); };
                    left[row][k + half] = of(ra[0]), left[row + 8][k + half] = of(ra[1]);
                    left[row][k + 8 + half] = of(ra[2]), left[row + 8][k + 8 + half] = of(ra[3]);
                    right[row][k + half] = of(rb[0]), right[row][k + 8 + half] = of(rb[1]);
                }
            }
            for (int lane = 0; lane < warp_size; ++lane) {
                float* const to = d(warp + lane);
                for (int i = 0; i < 4; ++i) {
                    const auto row = static_cast<std::size_t>(lane / 4 + i / 2 * 8), column = static_cast<std::size_t>(lane % 4 * 2 + i % 2);
                    float      sum = 0;
                    for (std::size_t k = 0; k < 16; ++k) sum += left[row][k] * right[column][k];
                    to[i] += sum;
                }
            }
        }
    }
    template <class To, class From>
    void load_matrix(To& to, From& from, bool transposed) {
        for (int warp = 0; warp < n_threads(); warp += warp_size)
            for (int lane = 0; lane < warp_size; ++lane) {
                std::uint32_t* const registers = to(warp + lane);
                for (int i = 0; i < 4; ++i)
                    registers[i] = matrix_register(lane, transposed, [&](int row) -> const void* { return from(warp + 8 * i + row); });
            }
    }

    std::span<std::byte> memory_;
    std::span<const int> turns_;
};

/// Runs a kernel over a grid on the processor. Shared memory is poisoned before each block.
template <class Kernel>
void run_on_host(const Kernel& kernel, std::array<int, 3> grid, int threads, std::size_t shared_bytes, Order order = Order::forward) {
    const std::vector<int> thread_turns = turns(order, threads), block_turns = turns(order, grid[0] * grid[1] * grid[2]);
    SharedMemory           memory(shared_bytes);
    for (int i : block_turns) {
        memory.poison();
        HostBlock b(i % grid[0], i / grid[0] % grid[1], i / (grid[0] * grid[1]), grid[0], memory.span(), thread_turns);
        kernel(b);
    }
}

}  // namespace prism::cuda
