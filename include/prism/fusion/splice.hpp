// Splicing: where the picture goes in a prompt, and towers side by side.
//
//     const auto sequence = splice(ids, 1, n_patches);              // Prismatic: after the start token
//     embed_sequence<B>(be, llm, sequence, soft_tokens, 0, x);      // [sequence.size(), d_model]
#pragma once

#include "prism/core/workspace.hpp"
#include "prism/nn/keeper.hpp"
#include "prism/ops/patchify.hpp"
#include "prism/ops/rows.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace prism {

/// Stands in a sequence of token ids where a row of the picture is.
inline constexpr std::int32_t soft_token = -1;

/// The ids with `n_soft` soft tokens before index `at`. Throws ShapeError when there is no such place.
template <class = void>
std::vector<std::int32_t> splice(std::span<const std::int32_t> ids, std::size_t at, std::size_t n_soft) {
    if (at > ids.size()) throw ShapeError{"splice", "ids", "at least " + std::to_string(at), std::to_string(ids.size())};
    std::vector<std::int32_t> sequence(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(at));
    sequence.insert(sequence.end(), n_soft, soft_token);
    sequence.insert(sequence.end(), ids.begin() + static_cast<std::ptrdiff_t>(at), ids.end());
    return sequence;
}

/// x [n, d_model] = the embeddings of a stretch of a sequence: rows of the language model's table for ids, rows of
/// `soft` [n_soft, d_model], from row `first_soft` on, for soft tokens.
template <Backend B, class Llm>
void embed_sequence(B& be, const Llm& llm, std::span<const std::int32_t> sequence, In<B> soft, std::size_t first_soft, Mat<B> x) {
    expect("embed_sequence", "x", {sequence.size(), any}, x);
    for (std::size_t i = 0; i < sequence.size();) {
        const bool  picture = sequence[i] == soft_token;
        std::size_t n = 1;
        while (i + n < sequence.size() && (sequence[i + n] == soft_token) == picture) ++n;
        if (picture) {
            ops::copy<B>(be, soft.rows(first_soft, n), x.rows(i, n));
            first_soft += n;
        } else {
            llm.embed(be, sequence.subspan(i, n), x.rows(i, n));
        }
        i += n;
    }
}

/// features [n n_patches, sum of widths] = the towers' features side by side. Each tower writes its own columns: the
/// concatenation costs nothing. pixels[i] is what towers[i] sees. Throws ShapeError when the grids differ.
template <Backend B, class Towers, Keeper K = Forget>
void fuse_towers(B& be, Workspace<B>& ws, const Towers& towers, std::span<const PixelView<B>> pixels, Mat<B> features, K keep = {}) {
    if (pixels.size() != towers.size())
        throw ShapeError{"fuse_towers", "pixels", std::to_string(towers.size()) + " towers' pictures", std::to_string(pixels.size())};
    std::size_t column = 0;
    const auto  look = [&](Workspace<B>& scratch, std::size_t i) {
        const auto own = features.cols(column, towers[i].d_model());
        column += towers[i].d_model();
        towers[i].forward(be, scratch, pixels[i], own, keep.at("towers", i));
    };
    std::size_t done = 0;
    if constexpr (!K::keeps && requires { be.side_by_side(ws, [](Workspace<B>&) {}, [](Workspace<B>&) {}); }) {
        for (; done + 2 <= towers.size(); done += 2)  // of the two neither fills a device by itself
            be.side_by_side(ws, [&](Workspace<B>& one) { look(one, done); }, [&](Workspace<B>& other) { look(other, done + 1); });
    }
    for (; done < towers.size(); ++done) look(ws, done);
    expect("fuse_towers", "features", {any, column}, features);
}

}  // namespace prism
