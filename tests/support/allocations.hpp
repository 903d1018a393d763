// Counting and refusing allocations. Replaces operator new of the whole program: one source of a test program includes it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>

namespace prism::test {

inline std::atomic<std::size_t> allocations{0};  // of all threads, since the program began
/// How many allocations still succeed; the one after them fails, and those behind it succeed again.
inline std::atomic<std::int64_t> allocations_until_failure{std::numeric_limits<std::int64_t>::max()};

/// Null where there is no memory, or where this allocation is the one to fail.
inline void* counted_allocation(std::size_t bytes, std::size_t alignment) noexcept {
    allocations.fetch_add(1, std::memory_order_relaxed);
    if (allocations_until_failure.fetch_sub(1, std::memory_order_relaxed) == 0) return nullptr;
    const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
    return std::aligned_alloc(alignment, whole ? whole : alignment);
}
inline void* or_throw(void* p) {
    return p ? p : throw std::bad_alloc{};
}
inline constexpr std::size_t usual_alignment = alignof(std::max_align_t);

}  // namespace prism::test

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // GCC 12 does not see that the replacements belong together
#endif
// The forms that do not throw too: the sanitizers' own would not match the operators delete below.
void* operator new(std::size_t n) { return prism::test::or_throw(prism::test::counted_allocation(n, prism::test::usual_alignment)); }
void* operator new[](std::size_t n) { return prism::test::or_throw(prism::test::counted_allocation(n, prism::test::usual_alignment)); }
void* operator new(std::size_t n, std::align_val_t a) { return prism::test::or_throw(prism::test::counted_allocation(n, static_cast<std::size_t>(a))); }
void* operator new[](std::size_t n, std::align_val_t a) { return prism::test::or_throw(prism::test::counted_allocation(n, static_cast<std::size_t>(a))); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return prism::test::counted_allocation(n, prism::test::usual_alignment); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return prism::test::counted_allocation(n, prism::test::usual_alignment); }
void  operator delete(void* p) noexcept { std::free(p); }
void  operator delete[](void* p) noexcept { std::free(p); }
void  operator delete(void* p, std::size_t) noexcept { std::free(p); }
void  operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void  operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void  operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void  operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void  operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void  operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void  operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }
