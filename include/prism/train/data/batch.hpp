// Batch: examples side by side without padding, and the padded form of the reference.
//
//     prism::Batch batch;
//     batch.add(row, example, true);          // ids and labels behind those that are there; this one has a picture
//     const prism::PaddedBatch p = prism::padded(batch, pad_id, 2048);
// Source of the padded form: TRI-ML/prismatic-vlms, prismatic/util/data_utils.py.
#pragma once

#include "prism/train/data/examples.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace prism {

/// Rows of unequal length, one behind another, and the pixels of those that have a picture.
struct Batch {
    std::vector<std::int32_t>       ids, labels;   // [n_tokens] of all rows
    std::vector<std::size_t>        begin{0};      // row r is ids[begin[r]] to ids[begin[r + 1]]
    std::vector<std::size_t>        examples;      // [n_rows] their indices in the data set
    std::vector<std::size_t>        picture_rows;  // rows that have a picture, in order
    std::vector<std::vector<float>> pixels;        // of each tower: [picture_rows.size(), 3, S, S]

    std::size_t                   n_rows() const { return examples.size(); }
    std::size_t                   n_pictures() const { return picture_rows.size(); }
    std::span<const std::int32_t> row_ids(std::size_t r) const { return std::span(ids).subspan(begin[r], begin[r + 1] - begin[r]); }
    std::span<const std::int32_t> row_labels(std::size_t r) const { return std::span(labels).subspan(begin[r], begin[r + 1] - begin[r]); }
    /// Positions that the loss looks at. Nothing predicts the first of a row.
    std::size_t n_supervised() const {
        std::size_t n = 0;
        for (std::size_t r = 0; r < n_rows(); ++r)
            for (std::size_t i = begin[r] + 1; i < begin[r + 1]; ++i) n += labels[i] != ignored_label;
        return n;
    }

    /// One more row. Its pixels are the caller's business.
    void add(const TokenRow& row, std::size_t example, bool has_picture) {
        if (has_picture) picture_rows.push_back(n_rows());
        ids.insert(ids.end(), row.ids.begin(), row.ids.end());
        labels.insert(labels.end(), row.labels.begin(), row.labels.end());
        begin.push_back(ids.size());
        examples.push_back(example);
    }
    /// Without rows, with the memory kept; pixels stay as they are.
    void clear_rows() { ids.clear(), labels.clear(), begin.assign(1, 0), examples.clear(), picture_rows.clear(); }
};

/// [n_rows, n_tokens] each, row-major, as wide as the longest row.
struct PaddedBatch {
    std::size_t               n_rows = 0, n_tokens = 0;
    std::vector<std::int32_t> ids, labels;
    std::vector<std::uint8_t> attention_mask;  // 1 where the id is not the padding's
};

/// Rows filled up on the right, cut to `max_tokens`.
inline PaddedBatch padded(const Batch& batch, std::int32_t pad_id, std::size_t max_tokens) {
    PaddedBatch p{.n_rows = batch.n_rows(), .ids = {}, .labels = {}, .attention_mask = {}};
    for (std::size_t r = 0; r < p.n_rows; ++r) p.n_tokens = std::max(p.n_tokens, batch.row_ids(r).size());
    p.n_tokens = std::min(p.n_tokens, max_tokens);
    const auto fill = [&](std::vector<std::int32_t>& to, std::span<const std::int32_t> row, std::int32_t filler) {
        const auto n = static_cast<std::ptrdiff_t>(std::min(row.size(), p.n_tokens));
        to.insert(to.end(), row.begin(), row.begin() + n);
        to.resize(to.size() + p.n_tokens - static_cast<std::size_t>(n), filler);
    };
    for (std::size_t r = 0; r < p.n_rows; ++r) fill(p.ids, batch.row_ids(r), pad_id), fill(p.labels, batch.row_labels(r), ignored_label);
    for (const std::int32_t id : p.ids) p.attention_mask.push_back(id != pad_id);
    return p;
}

}  // namespace prism
