// Vision towers as they are published: timm folders, open_clip and Meta files, Hugging Face folders. All end up under
// timm's names, with the position table at the size asked for.
#pragma once

#include "prism/io/config.hpp"
#include "prism/model/load.hpp"
#include "prism/vision/positions.hpp"
#include "prism/vision/towers.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace prism {

namespace detail {

/// A tensor of our own making, f32.
template <class = void>
TensorInfo tensor_of(std::string name, std::vector<std::size_t> shape, std::vector<float> values, std::string file) {
    auto       owner = std::make_shared<std::vector<float>>(std::move(values));
    TensorInfo t{std::move(name), Dtype::f32, std::move(shape), {}, reinterpret_cast<const std::byte*>(owner->data()), nullptr, std::move(file)};
    t.owner = std::move(owner);
    return t;
}

/// Tensors one below the other, in their own type.
template <class = void>
TensorInfo stack_rows(std::string name, const std::vector<const TensorInfo*>& parts) {
    TensorInfo t = *parts.front();
    if (t.shape.empty()) throw LoadError{t.file, t.name, "at least one dimension", to_string(t.shape)};
    t.name = std::move(name);
    auto owner = std::make_shared<std::vector<std::byte>>();
    t.shape[0] = 0;
    for (const TensorInfo* part : parts) {
        if (part->dtype != t.dtype || part->shape.size() != t.shape.size() ||
            !std::equal(part->shape.begin() + 1, part->shape.end(), t.shape.begin() + 1))
            throw LoadError{part->file, part->name, "the type and width of " + parts.front()->name, std::string(to_string(part->dtype)) + " " + to_string(part->shape)};
        const TensorInfo dense = contiguous(*part);
        owner->insert(owner->end(), dense.data, dense.data + dense.bytes());
        t.shape[0] += part->shape[0];
    }
    t.stride.clear();
    t.data = owner->data();
    t.owner = std::move(owner);
    return t;
}

/// One naming of a ViT's tensors: rules from a foreign name to timm's, by prefix. What is not below `root` belongs to
/// other parts of a bigger model; what is below it, and no rule names, keeps its name and so is found unexpected.
struct TowerNames {
    std::string root, layers;                                          // "vision_model.", "vision_model.encoder.layers."
    std::vector<std::pair<std::string, std::string>> outside, inside;  // of a layer: rest of the name
    std::vector<std::string> qkv;                                      // three separate projections, to be stacked
    std::vector<std::string> dropped;                                  // parts that features do not need
};

template <class = void>
std::optional<std::string> renamed(const std::vector<std::pair<std::string, std::string>>& rules, std::string_view name) {
    for (const auto& [from, to] : rules)
        if (name == from || (name.starts_with(from) && from.ends_with('.'))) return to + std::string(name.substr(from.size()));
    return std::nullopt;
}

template <class = void>
std::vector<TensorInfo> rename_tower(const Checkpoint& file, const TowerNames& names) {
    std::vector<TensorInfo> result;
    for (const TensorInfo& tensor : file.tensors()) {
        std::optional<std::string> name;
        if (tensor.name.starts_with(names.layers)) {
            const std::string rest = tensor.name.substr(names.layers.size());
            const std::size_t dot = std::min(rest.find('.'), rest.size());
            const std::string block = "blocks." + rest.substr(0, dot) + ".", part = dot < rest.size() ? rest.substr(dot + 1) : "";
            const auto        projection = std::ranges::find_if(names.qkv, [&](const std::string& p) { return part.starts_with(p); });
            if (projection != names.qkv.end()) {
                const std::string leaf = part.substr(projection->size());
                std::vector<const TensorInfo*> parts;
                for (const auto& one : names.qkv) {
                    const std::string whole = names.layers + rest.substr(0, dot + 1) + one + leaf;
                    const TensorInfo* found = file.find(whole);
                    if (!found) throw LoadError{file.file(), "tensor '" + whole + "' is missing beside '" + tensor.name + "'"};
                    parts.push_back(found);
                }
                if (projection == names.qkv.begin()) result.push_back(stack_rows(block + "attn.qkv." + leaf, parts));  // once for all three
                continue;
            }
            if (auto inner = renamed(names.inside, part)) name = block + *inner;
        } else {
            name = renamed(names.outside, tensor.name);
        }
        if (!name) {
            const auto dropped = [&](const std::string& d) { return tensor.name == d || (d.ends_with('.') && tensor.name.starts_with(d)); };
            if (!tensor.name.starts_with(names.root) || std::ranges::any_of(names.dropped, dropped)) continue;
            name = tensor.name;
        }
        TensorInfo t = tensor;
        t.name = *name;
        if (t.name == "pos_embed" || t.name == "cls_token") t = contiguous(t);  // before it gets another shape
        if (t.name == "cls_token") t.shape = {1, 1, t.elements()};
        if (t.name == "pos_embed" && t.shape.size() == 2) t.shape.insert(t.shape.begin(), 1);
        result.push_back(std::move(t));
    }
    return result;
}

/// With registers the class token has a position in the file and none in timm: it is folded into the token.
template <class = void>
void fold_class_position(std::vector<TensorInfo>& tensors) {
    const auto named = [&](std::string_view name) { return std::ranges::find_if(tensors, [&](const TensorInfo& t) { return t.name == name; }); };
    const auto token = named("cls_token"), table = named("pos_embed");
    if (token == tensors.end() || table == tensors.end() || table->shape.size() != 3 || table->shape[1] == 0 ||
        token->elements() != table->shape[2])
        return;  // loading says what is wrong
    std::vector<float> class_token = to_floats(*token), positions = to_floats(*table);
    const std::size_t  d = class_token.size();
    for (std::size_t i = 0; i < d; ++i) class_token[i] += positions[i];
    *token = tensor_of("cls_token", {1, 1, d}, std::move(class_token), token->file);
    const std::vector<std::size_t> shape{1, table->shape[1] - 1, d};
    *table = tensor_of("pos_embed", shape, {positions.begin() + static_cast<std::ptrdiff_t>(d), positions.end()}, table->file);
}

template <class = void>
TowerNames open_clip_names(const std::string& visual) {
    return {visual, visual + "transformer.resblocks.",
            {{visual + "class_embedding", "cls_token"}, {visual + "positional_embedding", "pos_embed"},
             {visual + "conv1.weight", "patch_embed.proj.weight"}, {visual + "ln_pre.", "norm_pre."}, {visual + "ln_post.", "norm."}},
            {{"ln_1.", "norm1."}, {"ln_2.", "norm2."}, {"attn.in_proj_weight", "attn.qkv.weight"}, {"attn.in_proj_bias", "attn.qkv.bias"},
             {"attn.out_proj.", "attn.proj."}, {"mlp.c_fc.", "mlp.fc1."}, {"mlp.c_proj.", "mlp.fc2."}},
            {}, {visual + "proj"}};
}

/// CLIP and SigLIP of transformers.
template <class = void>
TowerNames hugging_face_names(const std::string& model) {
    return {model, model + "encoder.layers.",
            {{model + "embeddings.class_embedding", "cls_token"}, {model + "embeddings.position_embedding.weight", "pos_embed"},
             {model + "embeddings.patch_embedding.", "patch_embed.proj."}, {model + "pre_layrnorm.", "norm_pre."},
             {model + "post_layernorm.", "norm."}},
            {{"layer_norm1.", "norm1."}, {"layer_norm2.", "norm2."}, {"self_attn.out_proj.", "attn.proj."},
             {"mlp.fc1.", "mlp.fc1."}, {"mlp.fc2.", "mlp.fc2."}},
            {"self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."},
            {model + "embeddings.position_ids", model + "head."}};
}

template <class = void>
TowerNames hugging_face_dinov2_names(const std::string& model) {
    return {model, model + "encoder.layer.",
            {{model + "embeddings.cls_token", "cls_token"}, {model + "embeddings.register_tokens", "reg_token"},
             {model + "embeddings.position_embeddings", "pos_embed"}, {model + "embeddings.patch_embeddings.projection.", "patch_embed.proj."},
             {model + "layernorm.", "norm."}},
            {{"norm1.", "norm1."}, {"norm2.", "norm2."}, {"attention.output.dense.", "attn.proj."}, {"layer_scale1.lambda1", "ls1.gamma"},
             {"layer_scale2.lambda1", "ls2.gamma"}, {"mlp.fc1.", "mlp.fc1."}, {"mlp.fc2.", "mlp.fc2."}},
            {"attention.attention.query.", "attention.attention.key.", "attention.attention.value."},
            {model + "embeddings.mask_token", model + "classifier."}};
}

}  // namespace detail

