// Memory in pieces of 16 bytes: what a thread reads or writes in one access.
#pragma once

#include "prism/backend/cuda/kernels/words.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace prism::cuda {

/// Four registers.
using Piece = Words<4>;

/// 16 bytes from a place aligned to 16.
PRISM_DEVICE inline Piece load_16(const void* from) { return load_words<4>(from); }
PRISM_DEVICE inline void  store_16(void* to, const Piece& p) { store_words(to, p); }
/// The same from global memory that nobody writes meanwhile and that this multiprocessor reads once: leaves its cache alone.
PRISM_DEVICE inline Piece stream_16(const void* from) {
#if defined(__CUDA_ARCH__)
    Piece p;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(p.at[0]), "=r"(p.at[1]), "=r"(p.at[2]), "=r"(p.at[3]) : "l"(from));
    return p;
#else
    return load_16(from);
#endif
}

/// 2 bytes, aligned to 2: what all formats of files are.
PRISM_HOST_DEVICE inline std::uint32_t load_2(const std::byte* from) {
    std::uint16_t u;
    memcpy(&u, __builtin_assume_aligned(from, 2), sizeof u);
    return u;
}
/// 4 bytes, aligned to 2.
PRISM_HOST_DEVICE inline std::uint32_t load_4(const std::byte* from) { return load_2(from) | load_2(from + 2) << 16; }

PRISM_HOST_DEVICE inline bool aligned_to_16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

}  // namespace prism::cuda
