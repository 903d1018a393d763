// What resize.hpp computes with: Pillow's bicubic weights, and the two passes over rows of 8-bit RGB, in plain C++,
// with AVX2 and with AVX-512. All give the same bytes.
//
//     PortableResize kernel;
//     kernel.add_column(taps, start);                 // one for each pixel of an output row, from the left
//     kernel.horizontal(rows, narrow_rows);
//     kernel.vertical(narrow_rows, weights, out, bytes);
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace prism::image_detail {

/// Weights have 22 fractional bits: 32, less 8 of a pixel, less 2 of head room.
inline constexpr int          weight_bits = 22;
inline constexpr std::int32_t half_weight = 1 << (weight_bits - 1);

/// The cubic kernel with a = -0.5.
inline double bicubic(double t) {
    constexpr double a = -0.5;
    t = std::abs(t);
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    if (t < 2) return (((t - 5) * t + 8) * t - 4) * a;
    return 0;
}

/// The source pixels that one output pixel is made of.
struct Taps {
    std::size_t               first = 0;
    std::vector<std::int32_t> weights;

    /// Output `i` of an axis of `n` pixels brought to `m`.
    void set(std::size_t n, std::size_t m, std::size_t i) {
        const double scale = static_cast<double>(n) / static_cast<double>(m), stretch = std::max(scale, 1.0);
        const double support = 2 * stretch, inverse = 1 / stretch, center = (static_cast<double>(i) + 0.5) * scale;
        first = static_cast<std::size_t>(std::max(center - support + 0.5, 0.0));
        const std::size_t end = std::min(static_cast<std::size_t>(center + support + 0.5), n);

        exact_.resize(end - first);
        double sum = 0;
        for (std::size_t k = 0; k < exact_.size(); ++k) {
            exact_[k] = bicubic((static_cast<double>(k + first) - center + 0.5) * inverse);
            sum += exact_[k];
        }
        weights.resize(exact_.size());
        for (std::size_t k = 0; k < exact_.size(); ++k) {
            const double w = (sum != 0 ? exact_[k] / sum : exact_[k]) * (1 << weight_bits);
            weights[k] = static_cast<std::int32_t>(w < 0 ? w - 0.5 : w + 0.5);
        }
    }

    /// Keeps the taps in [begin, begin + count) and counts from `begin` on. Returns the sum of the weights cut off, and
    /// leaves off zeros at both ends.
    std::int32_t clip(std::size_t begin, std::size_t count) {
        std::size_t  lo = std::clamp(begin, first, first + weights.size()) - first;
        std::size_t  hi = std::max(lo, std::clamp(begin + count, first, first + weights.size()) - first);
        std::int32_t outside = 0;
        for (std::size_t k = 0; k < weights.size(); ++k)
            if (k < lo || k >= hi) outside += weights[k];
        while (lo < hi && weights[lo] == 0) ++lo;
        while (lo < hi && weights[hi - 1] == 0) --hi;
        first = lo < hi ? first + lo - begin : 0;
        weights.erase(weights.begin() + static_cast<std::ptrdiff_t>(hi), weights.end());
        weights.erase(weights.begin(), weights.begin() + static_cast<std::ptrdiff_t>(lo));
        return outside;
    }

private:
    std::vector<double> exact_;
};

/// Most taps that an output of this axis has.
inline std::size_t max_taps(std::size_t n, std::size_t m) {
    return static_cast<std::size_t>(std::ceil(2 * std::max(static_cast<double>(n) / static_cast<double>(m), 1.0))) * 2 +
           1;
}

inline std::uint8_t to_pixel(std::uint32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(static_cast<std::int32_t>(sum) >> weight_bits, 0, 255));
}

/// Where the sums of an output pixel begin: the rounding half, and what the ground beside the picture adds.
using Start = std::array<std::uint32_t, 3>;

/// Rows that kernels read, or write, must be accessible this far past their end.
inline constexpr std::size_t slack_bytes = 64;

/// The two passes in plain C++. Sums are unsigned: they may wrap on the way, as long as the total fits.
class PortableResize {
public:
    template <class = void>
    void add_column(const Taps& taps, const Start& start) {
        columns_.push_back({taps.first, weights_.size(), taps.weights.size(), start});
        weights_.insert(weights_.end(), taps.weights.begin(), taps.weights.end());
    }

