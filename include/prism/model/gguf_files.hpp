// Models in GGUF, the files of llama.cpp: a decoder, and the tower and projector of LLaVA-1.5 in a file beside it ("mmproj").
// All end up under the names of Hugging Face's files, in our own formats where those are the file's (Q8_0, Q4_0, Q4_1).
//
// Sources: the Python package gguf, constants.py and tensor_mapping.py; llama.cpp, convert_hf_to_gguf.py and
// tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py.
#pragma once

#include "prism/image/transform.hpp"
#include "prism/io/gguf.hpp"
#include "prism/model/language_files.hpp"
#include "prism/model/tower_files.hpp"
#include "prism/quant/format.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace prism {

/// The files of a model in GGUF.
struct GgufModel {
    std::filesystem::path language;
    std::filesystem::path vision{};  // empty for a decoder alone
};

/// A decoder's file, with `vision` beside it; or a folder of GGUF files with one decoder and, perhaps, one file named
/// "...mmproj...". Nothing where there are no such files. Throws LoadError for a folder with several of either.
template <class = void>
std::optional<GgufModel> gguf_model(const std::filesystem::path& path, const std::filesystem::path& vision = {}) {
    std::error_code failed;
    if (is_gguf(path)) return GgufModel{path, vision};
    if (!std::filesystem::is_directory(path, failed) || std::filesystem::exists(path / "config.json", failed)) return std::nullopt;
    std::vector<std::filesystem::path> decoders, towers;
    for (const auto& entry : std::filesystem::directory_iterator(path, failed))
        if (entry.path().extension() == ".gguf") (entry.path().filename().string().find("mmproj") != std::string::npos ? towers : decoders).push_back(entry.path());
    if (decoders.empty()) return std::nullopt;
    if (decoders.size() > 1 || (towers.size() > 1 && vision.empty()))
        throw LoadError{path.string(), "holds " + std::to_string(decoders.size()) + " GGUF files of decoders and " + std::to_string(towers.size()) + " of vision towers (mmproj): name the one that is meant"};
    return GgufModel{decoders[0], !vision.empty() || towers.empty() ? vision : towers[0]};
}

namespace detail {

/// The settings of one part of a file: "llama.", "clip.vision.". All throw ConfigError.
struct GgufSettings {
    const Gguf& gguf;
    std::string part;

    [[noreturn]] void refuse(std::string_view key, const std::string& value, const std::string& allowed) const {
        throw ConfigError{gguf.file(), part + std::string(key), value, allowed};
    }
    bool             has(std::string_view key) const { return gguf.has(part + std::string(key)); }
    const GgufValue& get(std::string_view key) const { return gguf.get(part + std::string(key)); }
    std::size_t      count(std::string_view key, std::optional<std::size_t> fallback = {}, std::int64_t most = ConfigReader::max_count) const {
        if (fallback && !has(key)) return *fallback;
        const std::int64_t n = get(key).integer();
        if (n < 1 || n > most) refuse(key, std::to_string(n), "an integer from 1 to " + std::to_string(most));
        return static_cast<std::size_t>(n);
    }
    float positive(std::string_view key, std::optional<float> fallback = {}) const {
        if (fallback && !has(key)) return *fallback;
        const auto x = static_cast<float>(get(key).real());
        if (!(x > 0) || std::isinf(x)) refuse(key, std::to_string(x), "a number over 0 that fits a float");
        return x;
    }
    std::size_t divisor(std::string_view key, std::size_t of, std::optional<std::size_t> fallback = {}) const {
        const std::size_t n = count(key, fallback);
        if (of % n != 0) refuse(key, std::to_string(n), "a divisor of " + std::to_string(of));
        return n;
    }
};

/// Our format for a type of ggml's, and whether its blocks are that format's.
struct GgufFormat {
    Dtype dtype;
    bool  same;
};
inline GgufFormat format_of(GgmlType type) {
    switch (type) {
        case GgmlType::q8_0: return {Dtype::q8, true};
        case GgmlType::q4_0: return {Dtype::q4, true};
        case GgmlType::q4_1: return {Dtype::q4m, true};
        case GgmlType::q4_k: return {Dtype::q4m, false};
        case GgmlType::q5_0:
        case GgmlType::q5_1:
        case GgmlType::q5_k:
        case GgmlType::q6_k: return {Dtype::q8, false};
        default: return {ggml_layout(type)->dtype, true};
    }
}

/// Eight groups of Q4_K as blocks of Q4_1: the same four bits, with scales and minima rounded to f16.
template <class = void>
void groups_of_q4_k(const std::byte* block, q4m::block* to) {
    const std::byte* quants = block + 16;
    for (unsigned k = 0; k < 8; ++k) {
        const auto [step, shift] = group_of_k(block, k);
        to[k].scale = fp16_t{step}, to[k].minimum = fp16_t{-shift};
        const auto four = [&](unsigned l) { return k % 2 == 0 ? low(quants + 32 * (k / 2) + l) : high(quants + 32 * (k / 2) + l); };
        for (unsigned j = 0; j < 16; ++j) to[k].q[j] = static_cast<std::uint8_t>(four(j) | four(j + 16) << 4);
    }
}

/// The row of a file that is row i of a matrix. llama.cpp turns neighbours by its rotary positions, where everybody else turns
/// values half a head apart: its files of Llama have the rows of queries and keys in that order.
inline std::size_t row_in_file(std::size_t i, std::size_t head_dim) {
    if (head_dim == 0) return i;
    const std::size_t head = i / head_dim * head_dim, at = i % head_dim, half = head_dim / 2;
    return head + (at < half ? 2 * at : 2 * (at - half) + 1);
}

/// Rows [first, first + count) of a matrix or plain vector of a file, under another name and in our format. `head_dim`: see
/// row_in_file; 0 for rows that stand in order. Throws LoadError for a vector in blocks.
template <class = void>
TensorInfo rows_of(const GgufTensor& t, std::string name, std::size_t first, std::size_t count, std::size_t head_dim = 0) {
    const GgufFormat format = format_of(t.type);
    if (item_bytes(format.dtype) == 0 && t.info.shape.size() != 2)
        throw LoadError{t.info.file, t.info.name, "a matrix, where it is in " + std::string(ggml_layout(t.type)->name), to_string(t.info.shape)};
    const std::size_t row_bytes = static_cast<std::size_t>(t.bytes) / t.info.shape[0];
    TensorInfo        info = t.info;
    info.name = std::move(name), info.dtype = format.dtype, info.shape[0] = count;
    info.data += first * row_bytes;
    if (format.same && head_dim == 0) return info;
    info.made = [stored = info, type = t.type, row_bytes, head_dim, same = format.same](const InPieces& in_pieces) {
        TensorInfo        dense = stored;
        const std::size_t rows = stored.shape[0], cols = stored.elements() / rows, n_blocks = cols / 32;
        const std::size_t to_bytes = same ? row_bytes : static_cast<std::size_t>(stored_bytes(stored.dtype, cols));
        auto              bytes = std::make_shared<std::vector<std::byte>>(rows * to_bytes);
        in_pieces(rows, [&](std::size_t begin, std::size_t end) {
            std::vector<float> values(same || type == GgmlType::q4_k ? 0 : cols);
            for (std::size_t i = begin; i < end; ++i) {
                const std::byte* from = stored.data + row_in_file(i, head_dim) * row_bytes;
                std::byte*       to = bytes->data() + i * to_bytes;
                if (same) {
                    std::memcpy(to, from, row_bytes);
                } else if (type == GgmlType::q4_k) {
                    for (std::size_t b = 0; b < cols / 256; ++b) groups_of_q4_k(from + b * 144, reinterpret_cast<q4m::block*>(to) + 8 * b);
                } else {
                    dequantise(type, {from, row_bytes}, values);
                    q8::encode(values, {reinterpret_cast<q8::block*>(to), n_blocks});
                }
            }
        });
        if (stored.mapped) release_pages(stored.data, rows * row_bytes);
        dense.data = bytes->data();
        dense.owner = std::move(bytes);
        dense.mapped = false;
        return dense;
    };
    return info;
}

/// "blk.7.attn_q.weight" as 7 and "attn_q.weight"; nothing for a name that does not begin with `prefix`.
template <class = void>
std::optional<std::pair<std::size_t, std::string>> block_part(std::string_view name, std::string_view prefix) {
    if (!name.starts_with(prefix)) return std::nullopt;
    name.remove_prefix(prefix.size());
    std::size_t i = 0;
    const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), i);
    if (problem != std::errc{} || end == name.data() + name.size() || *end != '.') return std::nullopt;
    return std::pair{i, std::string(end + 1, name.data() + name.size())};
}

using Renaming = std::vector<std::pair<std::string, std::string>>;

