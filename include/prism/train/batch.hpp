// Batches: what a training pass reads, and where its rows lie. Sequences are ragged: nothing is padded, and positions behind the
// last one that predicts anything are not computed, because no loss depends on them.
//
//     const TrainingRow     rows[]{{ids0, labels0, 0}, {ids1, labels1}};      // the second one is text alone
//     const TrainingBatch<B> batch{.rows = rows, .pixels = pixels.views()};
#pragma once

#include "prism/backend/training.hpp"
#include "prism/fusion/splice.hpp"
#include "prism/nn/attention.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace prism {

/// One example. labels[i] says what ids[i] should have been; ignored_label (-100) is not supervised, and neither is the first.
/// Padding may follow with ignored labels.
struct TrainingRow {
    std::span<const std::int32_t> ids, labels;
    std::optional<std::size_t>    picture{};  // index among the batch's pictures; its rows follow the first id
};

/// What one micro-step reads. Pictures come as pixels, or as features where the towers are frozen: those of a picture never
/// change, and may be made once.
template <Backend B>
struct TrainingBatch {
    std::span<const TrainingRow>  rows;
    std::span<const PixelView<B>> pixels{};    // one view per tower: [n_pictures, 3, S, S]
    In<B>                         features{};  // [n_pictures n_patches, d_vision], in place of pixels
};

/// Where the rows of a batch lie in one matrix of sequences. Used again from batch to batch, so that nothing is allocated.
template <Backend B>
struct SequencePlan {
    std::vector<std::int32_t> sequence;       // ids and soft tokens of all rows, one after another
    std::vector<Segment<B>>   segments;       // one for each row that predicts anything
    std::vector<std::size_t>  first_soft;     // of each segment: its picture's first row among the soft tokens
    std::vector<std::int32_t> rows, labels;   // the supervised positions, and what they predict

    std::size_t size() const { return sequence.size(); }

    /// Throws ShapeError for a row whose ids and labels differ in number or that names no picture of the batch, and when
    /// nothing is supervised.
    void lay_out(std::span<const TrainingRow> batch, std::size_t n_pictures, std::size_t n_patches) {
        sequence.clear(), segments.clear(), first_soft.clear(), rows.clear(), labels.clear();
        for (std::size_t r = 0; r < batch.size(); ++r) {
            const TrainingRow& row = batch[r];
            const auto         refuse = [&](const char* what, const std::string& expected, std::size_t found) {
                throw ShapeError{"training", "row " + std::to_string(r) + ", " + what, expected, std::to_string(found)};
            };
            if (row.labels.size() != row.ids.size()) refuse("labels", std::to_string(row.ids.size()), row.labels.size());
            if (row.picture && *row.picture >= n_pictures) refuse("picture", "less than " + std::to_string(n_pictures), *row.picture);
            const std::size_t first = sequence.size(), n_soft = row.picture ? n_patches : 0;
            std::size_t       last = 0;  // one past the last position that predicts
            for (std::size_t i = 1; i < row.ids.size(); ++i) {
                if (row.labels[i] == ignored_label) continue;
                last = i;
                rows.push_back(static_cast<std::int32_t>(first + n_soft + i - 1)), labels.push_back(row.labels[i]);
            }
            if (last == 0) continue;
            sequence.push_back(row.ids[0]);
            sequence.insert(sequence.end(), n_soft, soft_token);
            sequence.insert(sequence.end(), row.ids.begin() + 1, row.ids.begin() + static_cast<std::ptrdiff_t>(last));
            segments.push_back({nullptr, n_soft + last});
            first_soft.push_back(row.picture.value_or(0) * n_patches);
        }
        if (rows.empty()) throw ShapeError{"training", "labels", "at least one that is supervised", "0"};
    }
};

}  // namespace prism
