// Weights from one layout and format to another, on the device: rows of a file, panels of a packed one (quant/panels.hpp)
// and the device's own rows (weights.hpp). All of it in groups of 32 neighbouring values of a row, a thread each.
#pragma once

#include "prism/backend/cuda/block.hpp"
#include "prism/backend/cuda/kernels/pieces.hpp"
#include "prism/backend/cuda/weights.hpp"
#include "prism/quant/format.hpp"
#include "prism/quant/panels.hpp"

namespace prism::cuda {

/// How a matrix lies in memory: row after row as in a file, in panels of the processor, or in rows of WeightRow.
enum class Layout : std::uint8_t { file, panels, device };

/// A matrix [.., cols] in a format known at run time. `stride`: bytes from a row (a panel) to the next. `first`: the row of
/// `data` that is row 0.
struct Stored {
    Dtype            dtype = Dtype::f32;
    Layout           layout = Layout::file;
    const std::byte* data = nullptr;
    std::int64_t     stride = 0, cols = 0, first = 0;
};

/// 32 values of a row in bits of their format, in order: f32 one a word, f16 and bf16 two, q8 four; q4 and q4m as their
/// 16 bytes. `scale`: that of blocks, and the minimum in its upper half.
struct Group {
    std::uint32_t scale;
    std::uint32_t bits[32];
};

/// Words of `bits` that the format uses.
template <Format F>
inline constexpr int group_words = F::values_per_block == 1 ? 8 * static_cast<int>(sizeof(typename F::block)) : F::dtype == Dtype::q8 ? 8 : 4;

/// Columns 32 g ... of a row; plain formats have zeros after the last column.
template <Format F>
PRISM_DEVICE inline void read_group(const Stored& w, std::int64_t row, std::int64_t g, Group& to) {
    row += w.first;
    if constexpr (F::values_per_block > 1) {
        constexpr int scale_bytes = F::dtype == Dtype::q4m ? 4 : 2;
        to.scale = 0;
        if (w.layout == Layout::panels) {
            // PanelLayout is the processor's; its numbers for blocks are these
            constexpr std::int64_t lines = 16 * scale_bytes, values = F::dtype == Dtype::q8 ? 512 : 256;
            const std::int64_t     steps = ceil_div<std::int64_t>(w.cols, 32), c = row % 16;
            const std::byte* const scales = w.data + row / 16 * w.stride + g * lines;
            const std::byte* const q = w.data + row / 16 * w.stride + (steps * lines + 63) / 64 * 64 + g * values;
            to.scale = load_2(scales + 2 * c);
            if constexpr (F::dtype == Dtype::q4m) to.scale |= load_2(scales + 2 * (16 + c)) << 16;
            PRISM_UNROLL
            for (int i = 0; i < group_words<F>; ++i) to.bits[i] = load_4(q + 64 * i + 4 * c) ^ (F::dtype == Dtype::q8 ? 0x80808080U : 0U);
        } else {
            const std::byte* scale = w.data + row * w.stride;
            const std::byte* values;
            if (w.layout == Layout::file) {
                scale += g * static_cast<std::int64_t>(sizeof(typename F::block));
                values = scale + scale_bytes;
            } else {
                values = scale + WeightRow<F>::values_at(w.cols) + g * WeightRow<F>::value_bytes_of_group;
                scale += g * scale_bytes;
            }
            to.scale = load_2(scale);
            if constexpr (F::dtype == Dtype::q4m) to.scale |= load_2(scale + 2) << 16;
            PRISM_UNROLL
            for (int i = 0; i < group_words<F>; ++i) to.bits[i] = load_4(values + 4 * i);
        }
    } else {
        constexpr int      bytes = sizeof(typename F::block), each = 4 / bytes;
        const std::int64_t first = 32 * g;
        const auto         n = static_cast<int>(smaller<std::int64_t>(32, w.cols - first));
        const auto         element = [&](const std::byte* p) { return bytes == 4 ? load_4(p) : load_2(p); };
        if (w.layout == Layout::panels) {
            constexpr std::int64_t columns = F::dtype == Dtype::bf16 ? 2 : 1;  // of a step
            const std::byte* const panel = w.data + row / 16 * w.stride + row % 16 * columns * bytes;
            PRISM_UNROLL
            for (int i = 0; i < group_words<F>; ++i) {
                to.bits[i] = 0;
                PRISM_UNROLL
                for (int e = 0; e < each; ++e) {
                    const std::int64_t j = first + i * each + e;
                    if (i * each + e < n) to.bits[i] |= element(panel + (j / columns * columns * 16 + j % columns) * bytes) << 16 * e;
                }
            }
            return;
        }
        const std::byte* const p = w.data + row * w.stride + first * bytes;
        if (n == 32 && aligned_to_16(p)) {
            PRISM_UNROLL
            for (int i = 0; i < group_words<F> / 4; ++i) {
                const Piece four = load_16(p + 16 * i);
                PRISM_UNROLL
                for (int e = 0; e < 4; ++e) to.bits[4 * i + e] = four.at[e];
            }
        } else {
            PRISM_UNROLL
            for (int i = 0; i < group_words<F>; ++i) {
                to.bits[i] = 0;
                PRISM_UNROLL
                for (int e = 0; e < each; ++e)
                    if (i * each + e < n) to.bits[i] |= element(p + (i * each + e) * bytes) << 16 * e;
            }
        }
    }
}

/// The values of a group, rounded to f32 once, as F::decode rounds them. (An fma would round less: other bits.)
template <Format F>
PRISM_DEVICE inline void decode_group(const Group& from, float (&v)[32]) {
    PRISM_UNROLL
    for (int i = 0; i < 32; ++i) {
        if constexpr (F::dtype == Dtype::f32) v[i] = float_of(from.bits[i]);
        if constexpr (F::dtype == Dtype::bf16) v[i] = from_bf16(from.bits[i / 2] >> i % 2 * 16 & 0xffffU);
        if constexpr (F::dtype == Dtype::f16) v[i] = from_f16(from.bits[i / 2] >> i % 2 * 16 & 0xffffU);
        if constexpr (F::dtype == Dtype::q8) v[i] = from_f16(from.scale) * static_cast<float>(static_cast<std::int8_t>(from.bits[i / 4] >> i % 4 * 8 & 0xffU));
        if constexpr (F::dtype == Dtype::q4 || F::dtype == Dtype::q4m) {
            const auto q = static_cast<int>(from.bits[i % 16 / 4] >> (i % 4 * 8 + i / 16 * 4) & 15U);
            if constexpr (F::dtype == Dtype::q4) v[i] = from_f16(from.scale) * static_cast<float>(q - 8);
            else v[i] = rounded_sum(rounded_product(from_f16(from.scale & 0xffffU), static_cast<float>(q)), from_f16(from.scale >> 16));
        }
    }
}

/// Bytes of four bits each, [value j] | [value j + 16] << 4, from levels 0 ... 15.
template <class Level>
PRISM_DEVICE inline void pack_levels(Level&& level, std::uint32_t* words) {
    PRISM_UNROLL
    for (int i = 0; i < 4; ++i) {
        words[i] = 0;
        PRISM_UNROLL
        for (int e = 0; e < 4; ++e) words[i] |= (level(4 * i + e) | level(4 * i + e + 16) << 4) << 8 * e;
    }
}

/// The group in format F, with the bits of F::encode.
template <Format F>
PRISM_DEVICE inline void encode_group(const float (&v)[32], Group& to) {
    if constexpr (F::dtype == Dtype::f32) {
        PRISM_UNROLL
        for (int i = 0; i < 32; ++i) to.bits[i] = bits_of(v[i]);
    } else if constexpr (F::values_per_block == 1) {
        PRISM_UNROLL
        for (int i = 0; i < 16; ++i) to.bits[i] = F::dtype == Dtype::bf16 ? pack_bf16(v[2 * i], v[2 * i + 1]) : pack_f16(v[2 * i], v[2 * i + 1]);
    } else if constexpr (F::dtype == Dtype::q8) {
        float most = 0;
        PRISM_UNROLL
        for (int i = 0; i < 32; ++i) most = larger(most, ::fabsf(v[i]));
        to.scale = f16_bits(most / 127);
        const float scale = from_f16(to.scale), inverse = scale > 0 ? 1 / scale : 0;
        PRISM_UNROLL
        for (int i = 0; i < 8; ++i) {
            to.bits[i] = 0;
            PRISM_UNROLL
            for (int e = 0; e < 4; ++e) {
                const float q = smaller(127.0f, larger(-127.0f, ::rintf(v[4 * i + e] * inverse)));
                to.bits[i] |= (static_cast<std::uint32_t>(static_cast<std::int32_t>(q)) & 0xffU) << 8 * e;
            }
        }
    } else if constexpr (F::dtype == Dtype::q4) {
        float most = v[0];
        PRISM_UNROLL
        for (int i = 1; i < 32; ++i) most = ::fabsf(most) < ::fabsf(v[i]) ? v[i] : most;
        double least = INFINITY;
        to.scale = to.bits[0] = to.bits[1] = to.bits[2] = to.bits[3] = 0;
        for (int s = 0; s < 5; ++s) {
            const float         steps = s == 0 ? -8.0f : s == 1 ? -7.5f : s == 2 ? 7.0f : s == 3 ? -7.0f : 8.0f;
            const std::uint32_t tried = f16_bits(most / steps);
            const float         scale = from_f16(tried), inverse = scale != 0 ? 1 / scale : 0;
            const auto          level = [&](int i) { return smaller(15.0f, larger(0.0f, ::rintf(v[i] * inverse) + 8)); };
            double              error = 0;
            std::uint32_t       words[4] = {0, 0, 0, 0};
            PRISM_UNROLL
            for (int j = 0; j < 16; ++j) {
                const float low = level(j), high = level(j + 16);
                words[j / 4] |= (static_cast<std::uint32_t>(low) | static_cast<std::uint32_t>(high) << 4) << j % 4 * 8;
                // the product has few enough bits to be exact, so that only the squares need care
                const double dl = static_cast<double>(v[j]) - static_cast<double>(scale) * (static_cast<double>(low) - 8);
                const double dh = static_cast<double>(v[j + 16]) - static_cast<double>(scale) * (static_cast<double>(high) - 8);
                error = rounded_sum(rounded_sum(error, rounded_product(dl, dl)), rounded_product(dh, dh));
            }
            if (error < least) {
                least = error, to.scale = tried;
                PRISM_UNROLL
                for (int i = 0; i < 4; ++i) to.bits[i] = words[i];
            }
        }
    } else {
        float low = v[0], high = v[0];
        PRISM_UNROLL
        for (int i = 1; i < 32; ++i) low = v[i] < low ? v[i] : low, high = v[i] < high ? high : v[i];  // the last of the largest: -0 and 0
        const std::uint32_t minimum_bits = f16_bits(low);
        const float         minimum = from_f16(minimum_bits);
        const std::uint32_t scale_bits = f16_bits((high - minimum) / 15);
        const float         scale = from_f16(scale_bits), inverse = scale > 0 ? 1 / scale : 0;
        to.scale = scale_bits | minimum_bits << 16;
        pack_levels([&](int i) { return static_cast<std::uint32_t>(smaller(15.0f, larger(0.0f, ::rintf((v[i] - minimum) * inverse)))); }, to.bits);
    }
}

/// Group g of a row of WeightRow<F>, and the padding after the last one.
template <Format F>
PRISM_DEVICE inline void write_group(std::byte* row, std::int64_t cols, std::int64_t g, const Group& from) {
    using R = WeightRow<F>;
    constexpr int bytes = group_words<F> * 4;
    std::byte*    to = row + R::values_at(cols) + g * bytes;
    PRISM_UNROLL
    for (int i = 0; i < bytes / 16; ++i)
        if (R::values_at(cols) + g * bytes + 16 * i < R::bytes(cols)) store_16(to + 16 * i, {{from.bits[4 * i], from.bits[4 * i + 1], from.bits[4 * i + 2], from.bits[4 * i + 3]}});
    if constexpr (R::blocks) {
        const std::int64_t scale_bytes = R::scale_bytes_of_group;
        std::byte*         scale = row + g * scale_bytes;
        const std::int64_t last = g + 1 == R::groups(cols) ? R::values_at(cols) - g * scale_bytes : scale_bytes;
        for (std::int64_t i = 0; i < last; i += 2) {
            const auto half = static_cast<std::uint16_t>(i == 0 ? from.scale & 0xffffU : i < scale_bytes ? from.scale >> 16 : 0);
            memcpy(__builtin_assume_aligned(scale + i, 2), &half, sizeof half);
        }
    }
}

/// Rows of `from` in format To, at `to`, in rows of WeightRow<To>. The same format is copied bit for bit.
template <Format To>
struct ConvertRows {
    static constexpr int max_threads = 128;
    Stored               from;
    std::int64_t         rows;
    std::byte*           to;