/// What decoders of all kinds have in common.
template <class C>
C gguf_decoder(const GgufSettings& c, std::size_t vocab_size) {
    C m;
    m.vocab_size = vocab_size;
    m.d_model = c.count("embedding_length");
    m.d_ff = c.count("feed_forward_length");
    m.n_layers = c.count("block_count", {}, 4096);
    m.n_heads = c.has("attention.key_length") ? c.count("attention.head_count") : c.divisor("attention.head_count", m.d_model);
    m.n_kv_heads = c.divisor("attention.head_count_kv", m.n_heads, m.n_heads);
    m.head_dim = c.count("attention.key_length", m.d_model / m.n_heads, 256);
    if (m.head_dim % 2 != 0 || m.head_dim > 256) c.refuse(c.has("attention.key_length") ? "attention.key_length" : "attention.head_count", std::to_string(c.has("attention.key_length") ? m.head_dim : m.n_heads), "one that gives an even head size of at most 256");
    m.max_positions = c.count("context_length", 4096);
    m.rope_theta = c.positive("rope.freq_base", 1e4f);
    m.tied_embeddings = !c.gguf.find("output.weight");
    return m;
}

}  // namespace detail

/// The decoder that a file describes: llama (Llama, Vicuna, Mistral), qwen2 or phi2. Throws ConfigError, LoadError.
template <class = void>
LanguageModelConfig gguf_language_config(const Gguf& gguf) {
    const std::string arch{gguf.get("general.architecture").text()};
    if (arch == "clip") throw LoadError{gguf.file(), "holds a vision tower (mmproj); it goes beside the file of a decoder, as vision_dir"};
    if (arch != "llama" && arch != "qwen2" && arch != "phi2") throw ConfigError{gguf.file(), "general.architecture", arch, "llama, qwen2, phi2"};
    if (gguf.has("split.count") && gguf.get("split.count").integer() > 1) throw LoadError{gguf.file(), "is one of several parts; llama-gguf-split --merge makes one file of them"};
    const detail::GgufSettings c{gguf, arch + "."};
    if (c.has("expert_count") && c.get("expert_count").integer() > 0) c.refuse("expert_count", std::to_string(c.get("expert_count").integer()), "0");
    if (c.has("rope.scaling.type"))
        if (const std::string how{c.get("rope.scaling.type").text()}; how != "none" && how != "linear") c.refuse("rope.scaling.type", how, "none, linear");
    for (const char* key : {"rope.scaling.factor", "rope.scale_linear"})  // linear where no type is named; 0 is none
        if (c.has(key))
            if (const double factor = c.get(key).real(); factor != 0 && factor != 1) c.refuse(key, std::to_string(factor), "1");
    const GgufTensor* table = gguf.find("token_embd.weight");
    if (!table || table->info.shape.size() != 2) throw LoadError{gguf.file(), "token_embd.weight", "[vocab_size, d_model]", table ? to_string(table->info.shape) : "nothing"};
    if (arch == "phi2") {
        auto m = detail::gguf_decoder<PhiConfig>(c, table->info.shape[0]);
        m.norm_eps = c.positive("attention.layer_norm_epsilon");
        m.rotary_dim = c.count("rope.dimension_count", m.head_dim, static_cast<std::int64_t>(m.head_dim));
        if (m.rotary_dim % 2 != 0) c.refuse("rope.dimension_count", std::to_string(m.rotary_dim), "an even number");
        return m;
    }
    auto m = detail::gguf_decoder<LlamaConfig>(c, table->info.shape[0]);
    m.norm_eps = c.positive("attention.layer_norm_rms_epsilon");
    m.qkv_bias = gguf.find("blk.0.attn_q.bias") != nullptr;
    if (const std::size_t rotary = c.count("rope.dimension_count", m.head_dim); rotary != m.head_dim)
        c.refuse("rope.dimension_count", std::to_string(rotary), "the size of a head, " + std::to_string(m.head_dim));
    if (c.has("attention.sliding_window") && c.get("attention.sliding_window").integer() != 0)
        m.window = c.count("attention.sliding_window") + 1;  // as from config.json
    return m;
}