/// The tensors of a tower's file under timm's names. The naming is told by its keys: timm (also below "visual.trunk."),
/// open_clip and OpenAI, Meta's DINOv2, Hugging Face's CLIP, SigLIP and DINOv2. Classifier heads are dropped.
template <class = void>
Checkpoint timm_named(const Checkpoint& file) {
    const auto has = [&](const std::string& name) { return file.find(name) != nullptr; };
    const auto as_checkpoint = [&](std::vector<TensorInfo> tensors) { return Checkpoint{file.file(), std::move(tensors)}; };
    if (has("visual.trunk.pos_embed")) return file.below("visual.trunk");
    for (const std::string visual : {"visual.", "module.visual."})
        if (has(visual + "class_embedding")) return as_checkpoint(detail::rename_tower(file, detail::open_clip_names(visual)));
    for (const std::string model : {"vision_model.", "vision_tower.vision_model."})
        if (has(model + "embeddings.position_embedding.weight"))
            return as_checkpoint(detail::rename_tower(file, detail::hugging_face_names(model)));
    for (const std::string model : {"", "dinov2.", "dinov2_with_registers."})
        if (has(model + "embeddings.position_embeddings")) {
            auto tensors = detail::rename_tower(file, detail::hugging_face_dinov2_names(model));
            if (has(model + "embeddings.register_tokens")) detail::fold_class_position(tensors);
            return as_checkpoint(std::move(tensors));
        }

    std::vector<TensorInfo> tensors;
    const bool              meta = has("mask_token");
    for (TensorInfo t : file.tensors()) {
        if (t.name == "mask_token" || t.name.starts_with("head.")) continue;
        if (t.name == "register_tokens") t.name = "reg_token";
        tensors.push_back(std::move(t));
    }
    if (meta && has("register_tokens")) detail::fold_class_position(tensors);
    return as_checkpoint(std::move(tensors));
}

/// Has a tower filled from a file of any of the namings above. A position table of another grid is resampled. The
/// pooling head, which features do not need, may be in the file or not.
template <Backend B>
void add_tower(Loading<B>& loading, Vit<B>& vit, const Checkpoint& file) {
    const VitConfig& c = vit.config;
    Checkpoint       named = timm_named(file);
    const std::size_t n_prefix = c.n_positions() - c.n_patches();
    // timm takes an older routine for CLIP's own files.
    const bool antialias = !file.find("visual.class_embedding") && !file.find("module.visual.class_embedding");
    if (const TensorInfo* table = named.find("pos_embed");
        table && table->shape.size() == 3 && table->shape[0] == 1 && table->shape[2] == c.d_model && table->shape[1] != c.n_positions() &&
        is_square_grid(table->shape[1], n_prefix)) {
        std::vector<TensorInfo> tensors(named.tensors());
        const auto              at = std::ranges::find_if(tensors, [](const TensorInfo& t) { return t.name == "pos_embed"; });
        *at = detail::tensor_of("pos_embed", {1, c.n_positions(), c.d_model},
                                resample_positions(to_floats(*table), c.d_model, n_prefix, c.grid(), antialias), table->file);
        named = Checkpoint{named.file(), std::move(tensors)};
    }
    const auto of_pool = [](std::string_view name) { return name.starts_with("attn_pool."); };
    if (!c.attention_pool) loading.add(vit, std::move(named), {}, of_pool);
    else if (named.find("attn_pool.latent")) loading.add(vit, std::move(named));
    else loading.add(vit, std::move(named), {}, {}, of_pool);
}