    /// Rows of source to rows [n_columns * 3].
    void horizontal(std::span<const std::uint8_t* const> from, std::span<std::uint8_t* const> to) const {
        for (std::size_t r = 0; r < from.size(); ++r) {
            std::uint8_t* out = to[r];
            for (const Column& column : columns_) {
                const std::uint8_t* p = from[r] + 3 * column.first;
                auto [red, green, blue] = column.start;
                for (std::size_t k = 0; k < column.n_taps; ++k, p += 3) {
                    const auto weight = static_cast<std::uint32_t>(weights_[column.at + k]);
                    red += p[0] * weight;
                    green += p[1] * weight;
                    blue += p[2] * weight;
                }
                *out++ = to_pixel(red);
                *out++ = to_pixel(green);
                *out++ = to_pixel(blue);
            }
        }
    }

    /// out [bytes] = the weighted sum of `rows`.
    void vertical(std::span<const std::uint8_t* const> rows, std::span<const std::int32_t> weights, std::uint8_t* out,
                  std::size_t bytes) const {
        constexpr std::size_t piece = 128;
        for (std::size_t begin = 0; begin < bytes; begin += piece) {
            const std::size_t                n = std::min(piece, bytes - begin);
            std::array<std::uint32_t, piece> sum;
            sum.fill(half_weight);
            for (std::size_t k = 0; k < rows.size(); ++k) {
                const std::uint8_t* row = rows[k] + begin;
                const auto          weight = static_cast<std::uint32_t>(weights[k]);
                for (std::size_t j = 0; j < n; ++j) sum[j] += row[j] * weight;
            }
            for (std::size_t j = 0; j < n; ++j) out[begin + j] = to_pixel(sum[j]);
        }
    }

private:
    struct Column {
        std::size_t first, at, n_taps;  // source pixel; first weight
        Start       start;
    };
    std::vector<Column>       columns_;
    std::vector<std::int32_t> weights_;
};

#if defined(__x86_64__) && defined(__GNUC__)
/// Both SIMD kernels split weights into parts, which is exact for weights, and sums of weights, below 2^23 less 2^15.
/// Up to this scale rounding cannot lift them so far.
inline constexpr std::size_t max_simd_scale = 1 << 20;

/// The passes with AVX2. A weight w is split into w = 256 * high + low, both of 16 bits, so that the instruction which
/// multiplies and adds pairs of 16-bit numbers gives exact sums: total = 256 * sum(p * high) + sum(p * low).
class Avx2Resize {
public:
    static bool available() {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2");
    }

    template <class = void>
    void add_column(const Taps& taps, const Start& start) {
        const std::size_t n = taps.weights.size();
        columns_.push_back({taps.first, groups_.size(), (n + 3) / 4, {start[0], start[1], start[2], 0}});
        for (std::size_t k = 0; k < n; k += 4) {
            Group& group = groups_.emplace_back();
            for (std::size_t j = 0; j < 16; ++j) {
                const std::size_t tap = k + 2 * (j / 8) + j % 2;
                group.high[j] = tap < n ? high(taps.weights[tap]) : std::int16_t{0};
                group.low[j] = tap < n ? low(taps.weights[tap]) : std::int16_t{0};
            }
        }
    }

    /// Reads up to 13 bytes past the last tap of a source row and writes one byte past the end of a target row.
    void horizontal(std::span<const std::uint8_t* const> from, std::span<std::uint8_t* const> to) const {
        std::size_t r = 0;
        for (; r + 4 <= from.size(); r += 4) rows_of<4>(&from[r], &to[r]);
        for (; r < from.size(); ++r) rows_of<1>(&from[r], &to[r]);
    }