/// The tensors of a decoder's file under the names of Hugging Face's. What has no such name keeps its own. Throws LoadError.
template <class = void>
Checkpoint gguf_language_tensors(const Gguf& gguf, const LanguageModelConfig& config) {
    static const detail::Renaming llama{{"attn_norm.", "input_layernorm."},  {"ffn_norm.", "post_attention_layernorm."}, {"attn_q.", "self_attn.q_proj."},
                                        {"attn_k.", "self_attn.k_proj."},    {"attn_v.", "self_attn.v_proj."},          {"attn_output.", "self_attn.o_proj."},
                                        {"ffn_gate.", "mlp.gate_proj."},     {"ffn_up.", "mlp.up_proj."},               {"ffn_down.", "mlp.down_proj."}},
        phi{{"attn_norm.", "input_layernorm."}, {"attn_q.", "self_attn.q_proj."}, {"attn_k.", "self_attn.k_proj."}, {"attn_v.", "self_attn.v_proj."},
            {"attn_output.", "self_attn.dense."}, {"ffn_up.", "mlp.fc1."}, {"ffn_down.", "mlp.fc2."}};
    const auto*            as_llama = std::get_if<LlamaConfig>(&config);
    const bool             in_turn = gguf.get("general.architecture").text() == "llama";  // see row_in_file
    const detail::Renaming outside{{"token_embd.", "model.embed_tokens."}, {"output_norm.", as_llama ? "model.norm." : "model.final_layernorm."}, {"output.", "lm_head."}};
    std::vector<TensorInfo> tensors;
    for (const GgufTensor& t : gguf.tensors()) {
        const std::string& name = t.info.name;
        if (t.info.shape[0] == 0) throw LoadError{gguf.file(), name, "at least one row", to_string(t.info.shape)};
        if (name == "rope_freqs.weight" && std::ranges::all_of(to_floats(t), [](float x) { return x == 1; })) continue;  // positions as they are
        const std::size_t rows = t.info.shape[0];
        const auto        part = detail::block_part(name, "blk.");
        if (!part) {
            tensors.push_back(detail::rows_of(t, detail::renamed(outside, name).value_or(name), 0, rows));
            continue;
        }
        const auto& [i, inner] = *part;
        const std::string layer = "model.layers." + std::to_string(i) + ".";
        if (!as_llama && inner.starts_with("attn_qkv.")) {
            const auto&       phi_config = std::get<PhiConfig>(config);
            const std::size_t q = phi_config.n_heads * phi_config.head_dim, kv = phi_config.n_kv_heads * phi_config.head_dim;
            if (rows != q + 2 * kv) throw LoadError{gguf.file(), name, std::to_string(q + 2 * kv) + " rows", to_string(t.info.shape)};
            const std::string leaf = inner.substr(std::string_view("attn_qkv").size());
            tensors.push_back(detail::rows_of(t, layer + "self_attn.q_proj" + leaf, 0, q));
            tensors.push_back(detail::rows_of(t, layer + "self_attn.k_proj" + leaf, q, kv));
            tensors.push_back(detail::rows_of(t, layer + "self_attn.v_proj" + leaf, q + kv, kv));
            continue;
        }
        const auto  renamed = detail::renamed(as_llama ? llama : phi, inner);
        const bool  turned = in_turn && (inner.starts_with("attn_q.") || inner.starts_with("attn_k."));
        if (turned && rows % as_llama->head_dim != 0) throw LoadError{gguf.file(), name, "whole heads of " + std::to_string(as_llama->head_dim), to_string(t.info.shape)};
        tensors.push_back(detail::rows_of(t, renamed ? layer + *renamed : name, 0, rows, turned ? as_llama->head_dim : 0));
    }
    return {gguf.file(), std::move(tensors)};
}

/// The tower of a LLaVA-1.5's mmproj file. Throws ConfigError, LoadError. Its last stored block gives the features: who wrote
/// the file left out what comes behind. (llama.cpp stops one block earlier: its issue 25817.)
template <class = void>
VitConfig gguf_tower_config(const Gguf& gguf) {
    if (const std::string arch{gguf.get("general.architecture").text()}; arch != "clip") throw ConfigError{gguf.file(), "general.architecture", arch, "clip: a vision tower with its projector (mmproj)"};
    if (gguf.has("clip.projector_type") && gguf.get("clip.projector_type").text() != "mlp")
        throw ConfigError{gguf.file(), "clip.projector_type", std::string(gguf.get("clip.projector_type").text()), "mlp: LLaVA-1.5's"};
    const detail::GgufSettings c{gguf, "clip.vision."};
    VitConfig                  v = vit::clip_l14(c.count("image_size", {}, 1 << 16));
    v.patch_size = c.count("patch_size", {}, 1 << 12);
    v.d_model = c.count("embedding_length");
    v.d_ff = c.count("feed_forward_length");
    v.n_heads = c.divisor("attention.head_count", v.d_model);
    v.norm_eps = c.positive("attention.layer_norm_epsilon");
    v.act = gguf.has("clip.use_gelu") && gguf.get("clip.use_gelu").flag() ? Activation::gelu_erf : Activation::quick_gelu;
    std::size_t n_blocks = 0;
    for (const GgufTensor& t : gguf.tensors())
        if (const auto part = detail::block_part(t.info.name, "v.blk.")) n_blocks = std::max(n_blocks, part->first + 1);
    if (n_blocks == 0 || n_blocks > 4096) throw LoadError{gguf.file(), "holds " + std::to_string(n_blocks) + " blocks of a vision tower"};
    v.n_layers = n_blocks + 1, v.features_only = true;
    if (v.image_size < v.patch_size) c.refuse("image_size", std::to_string(v.image_size), "at least patch_size " + std::to_string(v.patch_size));
    if (v.d_model / v.n_heads > 256) c.refuse("attention.head_count", std::to_string(v.n_heads), "one that gives heads of at most 256");
    if (v.n_patches() > std::size_t{1} << 16) c.refuse("image_size", std::to_string(v.image_size), "one that gives at most 65536 patches");
    return v;
}

