// Samplers: which examples are read in which order, the same as the reference's for the same seed.
//
//     const auto order = prism::split_modality_order(sizes, {.global_batch = 128, .seed = 7, .epoch = 0});
// Source: pytorch/pytorch, torch/utils/data/distributed.py; TRI-ML/prismatic-vlms, prismatic/util/batching_utils.py.
#pragma once

#include "prism/core/error.hpp"
#include "prism/train/data/reference_random.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace prism {

/// What the sampler knows of an example.
struct ExampleSize {
    bool        picture = false;
    std::size_t words = 0;  // of all its turns, told apart by white space
};

struct SamplerOptions {
    std::size_t   global_batch = 1;  // examples of one optimiser step, over all ranks; a multiple of them
    std::uint64_t seed = 7;
    std::size_t   epoch = 0;
    std::size_t   ranks = 1, rank = 0;
};

namespace detail {

inline void expect_ranks(const SamplerOptions& o) {
    if (o.ranks == 0 || o.rank >= o.ranks) throw ConfigError{"rank", std::to_string(o.rank), "a number below the " + std::to_string(o.ranks) + " ranks"};
    if (o.global_batch == 0 || o.global_batch % o.ranks != 0)
        throw ConfigError{"global_batch", std::to_string(o.global_batch), "a multiple of the " + std::to_string(o.ranks) + " ranks"};
}

/// A chunk of examples dealt to ranks so that the sums of their lengths are about equal: the longest first, each to the
/// rank that has least.
inline std::vector<std::size_t> dealt(std::vector<std::size_t> chunk, std::span<const ExampleSize> sizes, std::size_t ranks) {
    std::ranges::stable_sort(chunk, [&](std::size_t a, std::size_t b) { return sizes[a].words > sizes[b].words; });
    constexpr std::size_t                 full = std::numeric_limits<std::size_t>::max();
    const std::size_t                     share = chunk.size() / ranks;
    std::vector<std::vector<std::size_t>> buckets(ranks);
    std::vector<std::size_t>              sums(ranks, 0);
    for (const std::size_t example : chunk) {
        const auto r = static_cast<std::size_t>(std::ranges::min_element(sums) - sums.begin());
        buckets[r].push_back(example);
        sums[r] = buckets[r].size() == share ? full : sums[r] + sizes[example].words;
    }
    std::vector<std::size_t> flat;
    for (const auto& bucket : buckets) flat.insert(flat.end(), bucket.begin(), bucket.end());
    return flat;
}

}  // namespace detail

/// Of `n` examples in random order, those of one rank: every `ranks`-th. The head is repeated until all ranks have
/// equally many. What the alignment stage reads. Throws ConfigError.
inline std::vector<std::size_t> shuffled_order(std::size_t n, const SamplerOptions& options) {
    detail::expect_ranks(options);
    const auto               all = ReferenceRandom{options.seed + options.epoch}.permutation(n);
    std::vector<std::size_t> mine;
    for (std::size_t i = options.rank; i < (n + options.ranks - 1) / options.ranks * options.ranks; i += options.ranks) mine.push_back(all[i % n]);
    return mine;
}

/// Batches of examples with pictures and batches without, in random order, each with examples of like length side by
/// side; the longest of all comes first, so that memory runs out at once or never. A modality's last batch is filled up
/// with its first examples. What the fine-tuning stages read. Throws ConfigError where no example has a picture.
inline std::vector<std::size_t> split_modality_order(std::span<const ExampleSize> sizes, const SamplerOptions& options) {
    detail::expect_ranks(options);
    std::vector<std::size_t> with, without;
    for (std::size_t i = 0; i < sizes.size(); ++i) (sizes[i].picture ? with : without).push_back(i);
    if (with.empty()) throw ConfigError{"examples", std::to_string(sizes.size()) + " without a picture", "at least one with a picture"};

    ReferenceRandom                       random{options.seed + options.epoch};
    std::vector<std::vector<std::size_t>> chunks;
    for (const auto* modality : {&with, &without}) {
        const auto order = random.permutation(modality->size());
        for (std::size_t i = 0; i < order.size(); i += options.global_batch) {
            std::vector<std::size_t> chunk;
            // Past the end it goes on from the beginning; more than once where a modality has less than half a batch.
            for (std::size_t j = i; j < i + options.global_batch; ++j) chunk.push_back((*modality)[order[j % order.size()]]);
            chunks.push_back(detail::dealt(std::move(chunk), sizes, options.ranks));
        }
    }
    const auto                            order = random.permutation(chunks.size());
    std::vector<std::vector<std::size_t>> shuffled;
    for (const std::size_t i : order) shuffled.push_back(std::move(chunks[i]));

    constexpr std::size_t patches = 24 * 24;  // in the reference, whatever the tower
    const auto            longest = [&](const std::vector<std::size_t>& chunk) {
        std::size_t most = 0;
        for (const std::size_t i : chunk) most = std::max(most, sizes[i].words + (sizes[i].picture ? patches : 0));
        return most;
    };
    std::swap(shuffled.front(), *std::ranges::max_element(shuffled, {}, longest));

    const std::size_t        share = options.global_batch / options.ranks, begin = options.rank * share;
    std::vector<std::size_t> mine;
    for (const auto& chunk : shuffled) mine.insert(mine.end(), chunk.begin() + static_cast<std::ptrdiff_t>(begin), chunk.begin() + static_cast<std::ptrdiff_t>(begin + share));
    return mine;
}

}  // namespace prism