    /// Reads `rows` up to the next multiple of 32 bytes.
    __attribute__((target("avx2"))) void vertical(std::span<const std::uint8_t* const> rows,
                                                  std::span<const std::int32_t> weights, std::uint8_t* out,
                                                  std::size_t bytes) const {
        const __m256i zero = _mm256_setzero_si256();
        for (std::size_t begin = 0; begin < bytes; begin += 32) {
            __m256i sum_high[4] = {zero, zero, zero, zero};
            __m256i sum_low[4] = {_mm256_set1_epi32(half_weight), _mm256_set1_epi32(half_weight),
                                  _mm256_set1_epi32(half_weight), _mm256_set1_epi32(half_weight)};
            for (std::size_t k = 0; k < rows.size(); k += 2) {
                const bool         pair = k + 1 < rows.size();
                const std::int32_t w0 = weights[k], w1 = pair ? weights[k + 1] : 0;
                const __m256i      high2 = _mm256_set1_epi32(
                         (w0 >> 8 & 0xffff) | static_cast<std::int32_t>(static_cast<std::uint32_t>(w1 >> 8) << 16));
                const __m256i low2 = _mm256_set1_epi32((w0 & 255) | (w1 & 255) << 16);
                const __m256i a = load(rows[k] + begin), b = load(rows[pair ? k + 1 : k] + begin);
                const __m256i ab[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
                for (int i = 0; i < 4; ++i) {
                    const __m256i p =
                        i % 2 ? _mm256_unpackhi_epi8(ab[i / 2], zero) : _mm256_unpacklo_epi8(ab[i / 2], zero);
                    sum_high[i] = _mm256_add_epi32(sum_high[i], _mm256_madd_epi16(p, high2));
                    sum_low[i] = _mm256_add_epi32(sum_low[i], _mm256_madd_epi16(p, low2));
                }
            }
            __m256i total[4];
            for (int i = 0; i < 4; ++i)
                total[i] =
                    _mm256_srai_epi32(_mm256_add_epi32(_mm256_slli_epi32(sum_high[i], 8), sum_low[i]), weight_bits);
            const __m256i pixels =
                _mm256_packus_epi16(_mm256_packs_epi32(total[0], total[1]), _mm256_packs_epi32(total[2], total[3]));
            if (begin + 32 <= bytes) {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + begin), pixels);
            } else {
                std::array<std::uint8_t, 32> last;
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(last.data()), pixels);
                std::memcpy(out + begin, last.data(), bytes - begin);
            }
        }
    }

private:
    struct Column {
        std::size_t                  first, at, n_groups;  // source pixel; first group
        std::array<std::uint32_t, 4> start;
    };
    /// Four taps: pairs (w0, w1) for the four channels of a pixel in the lower lane, (w2, w3) in the upper one.
    struct alignas(32) Group {
        std::array<std::int16_t, 16> high, low;
    };

    static std::int16_t high(std::int32_t w) { return static_cast<std::int16_t>(w >> 8); }
    static std::int16_t low(std::int32_t w) { return static_cast<std::int16_t>(w & 255); }

    __attribute__((target("avx2"))) static __m256i load(const void* p) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(p));
    }

    /// `R` rows at once, so that a group of weights is fetched once for all of them.
    template <std::size_t R>
    __attribute__((target("avx2"))) void rows_of(const std::uint8_t* const* from, std::uint8_t* const* to) const {
        // From four pixels of three bytes: red, green, blue and nothing of pixels 0 and 1 side by side, as 16-bit
        // numbers; the same of pixels 2 and 3 in the upper lane.
        const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                               6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
        for (std::size_t x = 0; x < columns_.size(); ++x) {
            const Column& column = columns_[x];
            std::size_t   at = 3 * column.first;
            __m256i       sum_high[R], sum_low[R];
            for (std::size_t r = 0; r < R; ++r) sum_high[r] = sum_low[r] = _mm256_setzero_si256();
            for (std::size_t k = 0; k < column.n_groups; ++k, at += 12) {
                const Group&  group = groups_[column.at + k];
                const __m256i high4 = load(group.high.data()), low4 = load(group.low.data());
                for (std::size_t r = 0; r < R; ++r) {
                    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[r] + at));
                    const __m256i p = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), pairs);
                    sum_high[r] = _mm256_add_epi32(sum_high[r], _mm256_madd_epi16(p, high4));
                    sum_low[r] = _mm256_add_epi32(sum_low[r], _mm256_madd_epi16(p, low4));
                }
            }
            const __m128i start = _mm_loadu_si128(reinterpret_cast<const __m128i*>(column.start.data()));
            for (std::size_t r = 0; r < R; ++r) {
                const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(sum_high[r], 8), sum_low[r]);
                const __m128i sum = _mm_add_epi32(
                    start, _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
                const __m128i words = _mm_packs_epi32(_mm_srai_epi32(sum, weight_bits), _mm_setzero_si128());
                const int     pixel = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
                std::memcpy(to[r] + 3 * x, &pixel, 4);  // the fourth byte is the next pixel's first
            }
        }
    }

    std::vector<Column> columns_;
    std::vector<Group>  groups_;
};

