// Driver: what stands between the operations of a device backend and the device. Runtime (runtime.cuh) is CUDA's,
// Emulator (emulator.hpp) runs the same kernels on the processor.
#pragma once

#include "prism/backend/cuda/annotate.hpp"
#include "prism/backend/types.hpp"
#include "prism/core/buffer.hpp"
#include "prism/core/error.hpp"

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace prism::cuda {

/// y [m, n] = x [m, k] w [n, k]^T + bias, or with `add` y += x w^T + bias, summed in f32. x and w have the same element
/// type; leading dimensions count elements. What a library may take over.
struct LibraryProduct {
    Dtype         type = Dtype::bf16;  // of x and w: bf16, f16 or f32
    std::int64_t  m = 0, n = 0, k = 0;
    const void*   x = nullptr;
    std::int64_t  ldx = 0;
    const void*   w = nullptr;
    std::int64_t  ldw = 0;
    const float*  bias = nullptr;
    bool          add = false;
    float*        y = nullptr;
    std::int64_t  ldy = 0;
};

/// Which copy to the device of a recording: what Recording::rewrite() takes.
struct Staged {
    static constexpr std::size_t none = ~std::size_t{0};  // the copy was done outside of a recording

    std::size_t number = none;
};

/// A driver's place among those that work on one model together, each on a device of its own, and how they add up numbers.
/// By itself: alone. `Where` is what the driver enqueues its work on.
template <class... Where>
struct Collective {
    std::size_t rank = 0, n = 1;
    std::function<void(float* data, std::size_t count, Where... where)> sum{};  // enqueues data = the sum of all ranks' data
    std::function<void()>                                               check{};  // throws where the others have been given up
};

/// Throws what an operation that waits throws while a recording is made.
[[noreturn]] inline void refuse_while_recording(const char* call) {
    constexpr int capture_unsupported = 900;  // CUDA's number for it
    throw DeviceError{call, capture_unsupported, "a recording is being made, and nothing has run yet that could be waited for; do this before or after"};
}

/// Everything is enqueued in order; only copies to the host and wait() wait. One thread at a time, except for allocate() and
/// the release of buffers.
///
/// A recording holds what a function enqueues, launches, products and copies to the device, and is replayed with one call:
///
///     Staged         id;
///     D::Recording   step = d.record([&] { id = d.to_device(ids, &token, 4); d.launch(...); });   // runs nothing
///     step.rewrite(id, &next, 4);             // waits until the last replay is over, then changes what is copied
///     d.replay(step);
///
/// Pointers are those of the recording, so their buffers must stay; what is released while it is made, it keeps.
/// What a function enqueues must not depend on anything that it reads back.
///
/// fork(a, b) enqueues what two functions enqueue so that both may run at the same time; what comes later waits for both.
/// branch() says in which of the two a caller is, because they must not share scratch memory. A fork within a fork is done
/// in order. Sums over ranks are made in the order of calls, which is the same on all of them.
template <class D>
concept Driver = requires(D& d, void* to, const void* from, std::size_t bytes, const LibraryProduct& product, float* floats, void (*work)(),
                          typename D::Recording& recording, const typename D::Recording& recorded, Staged staged) {
    { d.allocate(bytes) } -> std::same_as<Buffer<device>>;  // aligned to 256 bytes. Throws DeviceError; a smaller request may follow
    { d.allocate_cleared(bytes, bytes) } -> std::same_as<Buffer<device>>;  // the first so many bytes are zero at once, also while a recording is made
    { d.to_device(to, from, bytes) } -> std::same_as<Staged>;  // `from` may be changed as soon as the call returns
    d.to_host(to, from, bytes);                             // waits
    d.clear(to, bytes);                                     // zeros
    d.wait();
    d.all_reduce(floats, bytes);                            // so many floats = their sums over all ranks, the same bits on each
    { d.rank() } -> std::same_as<std::size_t>;
    { d.n_ranks() } -> std::same_as<std::size_t>;
    { d.n_processors() } -> std::convertible_to<int>;       // multiprocessors: how many blocks run side by side
    { d.multiply(product) } -> std::same_as<bool>;          // false: no library, or it does not take this product
    // d.launch(std::array<int, 3> grid, int threads, std::size_t shared_bytes, kernel): any kernel of kernels/

    { d.record(work) } -> std::same_as<typename D::Recording>;
    recording.rewrite(staged, from, bytes);
    d.replay(recorded);
    d.fork(work, work);
    { d.branch() } -> std::same_as<int>;                    // 1 in the second function of a fork, else 0
    { d.recording() } -> std::same_as<bool>;                // while a recording is made
};

}  // namespace prism::cuda