/// The same at once. Throws LoadError.
template <Backend B>
void load_tower(B& be, Vit<B>& vit, const Checkpoint& file, const LoadOptions& options = {}) {
    Loading<B> loading{be, options};
    add_tower(loading, vit, file);
    loading.finish();
}

/// The words of a configuration for the sizes of a tower.
struct TowerKeys {
    const char *d_model = "embed_dim", *n_layers = "depth", *n_heads = "num_heads", *image_size = "img_size", *patch_size = "patch_size";
};

/// Throws ConfigError unless a tower of these sizes can be run.
template <class = void>
void expect_tower(const VitConfig& v, const ConfigReader& c, const TowerKeys& keys = {}) {
    constexpr std::size_t most_patches = std::size_t{1} << 16;
    if (v.d_model % v.n_heads != 0) c.refuse(keys.n_heads, std::string("a divisor of ") + keys.d_model + " " + std::to_string(v.d_model));
    if (v.d_model / v.n_heads > 256) c.refuse(keys.n_heads, "one that gives heads of at most 256");
    if (v.n_layers < 2) c.refuse(keys.n_layers, "at least 2: features are those of the second-to-last block");
    if (v.image_size < v.patch_size) c.refuse(keys.image_size, std::string("at least ") + keys.patch_size + " " + std::to_string(v.patch_size));
    if (v.n_patches() > most_patches) c.refuse(keys.image_size, "one that gives at most " + std::to_string(most_patches) + " patches");
}

/// A configuration with arguments of timm's VisionTransformer put over it. Throws ConfigError.
template <class = void>
VitConfig with_timm_args(VitConfig v, const ConfigReader& args) {
    const double ratio = args.real("mlp_ratio", v.d_model == 1152 ? 3.7362 : static_cast<double>(v.d_ff) / static_cast<double>(v.d_model));
    v.image_size = args.count("img_size", v.image_size, 1 << 16);
    v.patch_size = args.count("patch_size", v.patch_size, 1 << 12);
    v.d_model = args.count("embed_dim", v.d_model);
    v.n_layers = args.count("depth", v.n_layers, 4096);
    v.n_heads = args.count("num_heads", v.n_heads);
    v.n_registers = static_cast<std::size_t>(args.integer("reg_tokens", 0, 1 << 12, static_cast<std::int64_t>(v.n_registers)));
    if (args.has("init_values")) v.layer_scale = args.real("init_values") != 0;
    v.class_token = args.flag("class_token", v.class_token);
    v.pos_embed_prefix = !args.flag("no_embed_class", !v.pos_embed_prefix);
    v.norm_pre = args.flag("pre_norm", v.norm_pre);
    if (!(ratio > 0 && ratio < 1024)) args.refuse("mlp_ratio", "over 0, below 1024");
    v.d_ff = static_cast<std::size_t>(static_cast<double>(v.d_model) * ratio);
    if (args.has("global_pool")) v.attention_pool = args.text("global_pool") == "map";
    if (args.has("act_layer")) v.act = args.choice("act_layer", {"gelu", "quick_gelu", "gelu_tanh"}) == "gelu" ? Activation::gelu_erf
                                       : args.text("act_layer") == "quick_gelu" ? Activation::quick_gelu : Activation::gelu_tanh;
    expect_tower(v, args);
    return v;
}

/// The tower that a timm hub config.json describes: "architecture" gives the published sizes, "model_args" overrides
/// them. Throws ConfigError.
template <class = void>
VitConfig timm_config(const ConfigReader& c, std::string_view args_key = "model_args") {
    const std::string architecture = c.text("architecture");
    auto              published = vit::from_timm_name(architecture);
    if (!published)
        c.refuse("architecture", "vit_base_patch16_clip_224, vit_large_patch14_clip_224, vit_large_patch14_clip_336, vit_base_patch16_siglip_224, "
                                 "vit_base_patch16_siglip_256, vit_base_patch16_siglip_384, vit_so400m_patch14_siglip_224, "
                                 "vit_so400m_patch14_siglip_384, vit_large_patch14_reg4_dinov2, vit_large_patch16_224");
    return c.has(args_key) ? with_timm_args(*published, c.object(args_key)) : *published;
}

}  // namespace prism
