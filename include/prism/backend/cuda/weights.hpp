// How a matrix of weights lies on a device: row after row, each padded with zeros to a multiple of 16 bytes, so that
// kernels and cuBLASLt read whole registers. Blocks are taken apart: first the scales of a row, then its values.
//
//     plain formats    [cols] values, padded
//     q8               [groups] f16 scales, padded;  [groups][32] int8
//     q4               [groups] f16 scales, padded;  [groups][16] bytes: byte j holds values j (low half) and j + 16 (high half)
//     q4m              [groups] pairs of f16, scale and minimum, padded;  [groups][16] bytes as in q4
//
// A Packed or AnyPacked of a device has this layout where `panels` is set: it points to row 0, and `first` is the row that
// is row 0 of the product. Otherwise rows are those of the file, as lookups read them.
#pragma once

#include "prism/backend/cuda/annotate.hpp"
#include "prism/quant/format.hpp"

namespace prism::cuda {

template <Format F>
struct WeightRow {
    static constexpr bool         blocks = F::values_per_block > 1;
    static constexpr std::int64_t group = 32;  // values that share a scale
    static constexpr std::int64_t scale_bytes_of_group = !blocks ? 0 : F::dtype == Dtype::q4m ? 4 : 2;
    static constexpr std::int64_t value_bytes_of_group = F::dtype == Dtype::q8 ? 32 : 16;

    PRISM_HOST_DEVICE static constexpr std::int64_t padded(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }
    PRISM_HOST_DEVICE static constexpr std::int64_t groups(std::int64_t cols) { return (cols + group - 1) / group; }
    /// Bytes of a row before its values.
    PRISM_HOST_DEVICE static constexpr std::int64_t values_at(std::int64_t cols) { return blocks ? padded(groups(cols) * scale_bytes_of_group) : 0; }
    /// Bytes from a row to the next.
    PRISM_HOST_DEVICE static constexpr std::int64_t bytes(std::int64_t cols) {
        if constexpr (blocks) return values_at(cols) + groups(cols) * value_bytes_of_group;
        else return padded(cols * static_cast<std::int64_t>(sizeof(typename F::block)));
    }
};

}  // namespace prism::cuda