/// The passes with AVX-512 as processors have it since 2019 (VBMI and VNNI): one instruction multiplies bytes and adds
/// four products to a sum. A weight w is split into signed bytes, w = 65536 * high + 256 * middle + low. Sums wrap.
class Avx512Resize {
public:
    static bool available() {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
               __builtin_cpu_supports("avx512vnni");
    }

    template <class = void>
    void add_column(const Taps& taps, const Start& start) {
        const std::size_t n = taps.weights.size();
        if (groups_.empty() || !joins(groups_.back(), taps)) groups_.emplace_back().at = steps_.size();
        Group& group = groups_.back();
        if (group.n_steps == 0) group.first = taps.first;
        for (; group.n_steps < (n + 3) / 4; ++group.n_steps) steps_.emplace_back();

        for (std::size_t c = 0; c < 3; ++c) {
            const std::size_t sum = 3 * group.n_columns + c;
            group.start[sum] = start[c];
            for (std::size_t k = 0; k < n; ++k) {
                const Parts parts{taps.weights[k]};
                Step&       step = steps_[group.at + k / 4];
                step.high[4 * sum + k % 4] = parts.high;
                step.middle[4 * sum + k % 4] = parts.middle;
                step.low[4 * sum + k % 4] = parts.low;
            }
            for (std::size_t k = 0; k < 4 && n > 0; ++k)
                group.gather[4 * sum + k] = static_cast<std::uint8_t>(3 * (taps.first - group.first + k) + c);
        }
        ++group.n_columns;
    }

    /// Reads less than 64 bytes past the end of a source row and writes up to 13 past the end of a target row.
    void horizontal(std::span<const std::uint8_t* const> from, std::span<std::uint8_t* const> to) const {
        std::size_t r = 0;
        for (; r + 8 <= from.size(); r += 8) rows_of<8>(&from[r], &to[r]);
        for (; r < from.size(); ++r) rows_of<1>(&from[r], &to[r]);
    }

    /// Reads `rows` up to the next multiple of 64 bytes.
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni"))) void
    vertical(std::span<const std::uint8_t* const> rows, std::span<const std::int32_t> weights, std::uint8_t* out,
             std::size_t bytes) {
        quads_.clear();
        for (std::size_t k = 0; k < rows.size(); ++k) {
            if (k % 4 == 0) quads_.push_back({{rows[k], rows[k], rows[k], rows[k]}, {}, {}, {}});
            const Parts parts{weights[k]};
            Quad&       quad = quads_.back();
            quad.rows[k % 4] = rows[k];
            quad.high[k % 4] = parts.high;
            quad.middle[k % 4] = parts.middle;
            quad.low[k % 4] = parts.low;
        }
        for (std::size_t begin = 0; begin < bytes; begin += 64) {
            __m512i high[4], middle[4], low[4];
            for (int i = 0; i < 4; ++i) {
                high[i] = middle[i] = _mm512_setzero_si512();
                low[i] = _mm512_set1_epi32(half_weight);
            }
            for (const Quad& quad : quads_) {
                const __m512i a = load(quad.rows[0] + begin), b = load(quad.rows[1] + begin);
                const __m512i c = load(quad.rows[2] + begin), d = load(quad.rows[3] + begin);
                const __m512i ab[2] = {_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)};
                const __m512i cd[2] = {_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d)};
                const __m512i w_high = four(quad.high), w_middle = four(quad.middle), w_low = four(quad.low);
                for (int i = 0; i < 4; ++i) {
                    const __m512i p = i % 2 ? _mm512_unpackhi_epi16(ab[i / 2], cd[i / 2])
                                            : _mm512_unpacklo_epi16(ab[i / 2], cd[i / 2]);
                    high[i] = _mm512_dpbusd_epi32(high[i], p, w_high);
                    middle[i] = _mm512_dpbusd_epi32(middle[i], p, w_middle);
                    low[i] = _mm512_dpbusd_epi32(low[i], p, w_low);
                }
            }
            for (int i = 0; i < 4; ++i) low[i] = total(high[i], middle[i], low[i]);
            const __m512i pixels =
                _mm512_packus_epi16(_mm512_packs_epi32(low[0], low[1]), _mm512_packs_epi32(low[2], low[3]));
            const std::size_t n = std::min<std::size_t>(64, bytes - begin);
            _mm512_mask_storeu_epi8(out + begin, ~std::uint64_t{0} >> (64 - n), pixels);
        }
    }

