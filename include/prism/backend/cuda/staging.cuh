// Staging: the way of bytes to a device. They are read into pinned memory, a piece at a time, and copied from there while
// the next piece is read: reading a mapped file and copying it overlap.
#pragma once

#include "prism/backend/cuda/errors.cuh"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

namespace prism::cuda {

/// A ring of pinned pieces. Small copies share a piece, so that none of them waits until the ring has gone round.
class Staging {
public:
    static constexpr std::size_t piece_bytes = std::size_t{16} << 20, n_pieces = 4;

    /// Enqueues the copy on stream number `branch`; `from` is free when it returns.
    void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream, std::size_t branch) {
        for (std::size_t done = 0; done < bytes;) {
            Piece& piece = pieces_[current_];
            if (!piece.memory) piece.memory = make_pinned(piece_bytes);
            const std::size_t n = std::min(bytes - done, piece_bytes - used_);
            std::memcpy(piece.memory.get() + used_, static_cast<const std::byte*>(from) + done, n);
            check(cudaMemcpyAsync(static_cast<std::byte*>(to) + done, piece.memory.get() + used_, n, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync to the device");
            piece.ended[branch] = true;
            piece.streams[branch] = stream;
            done += n, used_ += (n + 255) / 256 * 256;
            if (used_ >= piece_bytes) next();
        }
    }

private:
    struct Piece {
        Pinned                      memory;
        std::array<Event, 2>        events;
        std::array<cudaStream_t, 2> streams{};
        std::array<bool, 2>         ended{};  // copies of this branch read it: `events` say when they have
    };

    void next() {
        Piece& full = pieces_[current_];
        for (std::size_t b = 0; b < 2; ++b)
            if (full.ended[b]) {
                if (!full.events[b]) full.events[b] = make_event();
                check(cudaEventRecord(full.events[b].get(), full.streams[b]), "cudaEventRecord");
            }
        current_ = (current_ + 1) % n_pieces, used_ = 0;
        Piece& oldest = pieces_[current_];
        for (std::size_t b = 0; b < 2; ++b)
            if (std::exchange(oldest.ended[b], false)) check(cudaEventSynchronize(oldest.events[b].get()), "cudaEventSynchronize");
    }

    std::array<Piece, n_pieces> pieces_;
    std::size_t                 current_ = 0, used_ = 0;
};

}  // namespace prism::cuda