    std::int64_t n_blocks() const { return ceil_div<std::int64_t>(rows * WeightRow<To>::groups(from.cols), max_threads); }

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        const std::int64_t groups = WeightRow<To>::groups(from.cols);
        b.each_alone([&](int t) {
            const std::int64_t i = std::int64_t{b.x} * max_threads + t, row = i / groups, g = i % groups;
            if (row >= rows) return;
            Group group;
            if (from.dtype == To::dtype) {
                read_group<To>(from, row, g, group);
                if (To::values_per_block == 1) group.scale = 0;
            } else {
                float v[32];
                switch (from.dtype) {
                    case Dtype::f32: values<f32>(row, g, v); break;
                    case Dtype::bf16: values<bf16>(row, g, v); break;
                    case Dtype::f16: values<f16>(row, g, v); break;
                    case Dtype::q8: values<q8>(row, g, v); break;
                    case Dtype::q4: values<q4>(row, g, v); break;
                    default: values<q4m>(row, g, v); break;
                }
                encode_group<To>(v, group);
            }
            write_group<To>(to + row * WeightRow<To>::bytes(from.cols), from.cols, g, group);
        });
    }

private:
    template <Format From>
    PRISM_DEVICE void values(std::int64_t row, std::int64_t g, float (&v)[32]) const {
        if constexpr (From::dtype != To::dtype) {
            Group group;
            read_group<From>(from, row, g, group);
            decode_group<From>(group, v);
            PRISM_UNROLL
            for (int i = 0; i < 32; ++i)
                if (32 * g + i >= from.cols) v[i] = 0;  // what is left of the last block
        }
    }
};

