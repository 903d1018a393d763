// Included before every source of llama.cpp (see install.py). GCC 12's _tile_loadconfig tells the compiler that the
// instruction reads 8 of its 64 bytes; the stores to the others are then dropped, and AMX kernels die of it.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))
#endif
