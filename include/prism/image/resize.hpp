// Resizing: Pillow's bicubic, to the bit, and TensorFlow's bilinear crop_and_resize.
//
//     Image small = resize_bicubic(image, {.height = 224, .width = 224});
//
// The numbers are those of Pillow 10 (libImaging/Resample.c): a horizontal pass, then a vertical one, 8 bits between
// them, weights of 22 fractional bits. Two things are arranged otherwise, with the same numbers: only the wanted window
// of the result is computed, and the padding around a picture is never made. So a letterbox or a crop costs no more
// than what is seen of it, whatever the shape of the picture.
#pragma once

#include "prism/core/error.hpp"
#include "prism/core/view.hpp"
#include "prism/image/image.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace prism {

struct Size {
    std::size_t height, width;
};

/// A rectangle of pixels.
struct Window {
    std::size_t top, left, height, width;
};

/// A picture on a larger ground of one colour, its upper left corner at (top, left). Holds a reference to the picture.
struct Canvas {
    const Image& image;
    Size         size;
    std::size_t  top = 0, left = 0;
    Rgb          fill{};
};

namespace image_detail {

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

/// The horizontal taps of a stretch of output columns, and what the ground beside the picture adds to each.
struct Column {
    std::size_t                  first;  // source pixel
    std::size_t                  at;     // of the first weight in the kernel's list
    std::size_t                  count;  // in the kernel's unit: taps, or groups of taps
    std::array<std::uint32_t, 4> start;  // per channel: the rounding half and the ground's share
};

/// Rows of bytes that kernels may read, or write, this far past their end.
inline constexpr std::size_t slack_bytes = 32;

/// The two passes in plain C++. Sums are unsigned: they may wrap on the way, as long as the total fits.
struct PortableResize {
    using Weights = std::vector<std::int32_t>;

    static std::size_t append(Weights& list, const Taps& taps) {
        list.insert(list.end(), taps.weights.begin(), taps.weights.end());
        return taps.weights.size();
    }

