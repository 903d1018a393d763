// The pool of device memory, over a source that counts.
#include "prism/backend/cuda/pool.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <utility>
#include <vector>

using prism::Buffer;
using prism::device;
using prism::cuda::MemoryPool;

namespace {

std::size_t chunks = 0, most_bytes = 0;  // what the source has given out; the largest piece that it gives

std::shared_ptr<MemoryPool> counted(std::size_t most = ~std::size_t{0}) {
    chunks = 0, most_bytes = most;
    return MemoryPool::make({
        .take = [](int, std::size_t bytes) -> void* {
            if (bytes > most_bytes) return nullptr;
            ++chunks;
            return ::operator new(bytes, std::align_val_t{256});
        },
        .give = [](int, void* p) noexcept {
            --chunks;
            ::operator delete(p, std::align_val_t{256});
        },
    });
}

bool apart(const std::vector<Buffer<device>>& all) {
    std::vector<std::pair<std::byte*, std::size_t>> ranges;
    for (const auto& b : all) ranges.emplace_back(b.as<std::byte>(), b.bytes());
    std::sort(ranges.begin(), ranges.end());
    for (std::size_t i = 1; i < ranges.size(); ++i)
        if (ranges[i - 1].first + ranges[i - 1].second > ranges[i].first) return false;
    return true;
}

}  // namespace

TEST_CASE("backend/cuda/pool: small buffers share chunks, large ones have their own") {
    const auto                  pool = counted();
    std::vector<Buffer<device>> all;
    for (int i = 0; i < 100; ++i) all.push_back(pool->allocate(1000));
    CHECK(chunks == 1);
    CHECK(pool->bytes_in_use() == 100 * 1024);
    all.push_back(pool->allocate(MemoryPool::small_bytes + 1));
    CHECK(chunks == 2);
    all.push_back(pool->allocate(MemoryPool::middle_bytes + 1));
    CHECK(chunks == 3);
    CHECK(pool->bytes_taken() == MemoryPool::small_chunk_bytes + MemoryPool::middle_chunk_bytes + MemoryPool::middle_bytes + 256);
    CHECK(apart(all));
    for (const auto& b : all) CHECK(reinterpret_cast<std::uintptr_t>(b.data()) % 256 == 0);
    all.clear();
    CHECK(chunks == 2);  // one of each size that comes again is kept
    CHECK(pool->bytes_in_use() == 0);
    CHECK(pool->allocate(0).data() == nullptr);
    pool->close();
    CHECK(chunks == 0);
}

TEST_CASE("backend/cuda/pool: what is released is whole again, in whatever order") {
    const auto                  pool = counted();
    std::mt19937                random(3);
    std::vector<Buffer<device>> all;
    for (int round = 0; round < 20; ++round) {
        while (all.size() < 200) {
            all.push_back(pool->allocate(1 + random() % (random() % 10 ? 5000 : 900'000)));
            std::memset(all.back().data(), round, all.back().bytes());
        }
        REQUIRE(apart(all));
        std::shuffle(all.begin(), all.end(), random);
        all.resize(random() % 100);
    }
    all.clear();
    CHECK(chunks <= 1);
    const auto a = pool->allocate(MemoryPool::small_bytes), b = pool->allocate(MemoryPool::small_bytes);
    CHECK(chunks == 1);  // the chunk that was kept is in one piece
    CHECK(a.data() != b.data());
    pool->close();
}

TEST_CASE("backend/cuda/pool: buffers outlive the pool's owner") {
    auto           pool = counted();
    Buffer<device> small = pool->allocate(100), large = pool->allocate(std::size_t{9} << 20);
    std::weak_ptr  watch = pool;
    pool->close();
    pool.reset();
    CHECK_FALSE(watch.expired());
    std::memset(small.data(), 1, small.bytes());
    small = {};
    CHECK(chunks == 1);
    large = {};
    CHECK(chunks == 0);
    CHECK(watch.expired());
}

TEST_CASE("backend/cuda/pool: where no chunk is to be had, a piece may be, and after a refusal a smaller one") {
    const auto     pool = counted(std::size_t{1} << 20);
    Buffer<device> none = pool->allocate(std::size_t{3} << 20);
    CHECK(none.data() == nullptr);
    CHECK(none.bytes() == 0);
    Buffer<device> some = pool->allocate(5000);
    CHECK(some.bytes() == 5000);
    CHECK(pool->bytes_taken() == 5120);
    some = {};
    CHECK(chunks == 0);
    pool->close();
}

TEST_CASE("backend/cuda/pool: spare chunks go before a request is refused") {
    static std::size_t left;
    left = MemoryPool::middle_chunk_bytes;
    const auto pool = MemoryPool::make({
        .take = [](int, std::size_t bytes) -> void* {
            if (bytes > left) return nullptr;
            left -= bytes;
            return ::operator new(bytes, std::align_val_t{256});
        },
        .give = [](int, void* p) noexcept {
            left = MemoryPool::middle_chunk_bytes;
            ::operator delete(p, std::align_val_t{256});
        },
    });
    CHECK(pool->allocate(MemoryPool::middle_bytes).data() != nullptr);
    CHECK(left == 0);  // kept as a spare
    CHECK(pool->allocate(std::size_t{20} << 20).data() != nullptr);
    pool->close();
}

TEST_CASE("backend/cuda/pool: while it is held, released memory is not handed out") {
    const auto       pool = counted();
    Buffer<device>   a = pool->allocate(1000);
    void* const      first = a.data();
    MemoryPool::Held held;
    pool->hold();
    pool->hold();
    a = {};
    CHECK(pool->let_go().n_buffers() == 0);  // the outermost has it
    const Buffer<device> b = pool->allocate(1000);
    CHECK(b.data() != first);
    held = pool->let_go();
    CHECK(held.n_buffers() == 1);
    const Buffer<device> c = pool->allocate(1000);
    CHECK(c.data() != first);
    held = {};
    const Buffer<device> d = pool->allocate(1000);
    CHECK(d.data() == first);
    pool->close();
}

TEST_CASE("backend/cuda/pool: threads allocate and release at the same time") {
    const auto                               pool = MemoryPool::make({
                                      .take = [](int, std::size_t bytes) -> void* { return ::operator new(bytes, std::align_val_t{256}); },
                                      .give = [](int, void* p) noexcept { ::operator delete(p, std::align_val_t{256}); },
    });
    std::vector<std::vector<Buffer<device>>> theirs(4);
    std::vector<std::thread>                 threads;
    for (auto& mine : theirs)
        threads.emplace_back([&pool, &mine, n = &mine - theirs.data()] {
            for (std::size_t i = 1; i < 300; ++i) {
                mine.push_back(pool->allocate(i * 97));
                std::memset(mine.back().data(), static_cast<int>(n), mine.back().bytes());
                if (i % 3 == 0) mine.erase(mine.begin());
            }
        });
    for (auto& t : threads) t.join();
    for (std::size_t n = 0; n < theirs.size(); ++n)
        for (const auto& b : theirs[n]) CHECK(std::all_of(b.as<unsigned char>(), b.as<unsigned char>() + b.bytes(), [=](unsigned char c) { return c == n; }));
    theirs.clear();
    CHECK(pool->bytes_in_use() == 0);
    pool->close();
    CHECK(pool->bytes_taken() == 0);
}
