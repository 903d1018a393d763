// Vit: the vision transformers of CLIP, SigLIP, DINOv2 and ImageNet, as timm computes them.
//
//     prism::Vit<B> dino{prism::vit::dinov2_l14_reg4(224)};
//     dino.forward(be, ws, pixels, features);      // [n, 3, 224, 224] -> [n 256, 1024]
//     dino.pooled(be, ws, pixels, vectors);        // [n, 3, 224, 224] -> [n, 1024]
#pragma once

#include "prism/core/error.hpp"
#include "prism/nn/attention.hpp"
#include "prism/nn/mlp.hpp"
#include "prism/nn/norm.hpp"
#include "prism/ops/patchify.hpp"

#include <string>
#include <vector>

namespace prism {

/// Everything that tells one tower from another. Names and defaults are those of timm's VisionTransformer.
struct VitConfig {
    std::size_t image_size = 224, patch_size = 16;  // px
    std::size_t d_model = 768, n_layers = 12, n_heads = 12, d_ff = 3072;
    bool        class_token = true;
    std::size_t n_registers = 0;
    bool        pos_embed_prefix = true;   // the position table covers the class token (timm: not no_embed_class)
    bool        norm_pre = false;          // a norm before the blocks, and no bias in the patch embedding (CLIP)
    bool        layer_scale = false;
    bool        attention_pool = false;    // SigLIP's pooling head
    bool        features_only = false;     // without what comes behind the features: the last block, the last norm, the pooling head
    float       norm_eps = 1e-6f;
    Activation  act = Activation::gelu_erf;

    std::size_t grid() const { return image_size / patch_size; }
    std::size_t n_patches() const { return grid() * grid(); }
    std::size_t n_prefix() const { return (class_token ? 1 : 0) + n_registers; }
    std::size_t n_tokens() const { return n_prefix() + n_patches(); }
    /// Rows of the position table.
    std::size_t n_positions() const { return n_patches() + (pos_embed_prefix ? n_prefix() : 0); }
};

/// Patches as rows, times a matrix. proj.weight [d_model, 3, P, P].
/// Source: timm, layers/patch_embed.py.
template <Backend B>
struct PatchEmbed {
    Linear<B>   proj;
    std::size_t patch_size = 1;

    static constexpr auto params = fields(field("proj", &PatchEmbed::proj));

    PatchEmbed() = default;
    PatchEmbed(std::size_t patch, std::size_t d_model, bool bias) : patch_size(patch) {
        proj.weight = Weight<B>({d_model, 3, patch, patch});
        if (bias) proj.bias = Param<B>({d_model});
    }

    /// pixels [n, 3, H, W]; picture i's patches go to the rows [i stride + first, ...) of x.
    void forward(B& be, Workspace<B>& ws, PixelView<B> pixels, std::size_t first, std::size_t stride, Mat<B> x) const {
        auto              scope = ws.scope();
        const std::size_t n = pixels.extent(0), n_patches = (pixels.extent(2) / patch_size) * (pixels.extent(3) / patch_size);
        Mat<B>            patches = ws.mat(n * n_patches, proj.d_in());
        ops::patchify<B>(be, pixels, patch_size, patches);
        for (std::size_t i = 0; i < n; ++i)
            proj.forward(be, patches.rows(i * n_patches, n_patches), x.rows(i * stride + first, n_patches));
    }
};

/// One pre-norm ViT block. x [n_sequences n_tokens, d_model] is the residual stream, updated in place.
/// Parameter names are timm's, so a timm checkpoint loads without renaming.
/// Source: timm, models/vision_transformer.py, class Block.
template <Backend B>
struct VitBlock {
    LayerNorm<B>     norm1, norm2;
    SelfAttention<B> attn;
    Mlp<B>           mlp;
    LayerScale<B>    ls1, ls2;  // present in DINOv2, absent elsewhere

    static constexpr auto params =
        fields(field("norm1", &VitBlock::norm1), field("attn", &VitBlock::attn), field("ls1", &VitBlock::ls1),
               field("norm2", &VitBlock::norm2), field("mlp", &VitBlock::mlp), field("ls2", &VitBlock::ls2));

    VitBlock() = default;
    explicit VitBlock(const VitConfig& c)
        : norm1(c.d_model, c.norm_eps), norm2(c.d_model, c.norm_eps), attn(c.d_model, c.n_heads), mlp(c.d_model, c.d_ff, c.act),
          ls1(c.layer_scale ? LayerScale<B>(c.d_model) : LayerScale<B>{}), ls2(c.layer_scale ? LayerScale<B>(c.d_model) : LayerScale<B>{}) {}

    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, std::size_t n_sequences, Mat<B> x, K keep = {}) const {
        auto   scope = keep.scope(ws);  // what is taken below is given back on return
        Mat<B> h = ws.like(x);          // [n_sequences n_tokens, d_model]

        keep.copy(be, ws, "x1", x);
        norm1.forward(be, x, h);
        attn.forward_add(be, ws, n_sequences, h, ls1.gamma.view(), x, keep.at("attn"));  // x += gamma * attn(h); plain where gamma is absent

        keep.copy(be, ws, "x2", x);
        h = keep.another(ws, h);
        norm2.forward(be, x, h);
        mlp.forward_add(be, ws, h, ls2.gamma.view(), x, keep.at("mlp"));
    }
};

/// One learned query that attends to all tokens: SigLIP's pooling head. tokens [n_sequences n, d], out [n_sequences, d].
/// Source: timm, layers/attention_pool.py, class AttentionPoolLatent.
template <Backend B>
struct AttentionPool {
    Param<B>     latent;  // [1, 1, d]
    Linear<B>    q, kv, proj;
    LayerNorm<B> norm;
    Mlp<B>       mlp;
    std::size_t  n_heads = 1;

    static constexpr auto params = fields(field("latent", &AttentionPool::latent), field("q", &AttentionPool::q),
                                          field("kv", &AttentionPool::kv), field("proj", &AttentionPool::proj),
                                          field("norm", &AttentionPool::norm), field("mlp", &AttentionPool::mlp));

    AttentionPool() = default;
    explicit AttentionPool(const VitConfig& c)
        : latent({1, 1, c.d_model}), q(c.d_model, c.d_model), kv(c.d_model, 2 * c.d_model), proj(c.d_model, c.d_model),
          norm(c.d_model, c.norm_eps), mlp(c.d_model, c.d_ff, Activation::gelu_erf), n_heads(c.n_heads) {}  // timm 0.9 passes it no activation

    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, std::size_t n_sequences, In<B> tokens, Mat<B> out, K keep = {}) const {
        auto              scope = keep.scope(ws);
        const std::size_t d = q.d_in();
        Mat<B>            keys = ws.mat(tokens.rows(), 2 * d), query = ws.mat(n_sequences, d), mixed = ws.like(query);
        kv.forward(be, tokens, keys);
        for (std::size_t i = 0; i < n_sequences; ++i) q.forward(be, latent.mat(), query.rows(i, 1));
        ops::attention<B>(be, query, keys.cols(0, d), keys.cols(d, d), shape(n_sequences), mixed);
        proj.forward(be, mixed, out);
        keep("x", tokens), keep("query", query), keep("keys", keys), keep("y", mixed);
        keep.copy(be, ws, "out", out);
        Mat<B> h = keep.another(ws, mixed);
        norm.forward(be, out, h);
        mlp.forward_add(be, ws, h, {}, out, keep.at("mlp"));
    }
    AttentionShape shape(std::size_t n_sequences) const {
        const std::size_t head_dim = q.d_in() / n_heads;
        return {.n_heads = n_heads, .n_kv_heads = n_heads, .head_dim = head_dim, .n_sequences = n_sequences,
                .scale = 1.0f / std::sqrt(static_cast<float>(head_dim))};
    }
};

/// A vision tower. Its features (forward) are those of the second-to-last block, without the last norm and without the class
/// and register tokens: what Prismatic, OpenVLA and LLaVA feed their language models. All of it is in tokens and pooled.
/// Source: timm 0.9.10, models/vision_transformer.py, class VisionTransformer; names and shapes are timm's.
template <Backend B>
struct Vit {
    VitConfig                config;
    Param<B>                 cls_token, reg_token, pos_embed;  // [1, 1, d], [1, n_registers, d], [1, n_positions, d]
    PatchEmbed<B>            patch_embed;
    LayerNorm<B>             norm_pre;
    std::vector<VitBlock<B>> blocks;
    LayerNorm<B>             norm;
    AttentionPool<B>         attn_pool;

    static constexpr auto params =
        fields(field("cls_token", &Vit::cls_token), field("reg_token", &Vit::reg_token), field("pos_embed", &Vit::pos_embed),
               field("patch_embed", &Vit::patch_embed), field("norm_pre", &Vit::norm_pre), field("blocks", &Vit::blocks),
               field("norm", &Vit::norm), field("attn_pool", &Vit::attn_pool));

    explicit Vit(const VitConfig& c)
        : config(c), pos_embed({1, c.n_positions(), c.d_model}), patch_embed(c.patch_size, c.d_model, !c.norm_pre) {
        if (c.class_token) cls_token = Param<B>({1, 1, c.d_model});
        if (c.n_registers) reg_token = Param<B>({1, c.n_registers, c.d_model});
        if (c.norm_pre) norm_pre = LayerNorm<B>(c.d_model, c.norm_eps);
        if (!c.features_only) norm = LayerNorm<B>(c.d_model, c.norm_eps);
        if (!c.features_only && c.attention_pool) attn_pool = AttentionPool<B>(c);
        const std::size_t n_blocks = c.n_layers - (c.features_only ? 1 : 0);
        blocks.reserve(n_blocks);
        for (std::size_t i = 0; i < n_blocks; ++i) blocks.emplace_back(c);
    }

