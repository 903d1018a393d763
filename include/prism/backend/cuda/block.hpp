// What kernels are written against: a block of threads that runs phases. A kernel is a plain struct, its arguments the
// members, with
//
//     static constexpr int max_threads = 256;
//     template <class Block> PRISM_DEVICE void operator()(Block& b) const {
//         Reg<Block, float> sum(b);                                  // a variable of each thread, kept between phases
//         b.each_alone([&](int t) { sum[t] = 0; ... });               // nobody else reads what this phase writes
//         block_sum(b, sum, b.template shared<float>(0));             // then every thread has the sum of all
//         b.each([&](int t) { ... });                                // all threads, then a barrier
//     }
//
// Two blocks exist: DeviceBlock (device_block.cuh), where a phase is a line of code between barriers, and HostBlock
// (host_block.hpp), which loops over the threads, in any order that it is asked for. What a phase reads of other threads
// must have been written in a phase that ended in a barrier of theirs: each() for the block, each_warp() for the 32 of a warp.
//
// Both offer
//     x, y, z, grid_x                    which block of the grid this is, and how many there are along x
//     n_threads()                        a multiple of 32
//     each(f), each_warp(f), each_alone(f)
//     shared<T>(offset)                  dynamic shared memory from a byte offset on, aligned to 16
//     shuffle_xor(reg, mask)             the register of the thread whose number differs in these bits, within a warp
//     mma_bf16(d, a, b), mma_f16         d += a b on tensor cores, m16n8k16; callables t -> pointers to 4 floats, 4 and 2 registers
//     load_matrix_4(to, from), ..._transposed   ldmatrix.x4: t -> 4 registers; t -> the row of 16 bytes that this lane names
//     copy_16(to, from, valid)           in a phase: 16 bytes from global to shared memory, zeros where not valid
//     copies_commit(), copies_wait<n>()  groups of such copies; wait until at most n groups are under way (each thread its own:
//                                        other threads see them after the next barrier, b.barrier())
//     take_ticket(counter)               the number that this block draws from a counter in global memory, all writes of this
//                                        block before it visible to whoever draws a later one
#pragma once

#include "prism/backend/cuda/annotate.hpp"
#include "prism/backend/cuda/numbers.hpp"

namespace prism::cuda {

/// A variable of each thread of a block: `Reg<Block, float> sum(b); sum[t] = 0;`.
template <class Block, class T>
using Reg = typename Block::template Reg<T>;

inline constexpr int warp_size = 32;

/// Multiprocessors (of an H100 or H200) for which sums are cut, whatever the device has: ranks on unlike ones have to get the same bits.
inline constexpr int processors_of_sums = 132;

/// Values of several lanes put together by a butterfly: afterwards all lanes whose numbers differ in bits below `width`
/// have the same bits. `width` is a power of two, at most 32.
template <int width = warp_size, class Block, class T, class Join>
PRISM_DEVICE void lanes_join(Block& b, Reg<Block, T>& r, Join&& join) {
    PRISM_UNROLL
    for (int mask = width / 2; mask > 0; mask /= 2) {
        const auto other = b.shuffle_xor(r, mask);
        b.each_alone([&](int t) { r[t] = join(r[t], other[t]); });
    }
}
template <int width = warp_size, class Block>
PRISM_DEVICE void lanes_sum(Block& b, Reg<Block, float>& r) {
    lanes_join<width, Block, float>(b, r, [](float p, float q) { return p + q; });
}
template <int width = warp_size, class Block>
PRISM_DEVICE void lanes_max(Block& b, Reg<Block, float>& r) {
    lanes_join<width, Block, float>(b, r, [](float p, float q) { return p < q || q != q ? q : p; });  // NaN wins
}

/// r of all threads put together, in every thread. `scratch`: 32 elements of shared memory, free before and after.
template <class Block, class T, class Join>
PRISM_DEVICE void block_join(Block& b, Reg<Block, T>& r, T* scratch, Join&& join) {
    lanes_join<warp_size, Block, T>(b, r, join);
    b.each([&](int t) {
        if (t % warp_size == 0) scratch[t / warp_size] = r[t];
    });
    b.each([&](int t) {
        T all = scratch[0];
        for (int w = 1; w < b.n_threads() / warp_size; ++w) all = join(all, scratch[w]);
        r[t] = all;
    });
}
template <class Block>
PRISM_DEVICE void block_sum(Block& b, Reg<Block, float>& r, float* scratch) {
    block_join<Block, float>(b, r, scratch, [](float p, float q) { return p + q; });
}

/// Whether this block is the last of n that draw from a counter in global memory, which is zero before and after.
template <class Block>
PRISM_DEVICE bool is_last(Block& b, std::uint32_t* counter, std::int32_t n) {
    if (b.take_ticket(counter) != static_cast<std::uint32_t>(n - 1)) return false;
    b.each_alone([&](int t) {
        if (t == 0) *counter = 0;
    });
    return true;
}

}  // namespace prism::cuda
