// Settings of models as JSON and back: each configuration has one table of its members, by their names in C++, and both
// ways walk over it.
//
//     const Json json = prism::to_json(vit_config);
//     const auto same = prism::vit_settings(prism::ConfigReader{json, "settings"});
#pragma once

#include "prism/image/transform.hpp"
#include "prism/io/config.hpp"
#include "prism/model/prismatic.hpp"
#include "prism/model/tower_files.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace prism {

namespace detail {

/// Of a setting that older files are without.
struct Later {};
inline constexpr Later later{};

// A member more or less in a configuration does not compile here, so none is ever lost in a file. `least` is the smallest
// number that a member may have.
template <class C, class Each>
    requires std::same_as<std::remove_const_t<C>, VitConfig>
void each_setting(C& config, Each&& each) {
    auto& [image_size, patch_size, d_model, n_layers, n_heads, d_ff, class_token, n_registers, pos_embed_prefix, norm_pre, layer_scale, attention_pool,
           features_only, norm_eps, act] = config;
    each("image_size", image_size), each("patch_size", patch_size), each("d_model", d_model), each("n_layers", n_layers), each("n_heads", n_heads);
    each("d_ff", d_ff), each("class_token", class_token), each("n_registers", n_registers, 0), each("pos_embed_prefix", pos_embed_prefix);
    each("norm_pre", norm_pre), each("layer_scale", layer_scale), each("attention_pool", attention_pool), each("features_only", features_only, later);
    each("norm_eps", norm_eps), each("act", act);
}

template <class C, class Each>
    requires std::same_as<std::remove_const_t<C>, LlamaConfig>
void each_setting(C& config, Each&& each) {
    auto& [vocab_size, d_model, d_ff, n_layers, n_heads, n_kv_heads, head_dim, max_positions, window, norm_eps, rope_theta, qkv_bias, tied_embeddings] = config;
    each("vocab_size", vocab_size), each("d_model", d_model), each("d_ff", d_ff), each("n_layers", n_layers), each("n_heads", n_heads);
    each("n_kv_heads", n_kv_heads), each("head_dim", head_dim), each("max_positions", max_positions), each("window", window, 0);
    each("norm_eps", norm_eps), each("rope_theta", rope_theta), each("qkv_bias", qkv_bias), each("tied_embeddings", tied_embeddings);
}

template <class C, class Each>
    requires std::same_as<std::remove_const_t<C>, PhiConfig>
void each_setting(C& config, Each&& each) {
    auto& [vocab_size, d_model, d_ff, n_layers, n_heads, n_kv_heads, head_dim, rotary_dim, max_positions, norm_eps, rope_theta, act, tied_embeddings] = config;
    each("vocab_size", vocab_size), each("d_model", d_model), each("d_ff", d_ff), each("n_layers", n_layers), each("n_heads", n_heads);
    each("n_kv_heads", n_kv_heads), each("head_dim", head_dim), each("rotary_dim", rotary_dim), each("max_positions", max_positions);
    each("norm_eps", norm_eps), each("rope_theta", rope_theta), each("act", act), each("tied_embeddings", tied_embeddings);
}

template <class J>
struct SettingWriter {
    J& json;

    void operator()(const char* name, std::size_t value, std::size_t = 1) const { json[name] = value; }
    void operator()(const char* name, bool value) const { json[name] = value; }
    void operator()(const char* name, bool value, Later) const { json[name] = value; }
    void operator()(const char* name, float value) const { json[name] = value; }  // as f64, which has every f32
    void operator()(const char* name, Activation value) const { json[name] = to_string(value); }
};

template <class Reader>
struct SettingReader {
    const Reader& config;

    void operator()(const char* name, std::size_t& value, std::size_t least = 1) const {
        value = static_cast<std::size_t>(config.integer(name, static_cast<std::int64_t>(least), Reader::max_count + 1));
    }
    void operator()(const char* name, bool& value) const { value = config.flag(name); }
    void operator()(const char* name, bool& value, Later) const { value = config.flag(name, value); }
    void operator()(const char* name, float& value) const {
        value = static_cast<float>(config.real(name));
        if (!(value > 0) || std::isinf(value)) config.refuse(name, "a number over 0 that fits a float");
    }
    void operator()(const char* name, Activation& value) const {
        const std::string word = config.text(name);
        for (const Activation a : {Activation::none, Activation::gelu_erf, Activation::gelu_tanh, Activation::quick_gelu, Activation::silu})
            if (word == to_string(a)) return static_cast<void>(value = a);
        config.refuse(name, "none, gelu_erf, gelu_tanh, quick_gelu or silu");
    }
};

template <class C>
C settings_of(const ConfigReader& config) {
    C c;
    each_setting(c, SettingReader<ConfigReader>{config});
    if (c.n_layers > 4096) config.refuse("n_layers", "at most 4096");
    return c;
}

/// The rules that language_files.hpp has for config.json, under our names.
template <class C>
C decoder_settings(const ConfigReader& config) {
    const C c = settings_of<C>(config);
    if (c.n_heads % c.n_kv_heads != 0) config.refuse("n_kv_heads", "a divisor of n_heads " + std::to_string(c.n_heads));
    if (c.head_dim % 2 != 0 || c.head_dim > 256) config.refuse("head_dim", "an even number of at most 256");
    return c;
}

}  // namespace detail

template <class C>
    requires requires(const C& config, detail::SettingWriter<Json> writer) { detail::each_setting(config, writer); }
Json to_json(const C& config) {
    using J = detail::Late<Json, C>;
    J json = J::object();
    detail::each_setting(config, detail::SettingWriter<J>{json});
    return json;
}

