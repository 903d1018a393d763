// store_as: the weights of a loaded model in another format: less memory, or less work per product.
//
//     auto vlm = prism::from_pretrained(cpu, "prism-dinosiglip+7b");   // f32 in its file
//     prism::store_model_as(cpu, vlm.model, prism::Dtype::q4);          // decoder q4, the rest q8
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/model/load.hpp"
#include "prism/quant/panels.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

namespace detail {

/// One matrix from one format to another, row by row on all threads.
template <class To, class B, class From>
void convert_rows(B& be, const Packed<From, host>& old, std::span<typename To::block> to) {
    const std::size_t stride = blocks_per_row<To>(old.cols), n_old = blocks_per_row<From>(old.cols);
    const std::size_t piece = std::max<std::size_t>(1, (std::size_t{1} << 16) / std::max<std::size_t>(1, old.cols));
    be.parallel_for(old.rows, piece, [&](std::size_t begin, std::size_t end) {
        std::vector<float>                values(std::max(stride * To::values_per_block, n_old * From::values_per_block));
        std::vector<typename From::block> blocks(n_old);
        for (std::size_t i = begin; i < end; ++i) {
            copy_row(old, i, blocks.data());
            From::decode(std::span<const typename From::block>(blocks), std::span(values).first(n_old * From::values_per_block));
            std::fill(values.begin() + static_cast<std::ptrdiff_t>(old.cols), values.end(), 0.0f);  // what is left of the last block
            To::encode(std::span(values).first(stride * To::values_per_block), to.subspan(i * stride, stride));
        }
    });
}

}  // namespace detail

/// Which matrices of a module to convert, by their names.
using ConvertedMatrices = std::function<bool(std::string_view name)>;

/// Converts the matrices of a module to f32, bf16, f16, q8, q4 or q4m; the small parameters stay f32. One matrix at a
/// time, on all threads: of the old weights only those are in memory twice that are at work. on_progress(values done,
/// values in all) is called after each. Throws ConfigError for another type.
template <Backend B, class M>
    requires std::same_as<typename B::space, host>
void store_as(B& be, M& module, Dtype dtype, const std::function<void(std::size_t done, std::size_t total)>& on_progress = {},
              const ConvertedMatrices& converted = {}) {
    std::size_t total = 0, done = 0;
    visit(module, [&](const std::string&, const auto& param) { total += param.size(); });
    with_format(dtype, all_formats{}, [&]<class To>(To) {
        visit(module, [&](const std::string& path, auto& param) {
            if constexpr (requires { param.visit([](const auto&) {}); })
                if (param.size() > 0 && param.dtype() != dtype && (!converted || converted(path))) {
                    const std::size_t rows = param.rows(), stride = blocks_per_row<To>(param.cols());
                    auto buffer = std::make_shared<Buffer<host>>(be.allocate(rows * stride * sizeof(typename To::block)));
                    param.visit([&]<class From>(const Packed<From, host>& old) {
                        detail::convert_rows<To>(be, old, std::span(buffer->template as<typename To::block>(), rows * stride));
                    });
                    const auto* data = static_cast<const std::byte*>(buffer->data());
                    param.bind(be, {path, dtype, param.shape(), {}, data, std::move(buffer), "(memory)"});
                }
            done += param.size();
            if (on_progress) on_progress(done, total);
        });
    });
}

/// How a whole model is stored when its decoder is asked for in a format. Errors of four-bit weights hurt most where
/// they are few and everything passes through: the head, the projector and the towers stay finer, see the table in
/// quant/README.md. Plain formats are for all parts.
inline Dtype format_beside(Dtype decoder) {
    return decoder == Dtype::q4 || decoder == Dtype::q4m ? Dtype::q8 : decoder;
}

/// For LoadOptions: the matrices of a model of the Prismatic family are kept as store_model_as() would store them, and
/// never are in memory in another format.
template <class = void>
KeptFormat keep_weights_as(Dtype dtype) {
    return [dtype](std::string_view name, Dtype stored) {
        const bool blocks = dtype == Dtype::q8 || dtype == Dtype::q4 || dtype == Dtype::q4m;
        if (!blocks) return dtype;
        if (name.ends_with("embed_tokens.weight")) return stored;
        return name.find("model.layers.") != name.npos ? dtype : format_beside(dtype);
    };
}

/// A model of the Prismatic family with its decoder's blocks in `dtype`, and the rest as format_beside() says; its token
/// table keeps its own, because only single rows of it are read.
template <Backend B, class M>
    requires std::same_as<typename B::space, host>
void store_model_as(B& be, M& model, Dtype dtype, const std::function<void(std::size_t done, std::size_t total)>& on_progress = {}) {
    const auto is_table = [](std::string_view name) { return name.ends_with("embed_tokens.weight"); };
    const auto in_blocks = [](std::string_view name) { return name.find("model.layers.") != name.npos; };
    const bool blocks = dtype == Dtype::q8 || dtype == Dtype::q4 || dtype == Dtype::q4m;
    if (!blocks) return store_as(be, model, dtype, on_progress);
    store_as(be, model, format_beside(dtype), {}, [&](std::string_view name) { return !is_table(name) && !in_blocks(name); });
    store_as(be, model, dtype, on_progress, in_blocks);
}

}  // namespace prism
