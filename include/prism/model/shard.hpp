// Shards: what each of several devices holds of a decoder that they run together.
//
//     prism::LanguageModel<B> llm{prism::shard_config(config, prism::rank_of(be))};
//     prism::load_language_model(be, llm, file);     // takes this rank's share; from_pretrained does both
//
// Heads and hidden units are shared out: q, k, v, gate and up (fc1) by rows; o and down (dense, fc2) by columns, whose
// products are then summed over all ranks. The token table, the head, norms, towers and the projector are whole on each.
#pragma once

#include "prism/backend/parallel.hpp"
#include "prism/core/tensor.hpp"
#include "prism/lm/language_model.hpp"
#include "prism/quant/format.hpp"
#include "prism/quant/panels.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace prism {

/// A decoder's configuration with one rank's heads and hidden units. Throws ConfigError where they cannot be shared out.
inline LanguageModelConfig shard_config(LanguageModelConfig config, RankOf rank) {
    const auto share = [&](const char* key, std::size_t& of) {
        if (of % rank.n != 0) throw ConfigError{key, std::to_string(of), "a multiple of " + std::to_string(rank.n) + ", the devices that hold the model together"};
        of /= rank.n;
    };
    std::visit([&](auto& c) { share("n_heads", c.n_heads), share("n_kv_heads", c.n_kv_heads), share("d_ff", c.d_ff); }, config);
    return config;
}

/// How a parameter is shared out.
enum class Cut : std::uint8_t { none, rows, columns };

/// The same from its name in a module: only the layers of decoders are cut.
constexpr Cut cut_of(std::string_view path) {
    if (path.find("model.layers.") == path.npos) return Cut::none;
    const auto dot = path.rfind('.');
    const auto kind = path.substr(dot + 1), module = path.substr(0, dot);
    for (const std::string_view name : {".q_proj", ".k_proj", ".v_proj", ".gate_proj", ".up_proj", ".fc1"})
        if (module.ends_with(name)) return Cut::rows;
    for (const std::string_view name : {".o_proj", ".dense", ".down_proj", ".fc2"})
        if (module.ends_with(name) && kind == "weight") return Cut::columns;
    return Cut::none;
}

/// The shape of the whole of which a rank has `part`.
template <class = void>
std::vector<std::size_t> whole_shape(std::vector<std::size_t> part, Cut cut, RankOf rank) {
    if (cut == Cut::rows && !part.empty()) part[0] *= rank.n;
    if (cut == Cut::columns && part.size() == 2) part[1] *= rank.n;
    return part;
}

/// A rank's share of a stored vector or matrix, whose extents it divides. Numbers stay where they lie; rows of blocks that
/// are cut, and panels, are copied. Throws LoadError where a cut would go through blocks of 32.
template <class = void>
TensorInfo shard_of(const TensorInfo& t, Cut cut, RankOf rank) {
    if (cut == Cut::none || rank.n == 1) return t;
    const std::size_t          d = cut == Cut::rows ? 0 : 1, n_rows = t.shape.at(0), n_cols = t.shape.size() < 2 ? 1 : t.elements() / n_rows;
    TensorInfo                 part = t;
    part.shape.at(d) /= rank.n;
    const std::size_t          first = rank.number * part.shape[d];
    if (!t.panels && item_bytes(t.dtype) > 0) {
        if (part.stride.empty() && d == 1) part.stride = {n_cols, 1};
        const std::size_t step = !part.stride.empty() ? part.stride[d] : n_cols;
        part.data += first * step * item_bytes(t.dtype);
        return part;
    }
    const std::size_t row = d == 0 ? first : 0, column = d == 1 ? first : 0, rows = part.shape[0], cols = part.elements() / rows;
    with_format(t.dtype, all_formats{}, [&]<Format F>(F) {
        using Block = typename F::block;
        constexpr std::size_t per_block = F::values_per_block;
        if (cols != n_cols && cols % per_block != 0)
            throw LoadError{t.file, t.name, "columns in blocks of " + std::to_string(per_block) + " for each of " + std::to_string(rank.n) + " devices", to_string(t.shape)};
        const std::size_t  whole = blocks_per_row<F>(n_cols), stride = blocks_per_row<F>(cols);
        auto               bytes = std::make_shared<std::vector<std::byte>>(rows * stride * sizeof(Block));
        std::vector<Block> blocks(whole);
        for (std::size_t i = 0; i < rows; ++i) {
            if (t.panels) extract_row<F>(t.data, row + i, n_cols, blocks.data());
            else std::memcpy(blocks.data(), t.data + (row + i) * whole * sizeof(Block), whole * sizeof(Block));
            std::memcpy(bytes->data() + i * stride * sizeof(Block), blocks.data() + column / per_block, stride * sizeof(Block));
        }
        part.data = bytes->data();
        part.owner = std::move(bytes);
    });
    part.panels = part.mapped = false;
    return part;
}

}  // namespace prism
