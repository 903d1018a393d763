// MemoryPool: device memory in chunks, handed out in pieces. Taking memory from a device costs tens of microseconds and
// giving it back waits for everything that runs there; a piece of a chunk costs neither.
//
//     const auto pool = MemoryPool::make({.take = take, .give = give});
//     Buffer<device> b = pool->allocate(4096);   // aligned to 256 bytes; goes back to the pool, which lives as long as it
#pragma once

#include "prism/core/buffer.hpp"
#include "prism/core/view.hpp"

#include <cstddef>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace prism::cuda {

/// Where a pool has its memory from.
struct MemorySource {
    void* (*take)(int device, std::size_t bytes) = nullptr;    // aligned to 256 bytes; null where there is no more
    void (*give)(int device, void* data) noexcept = nullptr;
    int  device = 0;
    bool whole_chunks = false;  // every buffer is a chunk of its own: a sanitizer then sees what goes past its end
};

/// Any thread may allocate and release. Memory that is released may be handed out at once: that is right for work that one
/// stream does in order, and hold() is for all other work.
class MemoryPool : public std::enable_shared_from_this<MemoryPool> {
    struct Piece {
        void*       data;
        std::size_t bytes;
    };

public:
    static constexpr std::size_t alignment = 256;
    /// Buffers of at most so many bytes come from chunks of so many; larger ones are chunks of their own.
    static constexpr std::size_t small_bytes = std::size_t{1} << 20, small_chunk_bytes = std::size_t{2} << 20;
    static constexpr std::size_t middle_bytes = std::size_t{8} << 20, middle_chunk_bytes = std::size_t{32} << 20;

    static std::shared_ptr<MemoryPool> make(MemorySource source) { return std::shared_ptr<MemoryPool>(new MemoryPool(source)); }

    /// Released memory that the pool must not hand out yet; it goes back with this.
    class Held {
    public:
        Held() = default;
        Held(Held&& other) noexcept : pool_(std::move(other.pool_)), pieces_(std::exchange(other.pieces_, {})) {}
        Held& operator=(Held&& other) noexcept {
            std::swap(pool_, other.pool_), std::swap(pieces_, other.pieces_);
            return *this;
        }
        ~Held() {
            for (const Piece& p : pieces_) pool_->give_back(p.data, p.bytes);
        }
        std::size_t n_buffers() const { return pieces_.size(); }

    private:
        friend class MemoryPool;
        Held(std::shared_ptr<MemoryPool> pool, std::vector<Piece> pieces) : pool_(std::move(pool)), pieces_(std::move(pieces)) {}

        std::shared_ptr<MemoryPool> pool_;
        std::vector<Piece>          pieces_;
    };

    /// Empty where the source has no more. Throws what the source throws.
    Buffer<device> allocate(std::size_t bytes) {
        if (bytes == 0) return {};
        const std::lock_guard lock(mutex_);
        void*                 data = find(rounded(bytes));
        if (!data) data = grow(rounded(bytes));
        if (!data) return {};
        in_use_ += rounded(bytes);
        return {data, bytes, [](void* p, std::size_t n) noexcept {
                    if (const auto pool = owner_of(p)) pool->give_back(p, n);
                }};
    }

    /// From here on to let_go(), released memory is not handed out again. Calls nest.
    void hold() {
        const std::lock_guard lock(mutex_);
        ++holds_;
    }
    /// Ends what hold() began. The outermost call returns what was released meanwhile.
    Held let_go() {
        const std::lock_guard lock(mutex_);
        if (--holds_ > 0) return {};
        return {shared_from_this(), std::exchange(held_, {})};
    }

    /// Gives chunks back that nothing uses, now and from now on. For an owner that goes while its buffers stay.
    void close() {
        const std::lock_guard lock(mutex_);
        closed_ = true;
        trim();
    }

    /// Bytes of all buffers, each rounded up to the alignment; bytes that the source gave for them.
    std::size_t bytes_in_use() const {
        const std::lock_guard lock(mutex_);
        return in_use_;
    }
    std::size_t bytes_taken() const {
        const std::lock_guard lock(mutex_);
        return taken_;
    }

private:
    struct Chunk {
        std::size_t                        bytes, used = 0;
        std::map<std::size_t, std::size_t> free;  // offset -> bytes, no two of them neighbours
    };
    /// Which pool a chunk belongs to: a buffer knows nothing but its address.
    struct Owners {
        std::mutex                                     mutex;
        std::map<std::byte*, std::weak_ptr<MemoryPool>> of;
    };
    static Owners& owners() {
        static Owners* const all = new Owners;  // never destroyed: buffers may be the last to go
        return *all;
    }
    static std::shared_ptr<MemoryPool> owner_of(void* data) {
        Owners&               all = owners();
        const std::lock_guard lock(all.mutex);
        const auto            after = all.of.upper_bound(static_cast<std::byte*>(data));
        return after == all.of.begin() ? nullptr : std::prev(after)->second.lock();
    }