    /// Rows [width * 3] of source to rows [columns.size() * 3].
    static void horizontal(std::span<const std::uint8_t* const> from, std::span<std::uint8_t* const> to,
                           std::span<const Column> columns, const Weights& weights) {
        for (std::size_t r = 0; r < from.size(); ++r) {
            std::uint8_t* out = to[r];
            for (const Column& column : columns) {
                const std::uint8_t* p = from[r] + 3 * column.first;
                const std::int32_t* w = weights.data() + column.at;
                auto [red, green, blue, unused] = column.start;
                for (std::size_t k = 0; k < column.count; ++k, p += 3) {
                    const auto weight = static_cast<std::uint32_t>(w[k]);
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
    static void vertical(std::span<const std::uint8_t* const> rows, std::span<const std::int32_t> weights,
                         std::uint8_t* out, std::size_t bytes) {
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
};

#if defined(__x86_64__) && defined(__GNUC__)
/// The same with AVX2. A weight w is split into w = 256 * high + low, both of 16 bits, so that the instruction which
/// multiplies and adds pairs of 16-bit numbers gives exact sums: total = 256 * sum(p * high) + sum(p * low).
struct Avx2Resize {
    /// Splitting holds for weights, and sums of weights, below 2^23. Up to this scale rounding cannot lift them so far.
    static constexpr std::size_t max_scale = 1 << 20;

    /// Four taps: pairs (w0, w1) for the four channels of a pixel in the lower lane, (w2, w3) in the upper one.
    struct alignas(32) Group {
        std::array<std::int16_t, 16> high, low;
    };
    using Weights = std::vector<Group>;

    static bool available() {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2");
    }

    static std::int16_t high(std::int32_t w) { return static_cast<std::int16_t>(w >> 8); }
    static std::int16_t low(std::int32_t w) { return static_cast<std::int16_t>(w & 255); }

    static std::size_t append(Weights& list, const Taps& taps) {
        const std::size_t n = taps.weights.size();
        for (std::size_t k = 0; k < n; k += 4) {
            Group& group = list.emplace_back();
            for (std::size_t j = 0; j < 16; ++j) {
                const std::size_t tap = k + 2 * (j / 8) + j % 2;
                group.high[j] = tap < n ? high(taps.weights[tap]) : std::int16_t{0};
                group.low[j] = tap < n ? low(taps.weights[tap]) : std::int16_t{0};
            }
        }
        return (n + 3) / 4;
    }

    /// Reads up to 13 bytes past the last tap of a source row and writes one byte past the end of a target row.
    static void horizontal(std::span<const std::uint8_t* const> from, std::span<std::uint8_t* const> to,
                           std::span<const Column> columns, const Weights& weights) {
        std::size_t r = 0;
        for (; r + 4 <= from.size(); r += 4) rows_of<4>(&from[r], &to[r], columns, weights.data());
        for (; r < from.size(); ++r) rows_of<1>(&from[r], &to[r], columns, weights.data());
    }

    /// Reads `rows` up to the next multiple of 32 bytes.
    __attribute__((target("avx2"))) static void vertical(std::span<const std::uint8_t* const> rows,
                                                         std::span<const std::int32_t> weights, std::uint8_t* out,
                                                         std::size_t bytes) {
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
    __attribute__((target("avx2"))) static __m256i load(const void* p) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(p));
    }

    /// `R` rows at once, so that a group of weights is fetched once for all of them.
    template <std::size_t R>
    __attribute__((target("avx2"))) static void rows_of(const std::uint8_t* const* from, std::uint8_t* const* to,
                                                        std::span<const Column> columns, const Group* weights) {
        // From four pixels of three bytes: red, green, blue and nothing of pixels 0 and 1 side by side, as 16-bit
        // numbers; the same of pixels 2 and 3 in the upper lane.
        const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                               6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
        for (std::size_t x = 0; x < columns.size(); ++x) {
            const Column& column = columns[x];
            std::size_t   at = 3 * column.first;
            __m256i       sum_high[R], sum_low[R];
            for (std::size_t r = 0; r < R; ++r) sum_high[r] = sum_low[r] = _mm256_setzero_si256();
            for (std::size_t k = 0; k < column.count; ++k, at += 12) {
                const Group&  group = weights[column.at + k];
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
};
#endif

/// The rows of a picture, each readable `slack_bytes` past its end: the last ones are copied to where that holds.
class PaddedRows {
public:
    explicit PaddedRows(const Image& image)
        : image_(image), n_direct_(image.height() - std::min(image.height(), slack_bytes / image.row_bytes() + 1)) {
        tail_.resize((image.height() - n_direct_) * image.row_bytes() + slack_bytes);
        std::copy(image.row(n_direct_), image.row(image.height()), tail_.begin());
    }
    const std::uint8_t* operator[](std::size_t y) const {
        return y < n_direct_ ? image_.row(y) : tail_.data() + (y - n_direct_) * image_.row_bytes();
    }

private:
    const Image&              image_;
    std::size_t               n_direct_;
    std::vector<std::uint8_t> tail_;
};

/// Writes `part` of `canvas` resized to `to`, streaming: a source row passes the horizontal kernel once and waits in a
/// ring for the output rows that need it.
template <class Kernel>
void resize_part(const Canvas& canvas, const PaddedRows& source, Size to, Window part,
                 View<std::uint8_t, host, dyn, dyn, dyn> out) {
    const Image&              image = canvas.image;
    Taps                      taps;
    std::vector<Column>       columns;
    typename Kernel::Weights  column_weights;
    std::vector<std::uint8_t> ground(3 * part.width + slack_bytes);  // a row that misses the picture
    for (std::size_t x = 0; x < part.width; ++x) {
        taps.set(canvas.size.width, to.width, part.left + x);
        std::uint32_t all = 0;
        for (std::int32_t w : taps.weights) all += static_cast<std::uint32_t>(w);
        const auto outside = static_cast<std::uint32_t>(taps.clip(canvas.left, image.width()));
        Column     column{taps.first, column_weights.size(), 0, {}};
        for (std::size_t c = 0; c < 3; ++c) {
            column.start[c] = half_weight + canvas.fill[c] * outside;
            ground[3 * x + c] = to_pixel(half_weight + canvas.fill[c] * all);
        }
        column.count = Kernel::append(column_weights, taps);
        columns.push_back(column);
    }

    constexpr std::size_t     block = 4;  // rows that the horizontal kernel takes at a time
    const std::size_t         n_ring = std::min(max_taps(canvas.size.height, to.height), image.height()) + block;
    const std::size_t         row_bytes = 3 * part.width + slack_bytes;
    std::vector<std::uint8_t> ring(n_ring * row_bytes);
    const auto                slot = [&](std::size_t y) { return ring.data() + y % n_ring * row_bytes; };

    std::vector<const std::uint8_t*> rows;
    std::size_t                      ready = image.height();  // source rows before this one are in the ring
    for (std::size_t y = 0; y < part.height; ++y) {
        taps.set(canvas.size.height, to.height, part.top + y);
        const std::size_t  lowest = taps.first > canvas.top ? taps.first - canvas.top : 0;
        const std::int32_t outside = taps.clip(canvas.top, image.height());
        if (y == 0) ready = std::min(lowest, image.height());
        for (const std::size_t end = taps.first + taps.weights.size(); ready < end;) {
            std::array<const std::uint8_t*, block> from;
            std::array<std::uint8_t*, block>       into;
            const std::size_t                      n = std::min(block, image.height() - ready);
            for (std::size_t k = 0; k < n; ++k, ++ready) from[k] = source[ready], into[k] = slot(ready);
            Kernel::horizontal({from.data(), n}, {into.data(), n}, columns, column_weights);
        }
        rows.clear();
        for (std::size_t k = 0; k < taps.weights.size(); ++k) rows.push_back(slot(taps.first + k));
        if (outside != 0) rows.push_back(ground.data()), taps.weights.push_back(outside);
        Kernel::vertical(rows, taps.weights, out.data() + y * out.stride(0), 3 * part.width);
    }
}

/// The window in stripes of columns, narrow enough for the horizontal weights to take a few megabytes at most.
template <class Kernel>
void resize_window(const Canvas& canvas, Size to, Window part, View<std::uint8_t, host, dyn, dyn, dyn> out) {
    const PaddedRows  source{canvas.image};
    const std::size_t stripe = std::max<std::size_t>(1, (std::size_t{1} << 19) / max_taps(canvas.size.width, to.width));
    for (std::size_t x = 0; x < part.width; x += stripe) {
        const std::size_t n = std::min(stripe, part.width - x);
        resize_part<Kernel>(canvas, source, to, {part.top, part.left + x, part.height, n},
                            {out.data() + 3 * x, {part.height, n, 3}, out.strides()});
    }
}

}  // namespace image_detail

/// Resizes `canvas` to `to` and writes the window `part` of the result to out [part.height, part.width, 3], whose
/// pixels are dense. Bit-equal to Pillow 10's resize(BICUBIC) of the padded picture, cropped. Throws ShapeError on an
/// empty picture, a window that leaves the result, a picture that leaves its canvas, or an `out` of another shape.
/// Source: Pillow, src/libImaging/Resample.c.
inline void resize_bicubic(const Canvas& canvas, Size to, Window part, View<std::uint8_t, host, dyn, dyn, dyn> out) {
    const Image& image = canvas.image;
    expect_pixels("resize_bicubic", image);
    expect("resize_bicubic", "out", {part.height, part.width, 3}, out);
    const auto within = [](std::size_t first, std::size_t n, std::size_t extent) {
        return first <= extent && n <= extent - first;
    };
    const auto pair = [](std::size_t a, std::size_t b) { return to_string(std::array{a, b}); };
    if (!within(canvas.top, image.height(), canvas.size.height) ||
        !within(canvas.left, image.width(), canvas.size.width))
        throw ShapeError{"resize_bicubic", "canvas", "room for a picture of " + pair(image.height(), image.width()),
                         pair(canvas.size.height, canvas.size.width) + " from " + pair(canvas.top, canvas.left) +
                             " on"};
    if (!within(part.top, part.height, to.height) || !within(part.left, part.width, to.width))
        throw ShapeError{"resize_bicubic", "window", "one within " + pair(to.height, to.width),
                         pair(part.height, part.width) + " from " + pair(part.top, part.left) + " on"};
    if (part.height == 0 || part.width == 0) return;
    if (out.stride(1) != 3)
        throw ShapeError{"resize_bicubic", "out", "dense pixels",
                         "a stride of " + std::to_string(out.stride(1)) + " bytes"};
#if defined(__x86_64__) && defined(__GNUC__)
    using Fast = image_detail::Avx2Resize;
    if (Fast::available() && canvas.size.height / to.height < Fast::max_scale &&
        canvas.size.width / to.width < Fast::max_scale)
        return image_detail::resize_window<Fast>(canvas, to, part, out);
#endif
    image_detail::resize_window<image_detail::PortableResize>(canvas, to, part, out);
}

/// The whole picture at another size.
inline Image resize_bicubic(const Image& image, Size to) {
    Image out = Image::sized(to.height, to.width);
    resize_bicubic({.image = image, .size = {image.height(), image.width()}}, to, {0, 0, to.height, to.width},
                   out.view());
    return out;
}

/// A rectangle in fractions of a picture's sides, 0 at the first pixel's centre and 1 at the last one's.
struct Box {
    float top, left, bottom, right;

    /// The one around the centre that covers this fraction of the area.
    static Box central(float area) {
        const float side = std::sqrt(area), offset = (1.0f - side) / 2.0f;
        return {offset, offset, offset + side, offset + side};
    }
};

/// The pixels within `box`, bilinearly sampled at `to` points, as TensorFlow computes it on values in [0, 1]; then back
/// to 8 bits by cutting off 255.5 times the value. Samples outside the picture are black. Throws ShapeError on an empty
/// picture.
/// Source: TensorFlow, core/kernels/image/crop_and_resize_op.cc; convert_image_dtype for both conversions.
inline Image crop_and_resize(const Image& image, Box box, Size to) {
    expect_pixels("crop_and_resize", image);
    struct Sample {
        std::size_t below, above;
        float       lerp;
        bool        inside;
    };
    const auto samples = [](std::size_t n, std::size_t m, float begin, float end) {
        const auto          last = static_cast<float>(n - 1);
        const float         step = m > 1 ? (end - begin) * last / static_cast<float>(m - 1) : 0.0f;
        std::vector<Sample> list(m);
        for (std::size_t i = 0; i < m; ++i) {
            const float at = m > 1 ? begin * last + static_cast<float>(i) * step : 0.5f * (begin + end) * last;
            if (!(at >= 0 && at <= last)) continue;
            const float floor = std::floor(at);
            list[i] = {static_cast<std::size_t>(floor), static_cast<std::size_t>(std::ceil(at)), at - floor, true};
        }
        return list;
    };
    const auto rows = samples(image.height(), to.height, box.top, box.bottom);
    const auto columns = samples(image.width(), to.width, box.left, box.right);

    Image out = Image::sized(to.height, to.width);
    for (std::size_t y = 0; y < to.height; ++y)
        for (std::size_t x = 0; x < to.width; ++x)
            for (std::size_t c = 0; c < 3; ++c) {
                const auto& [top, bottom, down, row_inside] = rows[y];
                const auto& [left, right, along, column_inside] = columns[x];
                const auto value = [&, c](std::size_t row, std::size_t column) {
                    return static_cast<float>(image.pixels(row, column, c)) * (1.0f / 255.0f);
                };
                float v = 0;
                if (row_inside && column_inside) {
                    const float upper = value(top, left) + (value(top, right) - value(top, left)) * along;
                    const float lower = value(bottom, left) + (value(bottom, right) - value(bottom, left)) * along;
                    v = std::clamp(upper + (lower - upper) * down, 0.0f, 1.0f);
                }
                out.pixels(y, x, c) = static_cast<std::uint8_t>(std::min(v * 255.5f, 255.0f));
            }
    return out;
}

}  // namespace prism