private:
    // Masks of all ones: the forms without a mask start from an undefined register, of which GCC 12 warns.
    static constexpr __mmask16 all = 0xffff;

    struct Parts {
        std::int8_t low, middle, high;
        explicit Parts(std::int32_t w)
            : low(static_cast<std::int8_t>(w)), middle(static_cast<std::int8_t>((w - low) >> 8)),
              high(static_cast<std::int8_t>((((w - low) >> 8) - middle) >> 8)) {}
    };
    /// Four taps of up to five neighbouring columns: four bytes for each of their 15 sums.
    struct Step {
        alignas(64) std::array<std::int8_t, 64> high{}, middle{}, low{};
    };
    struct Group {
        alignas(64) std::array<std::uint8_t, 64> gather{};  // the places of a step's bytes in 64 bytes of source
        alignas(64) std::array<std::uint32_t, 16> start{};
        std::size_t first = 0, n_columns = 0, at = 0, n_steps = 0;  // source pixel; first step
    };
    /// Four rows and their weights.
    struct Quad {
        std::array<const std::uint8_t*, 4> rows;
        std::array<std::int8_t, 4>         high, middle, low;
    };

    /// Whether there is room, and 64 bytes from the group's first pixel on hold four taps of this column, too.
    static bool joins(const Group& group, const Taps& taps) {
        constexpr std::size_t max_columns = 5, max_offset = 64 / 3 - 4;
        if (group.n_columns == max_columns) return false;
        if (taps.weights.empty() || group.n_steps == 0) return true;
        return taps.first >= group.first && taps.first - group.first <= max_offset;
    }

    __attribute__((target("avx512f"))) static __m512i load(const void* p) { return _mm512_loadu_si512(p); }

    __attribute__((target("avx512f"))) static __m512i four(const std::array<std::int8_t, 4>& weights) {
        std::int32_t word;
        std::memcpy(&word, weights.data(), sizeof word);
        return _mm512_set1_epi32(word);
    }

    __attribute__((target("avx512f"))) static __m512i total(__m512i high, __m512i middle, __m512i low) {
        const __m512i upper = _mm512_add_epi32(_mm512_maskz_slli_epi32(all, high, 8), middle);
        return _mm512_maskz_srai_epi32(all, _mm512_add_epi32(_mm512_maskz_slli_epi32(all, upper, 8), low), weight_bits);
    }

    /// `R` rows at once, so that weights are fetched once for all of them.
    template <std::size_t R>
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni"))) void
    rows_of(const std::uint8_t* const* from, std::uint8_t* const* to) const {
        std::size_t out = 0;
        for (const Group& group : groups_) {
            const __m512i gather = load(group.gather.data());
            __m512i       high[R], middle[R], low[R];
            for (std::size_t r = 0; r < R; ++r) {
                high[r] = middle[r] = _mm512_setzero_si512();
                low[r] = load(group.start.data());
            }
            const Step* step = steps_.data() + group.at;
            for (std::size_t k = 0, at = 3 * group.first; k < group.n_steps; ++k, ++step, at += 12) {
                const __m512i w_high = load(step->high.data()), w_middle = load(step->middle.data());
                const __m512i w_low = load(step->low.data());
                for (std::size_t r = 0; r < R; ++r) {
                    const __m512i p = _mm512_maskz_permutexvar_epi8(~__mmask64{0}, gather, load(from[r] + at));
                    high[r] = _mm512_dpbusd_epi32(high[r], p, w_high);
                    middle[r] = _mm512_dpbusd_epi32(middle[r], p, w_middle);
                    low[r] = _mm512_dpbusd_epi32(low[r], p, w_low);
                }
            }
            for (std::size_t r = 0; r < R; ++r) {
                const __m512i sum =
                    _mm512_maskz_max_epi32(all, total(high[r], middle[r], low[r]), _mm512_setzero_si512());
                // What is stored beyond the group's own pixels is overwritten by the next group.
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to[r] + out), _mm512_maskz_cvtusepi32_epi8(all, sum));
            }
            out += 3 * group.n_columns;
        }
    }

    std::vector<Group> groups_;
    std::vector<Step>  steps_;
    std::vector<Quad>  quads_;
};
#endif

}  // namespace prism::image_detail