/// n single values of f32, f16 or bf16 as f32: small parameters.
struct ConvertValues {
    static constexpr int max_threads = 256;
    Dtype                dtype;
    const std::byte*     from;
    std::int64_t         n;
    float*               to;

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        b.each_alone([&](int t) {
            const std::int64_t i = std::int64_t{b.x} * max_threads + t;
            if (i >= n) return;
            to[i] = dtype == Dtype::f32 ? float_of(load_4(from + 4 * i)) : dtype == Dtype::bf16 ? from_bf16(load_2(from + 2 * i)) : from_f16(load_2(from + 2 * i));
        });
    }
};

/// y[i] = row ids[i] of a matrix of `rows` rows, as f32. Ids lie in device memory; one that names no row gives NaN. A block a row.
template <Format F>
struct Gather {
    static constexpr int max_threads = 128;
    Stored               w;
    std::int64_t         rows;
    const std::int32_t*  ids;
    Rows<float>          y;

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        const std::int64_t id = ids[b.x];
        float* const       to = y.row(b.x);
        b.each_alone([&](int t) {
            for (std::int64_t g = t / 4; 32 * g < w.cols; g += max_threads / 4) {  // four threads share a group
                Group group;
                float v[32];
                if (id >= 0 && id < rows) {
                    read_group<F>(w, id, g, group);
                    decode_group<F>(group, v);
                }
                PRISM_UNROLL
                for (int i = 0; i < 32; ++i)
                    if (i % 4 == t % 4 && 32 * g + i < w.cols) to[32 * g + i] = id >= 0 && id < rows ? v[i] : NAN;
            }
        });
    }
};

}  // namespace prism::cuda