    std::size_t n_patches() const { return config.n_patches(); }
    std::size_t d_model() const { return config.d_model; }

    /// x [n n_tokens, d_model] = the tokens of pixels [n, 3, S, S] as the first block reads them.
    template <Keeper K = Forget>
    void embed(B& be, Workspace<B>& ws, PixelView<B> pixels, Mat<B> x, K keep = {}) const {
        const std::size_t n = pixels.extent(0), n_tokens = config.n_tokens(), n_prefix = config.n_prefix();
        expect("Vit", "pixels", {any, 3, config.image_size, config.image_size}, pixels);
        expect("Vit", "x", {n * n_tokens, config.d_model}, x);
        patch_embed.forward(be, ws, pixels, n_prefix, n_tokens, x);
        for (std::size_t i = 0; i < n; ++i) {
            Mat<B> tokens = x.rows(i * n_tokens, n_tokens);
            if (config.class_token) ops::copy<B>(be, cls_token.mat(), tokens.rows(0, 1));
            if (config.n_registers) ops::copy<B>(be, reg_token.mat(), tokens.rows(n_prefix - config.n_registers, config.n_registers));
            const std::size_t first = config.pos_embed_prefix ? 0 : n_prefix;
            ops::add_table<B>(be, pos_embed.mat(), tokens.rows(first, n_tokens - first));
        }
        if (config.norm_pre) {
            keep.copy(be, ws, "embedded", x);
            norm_pre.forward(be, x, x);
        }
    }

    /// out [n n_patches, d_model] = the patch features of pixels [n, 3, S, S], picture by picture. `out` may be columns of
    /// a wider matrix: that is how towers are fused. Throws ShapeError.
    template <Keeper K = Forget>
    void forward(B& be, Workspace<B>& ws, PixelView<B> pixels, Mat<B> out, K keep = {}) const {
        auto              scope = keep.scope(ws);
        const std::size_t n = pixels.extent(0), n_tokens = config.n_tokens();
        expect("Vit", "out", {n * n_patches(), config.d_model}, out);
        const Mat<B> x = stream(be, ws, pixels, config.n_layers - 1, keep);
        for (std::size_t i = 0; i < n; ++i)
            ops::copy<B>(be, x.rows(i * n_tokens + config.n_prefix(), n_patches()), out.rows(i * n_patches(), n_patches()));
    }

    /// out [n n_tokens, d_model] = all tokens of pixels [n, 3, S, S] behind all blocks and the last norm: timm's
    /// forward_features. Throws ShapeError, and ConfigError where the tower has nothing behind its features.
    template <Keeper K = Forget>
    void tokens(B& be, Workspace<B>& ws, PixelView<B> pixels, Mat<B> out, K keep = {}) const {
        if (config.features_only) throw ConfigError{"features_only", "true", "false: the last block and the last norm are not there"};
        auto scope = keep.scope(ws);
        expect("Vit", "out", {pixels.extent(0) * config.n_tokens(), config.d_model}, out);
        const Mat<B> x = stream(be, ws, pixels, blocks.size(), keep);
        keep("stream", x);
        norm.forward(be, x, out);
    }

    /// out [n, d_model] = a vector for each picture: what the pooling head makes of its tokens, or where there is none the
    /// class token. timm's forward without a classifier. Throws ShapeError, and ConfigError where there is neither.
    template <Keeper K = Forget>
    void pooled(B& be, Workspace<B>& ws, PixelView<B> pixels, Mat<B> out, K keep = {}) const {
        auto              scope = keep.scope(ws);
        const std::size_t n = pixels.extent(0), n_tokens = config.n_tokens();
        if (!pools() && !config.class_token) throw ConfigError{"attention_pool", "false", "true, or a class token"};
        expect("Vit", "out", {n, config.d_model}, out);
        Mat<B> all = ws.mat(n * n_tokens, config.d_model);
        tokens(be, ws, pixels, all, keep);
        if (pools()) return attn_pool.forward(be, ws, n, all, out, keep.at("attn_pool"));
        for (std::size_t i = 0; i < n; ++i) ops::copy<B>(be, all.rows(i * n_tokens, 1), out.rows(i, 1));
    }
    /// Whether there is a pooling head: a file may be without the one that the configuration knows.
    bool pools() const { return !attn_pool.latent.shape().empty(); }

private:
    /// The residual stream behind the first `n_blocks` blocks, in scratch of the caller's scope.
    template <Keeper K>
    Mat<B> stream(B& be, Workspace<B>& ws, PixelView<B> pixels, std::size_t n_blocks, K keep) const {
        const std::size_t n = pixels.extent(0);
        Mat<B>            x = ws.mat(n * config.n_tokens(), config.d_model);
        embed(be, ws, pixels, x, keep);
        for (std::size_t i = 0; i < n_blocks; ++i)
            keep.block(be, ws, "blocks", i, x, [&](auto inside) { blocks[i].forward(be, ws, n, x, inside); });
        return x;
    }
};

}  // namespace prism