    explicit MemoryPool(MemorySource source) : source_(source) {}

    static std::size_t rounded(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }
    std::size_t        chunk_bytes(std::size_t bytes) const {
        if (source_.whole_chunks || bytes > middle_bytes) return bytes;
        return bytes <= small_bytes ? small_chunk_bytes : middle_chunk_bytes;
    }

    void* find(std::size_t bytes) {
        const std::size_t size = chunk_bytes(bytes);
        if (size == bytes) return nullptr;
        for (auto& [base, chunk] : chunks_) {
            if (chunk.bytes != size) continue;
            for (auto it = chunk.free.begin(); it != chunk.free.end(); ++it)
                if (it->second >= bytes) return take_from(base, chunk, it, bytes);
        }
        return nullptr;
    }
    void* take_from(std::byte* base, Chunk& chunk, std::map<std::size_t, std::size_t>::iterator at, std::size_t bytes) {
        const auto [offset, free] = *at;
        chunk.free.erase(at);
        if (free > bytes) chunk.free.emplace(offset + bytes, free - bytes);
        chunk.used += bytes;
        return base + offset;
    }
    void* grow(std::size_t bytes) {
        std::size_t size = chunk_bytes(bytes);
        void*       data = source_.take(source_.device, size);
        if (!data && trim()) data = source_.take(source_.device, size);
        if (!data && size > bytes) data = source_.take(source_.device, size = bytes);
        if (!data) return nullptr;
        auto* const base = static_cast<std::byte*>(data);
        Chunk&      chunk = chunks_.emplace(base, Chunk{size, 0, {{0, size}}}).first->second;
        taken_ += size;
        if (!self_) self_ = shared_from_this();
        {
            Owners&               all = owners();
            const std::lock_guard lock(all.mutex);
            all.of[base] = self_;
        }
        return take_from(base, chunk, chunk.free.begin(), bytes);
    }

    void give_back(void* data, std::size_t bytes) noexcept {
        std::shared_ptr<MemoryPool> last;  // the pool may go with its last chunk: after the lock
        const std::lock_guard       lock(mutex_);
        if (holds_ > 0) {
            held_.push_back({data, bytes});
            return;
        }
        const std::size_t n = rounded(bytes);
        const auto        at = std::prev(chunks_.upper_bound(static_cast<std::byte*>(data)));
        Chunk&            chunk = at->second;
        auto              offset = static_cast<std::size_t>(static_cast<std::byte*>(data) - at->first), free = n;
        const auto        after = chunk.free.lower_bound(offset);
        if (after != chunk.free.begin())
            if (const auto before = std::prev(after); before->first + before->second == offset) {
                offset = before->first, free += before->second;
                chunk.free.erase(before);
            }
        if (after != chunk.free.end() && after->first == offset + free) {
            free += after->second;
            chunk.free.erase(after);
        }
        chunk.free.emplace(offset, free);
        chunk.used -= n, in_use_ -= n;
        if (chunk.used == 0 && (closed_ || !is_only_spare(at))) drop(at);
        if (chunks_.empty()) last = std::exchange(self_, nullptr);
    }

    using Chunks = std::map<std::byte*, Chunk>;
    /// An empty chunk of a size that comes again is kept, one of each.
    bool is_only_spare(Chunks::iterator it) const {
        const std::size_t size = it->second.bytes;
        if (source_.whole_chunks || (size != small_chunk_bytes && size != middle_chunk_bytes)) return false;
        for (const auto& [base, chunk] : chunks_)
            if (base != it->first && chunk.bytes == size && chunk.used == 0) return false;
        return true;
    }
    Chunks::iterator drop(Chunks::iterator it) {
        {
            Owners&               all = owners();
            const std::lock_guard lock(all.mutex);
            all.of.erase(it->first);
        }
        taken_ -= it->second.bytes;
        source_.give(source_.device, it->first);
        return chunks_.erase(it);
    }
    bool trim() {
        bool any = false;
        for (auto it = chunks_.begin(); it != chunks_.end();)
            if (it->second.used == 0) it = drop(it), any = true;
            else ++it;
        if (chunks_.empty()) self_ = nullptr;
        return any;
    }

    const MemorySource          source_;
    mutable std::mutex          mutex_;
    Chunks                      chunks_;
    std::shared_ptr<MemoryPool> self_;  // while there are chunks
    std::vector<Piece>          held_;
    int                         holds_ = 0;
    bool                        closed_ = false;
    std::size_t                 in_use_ = 0, taken_ = 0;
};

}  // namespace prism::cuda