/// How a mmproj file has pictures normalised; CLIP's way where it does not say. Throws ConfigError.
template <class = void>
Statistics gguf_statistics(const Gguf& gguf) {
    Statistics stats = statistics::clip;
    for (const auto& [key, to] : {std::pair{"clip.vision.image_mean", &stats.mean}, std::pair{"clip.vision.image_std", &stats.std}}) {
        if (!gguf.has(key)) continue;
        const auto values = gguf.get(key).reals();
        if (values.size() != 3) throw ConfigError{gguf.file(), key, std::to_string(values.size()) + " numbers", "three numbers, one for each colour"};
        std::ranges::transform(values, to->begin(), [](double x) { return static_cast<float>(x); });
        for (const float x : *to)
            if (!std::isfinite(x) || (to == &stats.std && !(x > 0))) throw ConfigError{gguf.file(), key, std::to_string(x), "numbers that fit a float, deviations over 0"};
    }
    return stats;
}

/// The tensors of a mmproj file, quantised ones as f32: the tower under "vision_model.", the projector under "linear_1." and "linear_2.".
template <class = void>
Checkpoint gguf_tower_tensors(const Gguf& gguf, const VitConfig& config) {
    static const detail::Renaming outside{{"v.class_embd", "vision_model.embeddings.class_embedding"}, {"v.patch_embd.", "vision_model.embeddings.patch_embedding."},
                                          {"v.position_embd.", "vision_model.embeddings.position_embedding."}, {"v.pre_ln.", "vision_model.pre_layrnorm."},
                                          {"mm.0.", "linear_1."}, {"mm.2.", "linear_2."}};
    static const detail::Renaming inside{{"attn_q.", "self_attn.q_proj."}, {"attn_k.", "self_attn.k_proj."}, {"attn_v.", "self_attn.v_proj."}, {"attn_out.", "self_attn.out_proj."},
                                         {"ln1.", "layer_norm1."}, {"ln2.", "layer_norm2."}};
    // Older writers call the first product of an MLP ffn_down and the second ffn_up.
    const GgufTensor* down = gguf.find("v.blk.0.ffn_down.weight");
    const bool        older = down && down->info.shape[0] == config.d_ff;
    const bool        quantised = std::ranges::any_of(gguf.tensors(), [](const GgufTensor& t) { return t.info.dtype == Dtype::other; });
    std::vector<TensorInfo> tensors;
    for (const GgufTensor& t : gguf.tensors()) {
        const std::string&         name = t.info.name;
        std::optional<std::string> renamed = detail::renamed(outside, name);
        if (const auto part = detail::block_part(name, "v.blk.")) {
            const auto& [i, inner] = *part;
            auto to = detail::renamed(inside, inner);
            if (inner.starts_with("ffn_up.")) to = (older ? "mlp.fc2" : "mlp.fc1") + inner.substr(6);
            if (inner.starts_with("ffn_down.")) to = (older ? "mlp.fc1" : "mlp.fc2") + inner.substr(8);
            if (to) renamed = "vision_model.encoder.layers." + std::to_string(i) + "." + *to;
        }
        if (name.starts_with("v.post_ln.")) continue;  // behind the features
        TensorInfo info = t.info;
        info.name = renamed ? *renamed : name.starts_with("v.") ? "vision_model." + name : name;  // an unknown one stays with its part
        // Three projections are stacked into one, which takes plain values of one type.
        if (info.dtype == Dtype::other || (quantised && info.name.find("self_attn.") != std::string::npos)) info = with_values(info, std::make_shared<std::vector<float>>(to_floats(t)));
        tensors.push_back(std::move(info));
    }
    return {gguf.file(), std::move(tensors)};
}

}  // namespace prism
