// One tower under every name that it is published by: the same features.
#include "model/support.hpp"
#include "support/random_weights.hpp"
#include "support/tensors.hpp"

using namespace prism;
using namespace prism::test;

namespace {

using Tensors = std::vector<TensorInfo>;

/// The reference tower of a kind, its pixels, and the features of the file as it is.
struct Tower {
    Cpu                be{{.threads = 2}};
    VitConfig          config;
    Tensors            tensors;
    std::vector<float> pixels, expected;

    explicit Tower(const std::string& kind)
        : config(timm_config(ConfigReader::open(reference("vision/" + kind) / "config.json"))), tensors(Checkpoint::open(reference("vision/" + kind)).tensors()),
          pixels(floats(Checkpoint::open(reference("vision/" + kind) / "expected.safetensors"), "pixel_values")) {
        expected = loaded(tensors);
    }

    std::vector<float> loaded(const Tensors& t) {
        Vit<Cpu> vit{config};
        load_tower(be, vit, Checkpoint{"file", t});
        return features(be, vit, pixels);
    }
    /// The tensors by new names; rules are applied in turn, the first that fits. "" drops one.
    Tensors renamed(const std::vector<std::pair<std::string, std::string>>& rules, const std::string& layers, const Tensors& from) const {
        Tensors out;
        for (TensorInfo t : from) {
            std::string block, rest = t.name;
            if (t.name.starts_with("blocks.")) {
                const std::size_t dot = t.name.find('.', 7);
                block = layers + t.name.substr(7, dot - 7) + ".", rest = t.name.substr(dot + 1);
            }
            const auto rule = std::ranges::find_if(rules, [&](const auto& r) { return rest.starts_with(r.first); });
            REQUIRE_MESSAGE(rule != rules.end(), t.name);
            if (rule->second.empty()) continue;
            t.name = block + rule->second + rest.substr(rule->first.size());
            out.push_back(t);
        }
        return out;
    }
};

/// The fused projection as three: "q.weight", "k.weight", "v.weight" in place of "qkv.weight".
Tensors split_qkv(const Tensors& tensors) {
    Tensors out;
    for (const TensorInfo& t : tensors) {
        const std::size_t at = t.name.find("attn.qkv.");
        if (at == t.name.npos) {
            out.push_back(t);
            continue;
        }
        for (std::size_t i = 0; i < 3; ++i) {
            TensorInfo part = t;
            part.name = t.name.substr(0, at) + "attn." + "qkv"[i] + "." + t.name.substr(at + 9);
            part.shape[0] /= 3, part.data = t.data + i * part.bytes();
            out.push_back(part);
        }
    }
    return out;
}

void reshape(Tensors& tensors, const std::string& name, std::vector<std::size_t> shape) { std::ranges::find(tensors, name, &TensorInfo::name)->shape = std::move(shape); }
void remove(Tensors& tensors, const std::string& prefix) {
    std::erase_if(tensors, [&](const TensorInfo& t) { return t.name.starts_with(prefix); });
}
std::string refusal(Tower& tower, Tensors tensors, const std::string& surplus) {
    tensors.push_back(tensor(surplus, {2}, {1, 2}));
    return message<LoadError>([&] { tower.loaded(tensors); });
}

}  // namespace

TEST_CASE("model/towers: open_clip's and OpenAI's names, with the text tower beside them") {
    Tower tower{"clip-gelu"};
    for (const std::string visual : {"visual.", "module.visual."}) {
        auto t = tower.renamed({{"cls_token", visual + "class_embedding"}, {"pos_embed", visual + "positional_embedding"}, {"patch_embed.proj.weight", visual + "conv1.weight"},
                                {"norm_pre.", visual + "ln_pre."}, {"norm1.", "ln_1."}, {"norm2.", "ln_2."}, {"norm.", visual + "ln_post."}, {"attn.qkv.weight", "attn.in_proj_weight"},
                                {"attn.qkv.bias", "attn.in_proj_bias"}, {"attn.proj.", "attn.out_proj."}, {"mlp.fc1.", "mlp.c_fc."}, {"mlp.fc2.", "mlp.c_proj."}},
                               visual + "transformer.resblocks.", tower.tensors);
        reshape(t, visual + "class_embedding", {tower.config.d_model});
        reshape(t, visual + "positional_embedding", {tower.config.n_positions(), tower.config.d_model});
        t.push_back(tensor(visual + "proj", {2}, {1, 2})), t.push_back(tensor("logit_scale", {}, {1})), t.push_back(tensor("transformer.resblocks.0.ln_1.weight", {2}, {1, 2}));
        CHECK(tower.loaded(t) == tower.expected);
        CHECK(says(refusal(tower, t, visual + "transformer.resblocks.0.gate"), "1 unexpected: '" + visual + "transformer.resblocks.0.gate'"));
        CHECK(says(refusal(tower, t, visual + "extra"), "1 unexpected: '" + visual + "extra'"));
    }
}

TEST_CASE("model/towers: Hugging Face's names of CLIP and SigLIP, with three projections for one") {
    for (const char* kind : {"clip-gelu", "siglip"})
        for (const std::string model : {"vision_model.", "vision_tower.vision_model."}) {
            Tower tower{kind};
            auto  t = tower.renamed({{"cls_token", model + "embeddings.class_embedding"}, {"pos_embed", model + "embeddings.position_embedding.weight"},
                                     {"patch_embed.proj.", model + "embeddings.patch_embedding."}, {"norm_pre.", model + "pre_layrnorm."}, {"norm1.", "layer_norm1."}, {"norm2.", "layer_norm2."},
                                     {"norm.", model + "post_layernorm."}, {"attn.q.", "self_attn.q_proj."}, {"attn.k.", "self_attn.k_proj."}, {"attn.v.", "self_attn.v_proj."},
                                     {"attn.proj.", "self_attn.out_proj."}, {"mlp.", "mlp."}, {"attn_pool.", ""}},
                                    model + "encoder.layers.", split_qkv(tower.tensors));
            if (tower.config.class_token) reshape(t, model + "embeddings.class_embedding", {tower.config.d_model});
            reshape(t, model + "embeddings.position_embedding.weight", {tower.config.n_positions(), tower.config.d_model});
            t.push_back(tensor(model + "embeddings.position_ids", {1, 2}, {0, 1})), t.push_back(tensor(model + "head.probe", {1}, {1}));
            t.push_back(tensor("text_model.embeddings.token_embedding.weight", {1}, {1})), t.push_back(tensor("logit_scale", {}, {1}));
            CHECK(tower.loaded(t) == tower.expected);
            CHECK(says(refusal(tower, t, model + "encoder.layers.1.mlp.fc3.weight"), "1 unexpected: '" + model + "encoder.layers.1.mlp.fc3.weight'"));

            Tensors flat = t;
            for (const char* part : {"q", "k", "v"}) *std::ranges::find(flat, model + "encoder.layers.0.self_attn." + part + "_proj.bias", &TensorInfo::name) = tensor(model + "encoder.layers.0.self_attn." + part + "_proj.bias", {}, {1});
            CHECK(says(message<LoadError>([&] { tower.loaded(flat); }), "expected at least one dimension"));
            Tensors incomplete = t;
            remove(incomplete, model + "encoder.layers.1.self_attn.k_proj.bias");
            CHECK(says(message<LoadError>([&] { tower.loaded(incomplete); }), "encoder.layers.1.self_attn.k_proj.bias' is missing beside"));
            reshape(t, model + "encoder.layers.0.self_attn.v_proj.weight", {tower.config.d_model / 2, 2 * tower.config.d_model});
            CHECK(says(message<LoadError>([&] { tower.loaded(t); }), "encoder.layers.0.self_attn.v_proj.weight': expected the type and width of"));
        }
}

TEST_CASE("model/towers: Meta's DINOv2 and Hugging Face's, with a position for the class token that timm folds into it") {
    Tower       tower{"dino"};
    const auto  d = tower.config.d_model, n = tower.config.n_patches();
    // Undo the folding: any position p for the class token, and the token without it.
    Tensors     unfolded = tower.tensors;
    const auto  p = normal(d, 3);
    auto        token = to_floats(*std::ranges::find(unfolded, std::string("cls_token"), &TensorInfo::name));
    auto        positions = to_floats(*std::ranges::find(unfolded, std::string("pos_embed"), &TensorInfo::name));
    for (std::size_t i = 0; i < d; ++i) token[i] -= p[i];
    positions.insert(positions.begin(), p.begin(), p.end());
    *std::ranges::find(unfolded, std::string("cls_token"), &TensorInfo::name) = tensor("cls_token", {1, 1, d}, token);
    *std::ranges::find(unfolded, std::string("pos_embed"), &TensorInfo::name) = tensor("pos_embed", {1, 1 + n, d}, positions);
    // Folding is one rounding of the class token, which a few layers carry on.
    const auto same = [&](const std::vector<float>& found) { return relative_error(found, tower.expected) < 1000 * u; };

    Tensors meta = unfolded;
    std::ranges::find(meta, std::string("reg_token"), &TensorInfo::name)->name = "register_tokens";
    meta.push_back(tensor("mask_token", {1, d}, normal(d, 4)));
    CHECK(same(tower.loaded(meta)));
    CHECK(says(refusal(tower, meta, "blocks.0.extra"), "1 unexpected: 'blocks.0.extra'"));

    for (const std::string model : {"", "dinov2.", "dinov2_with_registers."}) {
        auto t = tower.renamed({{"cls_token", model + "embeddings.cls_token"}, {"reg_token", model + "embeddings.register_tokens"}, {"pos_embed", model + "embeddings.position_embeddings"},
                                {"patch_embed.proj.", model + "embeddings.patch_embeddings.projection."}, {"norm1.", "norm1."}, {"norm2.", "norm2."}, {"norm.", model + "layernorm."},
                                {"attn.q.", "attention.attention.query."}, {"attn.k.", "attention.attention.key."}, {"attn.v.", "attention.attention.value."}, {"attn.proj.", "attention.output.dense."},
                                {"ls1.gamma", "layer_scale1.lambda1"}, {"ls2.gamma", "layer_scale2.lambda1"}, {"mlp.", "mlp."}},
                               model + "encoder.layer.", split_qkv(unfolded));
        t.push_back(tensor(model + "embeddings.mask_token", {1, d}, normal(d, 4)));
        CHECK(same(tower.loaded(t)));
        CHECK(says(refusal(tower, t, model + "encoder.layer.0.norm3.weight"), "1 unexpected: '" + model + "encoder.layer.0.norm3.weight'"));
    }
}

TEST_CASE("model/towers: without registers the class token keeps its position, in Meta's names and Hugging Face's") {
    Tower tower{"dino"};
    tower.config.n_registers = 0, tower.config.pos_embed_prefix = true;
    Vit<Cpu>   vit{tower.config};
    const auto plain = random_tensors(vit, 1);
    const auto expected = tower.loaded(plain);
    auto       meta = plain;
    meta.push_back(tensor("mask_token", {1, 8}, normal(8, 4)));
    CHECK(tower.loaded(meta) == expected);
    const auto t = tower.renamed({{"cls_token", "embeddings.cls_token"}, {"pos_embed", "embeddings.position_embeddings"}, {"patch_embed.proj.", "embeddings.patch_embeddings.projection."},
                                  {"norm1.", "norm1."}, {"norm2.", "norm2."}, {"norm.", "layernorm."}, {"attn.q.", "attention.attention.query."}, {"attn.k.", "attention.attention.key."},
                                  {"attn.v.", "attention.attention.value."}, {"attn.proj.", "attention.output.dense."}, {"ls1.gamma", "layer_scale1.lambda1"}, {"ls2.gamma", "layer_scale2.lambda1"}, {"mlp.", "mlp."}},
                                 "encoder.layer.", split_qkv(plain));
    CHECK(tower.loaded(t) == expected);
}

TEST_CASE("model/towers: timm's names below visual.trunk, with heads of classifiers, in any type") {
    Tower   tower{"siglip"};
    Tensors trunk = tower.tensors;
    for (auto& t : trunk) t.name = "visual.trunk." + t.name;
    trunk.push_back(tensor("text.token_embedding.weight", {1}, {1})), trunk.push_back(tensor("logit_bias", {}, {1}));
    CHECK(tower.loaded(trunk) == tower.expected);

    Tensors headed = tower.tensors;
    headed.push_back(tensor("head.weight", {2}, {1, 2})), headed.push_back(tensor("head.bias", {2}, {1, 2}));
    CHECK(tower.loaded(headed) == tower.expected);

    Tensors halves;
    for (const auto& t : tower.tensors) halves.push_back(tensor(t.name, t.shape, to_floats(t), Dtype::bf16));
    CHECK(relative_error(tower.loaded(halves), tower.expected) < 0.1);  // bf16 has eight bits
}