/// Throws ConfigError unless a tower of these settings can be run.
template <class = void>
VitConfig vit_settings(const ConfigReader& config) {
    const VitConfig c = detail::settings_of<VitConfig>(config);
    if (c.image_size > 1 << 16) config.refuse("image_size", "at most 65536");
    if (c.patch_size > 1 << 12) config.refuse("patch_size", "at most 4096");
    if (c.n_registers > 1 << 12) config.refuse("n_registers", "at most 4096");
    expect_tower(c, config, {"d_model", "n_layers", "n_heads", "image_size", "patch_size"});
    return c;
}

/// A decoder's settings, with its family.
template <class J = Json>
J to_json(const LanguageModelConfig& config) {
    J json = std::visit([](const auto& c) { return to_json(c); }, config);
    json["family"] = std::holds_alternative<PhiConfig>(config) ? "phi" : "llama";
    return json;
}
/// Throws ConfigError unless a decoder of these settings can be run.
template <class = void>
LanguageModelConfig language_model_settings(const ConfigReader& config) {
    if (config.choice("family", {"llama", "phi"}) == "llama") return detail::decoder_settings<LlamaConfig>(config);
    const auto c = detail::decoder_settings<PhiConfig>(config);
    if (c.rotary_dim % 2 != 0 || c.rotary_dim > c.head_dim) config.refuse("rotary_dim", "an even number of at most head_dim " + std::to_string(c.head_dim));
    return c;
}

/// Three means and three deviations, the latter over 0. Throws ConfigError.
template <class = void>
Statistics read_statistics(const ConfigReader& c, const char* mean, const char* std) {
    Statistics s;
    const auto take = [&](const char* key, std::array<float, 3>& out) {
        const auto values = c.reals(key);
        if (values.size() != 3) c.refuse(key, "three numbers");
        for (std::size_t i = 0; i < 3; ++i) out[i] = static_cast<float>(values[i]);
    };
    take(mean, s.mean), take(std, s.std);
    for (float x : s.std)
        if (!(x > 0)) c.refuse(std, "three numbers over 0");
    return s;
}

template <class J = Json>
J to_json(const ImageTransform& transform) {
    const auto& [stats, strategy, size, resize_to, fill, margin, centre_crop_area] = transform;
    J json{{"mean", stats.mean}, {"std", stats.std}, {"strategy", to_string(strategy)}, {"size", size}, {"margin", margin == Margin::floor ? "floor" : "half_even"}};
    if (resize_to) json["resize_to"] = *resize_to;
    if (fill) json["fill"] = *fill;
    if (centre_crop_area) json["centre_crop_area"] = *centre_crop_area;
    return json;
}
/// Throws ConfigError for settings that cannot be used.
template <class = void>
ImageTransform transform_settings(const ConfigReader& config) {
    constexpr std::size_t most = 1 << 16;
    ImageTransform        t{.stats = read_statistics(config, "mean", "std"),
                            .strategy = resize_from_name(config.choice("strategy", {"resize-naive", "letterbox", "resize-crop", "pad"})),
                            .size = config.count("size", {}, most)};
    if (config.has("resize_to")) t.resize_to = config.count("resize_to", {}, most);
    if (config.has("fill")) {
        const auto fill = config.reals("fill");
        if (fill.size() != 3 || std::ranges::any_of(fill, [](double x) { return !(x >= 0 && x <= 255); })) config.refuse("fill", "three numbers from 0 to 255");
        t.fill = Rgb{static_cast<std::uint8_t>(fill[0]), static_cast<std::uint8_t>(fill[1]), static_cast<std::uint8_t>(fill[2])};
    }
    if (config.choice("margin", {"half_even", "floor"}) == "floor") t.margin = Margin::floor;
    if (config.has("centre_crop_area")) {
        const auto area = static_cast<float>(config.real("centre_crop_area"));
        if (!(area > 0 && area <= 1)) config.refuse("centre_crop_area", "over 0, at most 1");
        t.centre_crop_area = area;
    }
    return t;
}

template <class J = Json>
J to_json(const PrismaticConfig& config) {
    constexpr std::array projectors{"linear", "gelu-mlp", "fused-gelu-mlp"};
    const auto& [model_id, vision_backbone_id, llm_backbone_id, towers, projector, llm, llm_max_length] = config;
    J list = J::array();
    for (const auto& [key, vit, transform] : towers) list.push_back({{"key", key}, {"vit", to_json(vit)}, {"transform", to_json(transform)}});
    return {{"model_id", model_id}, {"vision_backbone_id", vision_backbone_id}, {"llm_backbone_id", llm_backbone_id}, {"towers", std::move(list)},
            {"projector", projectors.at(static_cast<std::size_t>(projector))}, {"llm", to_json(llm)}, {"llm_max_length", llm_max_length}};
}
/// Throws ConfigError unless a model of these settings can be composed.
template <class = void>
PrismaticConfig prismatic_settings(const ConfigReader& config) {
    PrismaticConfig c{.model_id = config.text("model_id"), .vision_backbone_id = config.text("vision_backbone_id"), .llm_backbone_id = config.text("llm_backbone_id"), .towers = {},
                      .projector = projector_from_arch(config.choice("projector", {"linear", "gelu-mlp", "fused-gelu-mlp"})),
                      .llm = language_model_settings(config.object("llm")), .llm_max_length = config.count("llm_max_length")};
    for (const ConfigReader& tower : config.objects("towers")) {
        const auto transform = tower.object("transform");
        c.towers.push_back({tower.text("key"), vit_settings(tower.object("vit")), transform_settings(transform)});
        if (c.towers.back().transform.size != c.towers.back().vit.image_size) transform.refuse("size", "the tower's image_size " + std::to_string(c.towers.back().vit.image_size));
    }
    if (c.towers.empty() || c.towers.size() > 16) config.refuse("towers", "1 to 16 towers");
    return c;
}

}  // namespace prism
