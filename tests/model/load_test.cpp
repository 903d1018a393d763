// Strict loading: all differences in one message, and nothing changed where there are any.
#include "model/support.hpp"
#include "support/random_weights.hpp"

using namespace prism;
using namespace prism::test;

namespace {

TensorInfo& named(std::vector<TensorInfo>& tensors, const std::string& name) {
    const auto at = std::ranges::find(tensors, name, &TensorInfo::name);
    REQUIRE(at != tensors.end());
    return *at;
}

}  // namespace

TEST_CASE("model/load: missing, unexpected and differently shaped tensors stand in one message, with the nearest names") {
    Cpu      be{{.threads = 1}};
    Vit<Cpu> vit{eye};
    auto     tensors = random_tensors(vit, 1);
    named(tensors, "blocks.1.mlp.fc1.weight").name = "blocks.1.mlp.fcl.weight";  // a slip
    named(tensors, "norm.bias").shape = {4, 2};
    named(tensors, "pos_embed").shape = {5, 1, 8};
    tensors.push_back(tensor("rotary.table", {3}, {1, 2, 3}));
    const Checkpoint  file{"weights.safetensors", tensors};
    const std::string what = message<LoadError>([&] { load(be, vit, file); });
    CHECK(says(what, "weights.safetensors: the weights do not fit the model: "));
    CHECK(says(what, "1 missing: 'blocks.1.mlp.fc1.weight' [12, 8] (the file has 'blocks.1.mlp.fcl.weight')"));
    CHECK(says(what, "2 unexpected: 'blocks.1.mlp.fcl.weight', 'rotary.table'"));
    CHECK(says(what, "2 of another shape: 'pos_embed' (expected [1, 5, 8], found [5, 1, 8]), 'norm.bias' (expected [8], found [4, 2])"));
    visit(vit, [](const std::string&, const auto& p) { CHECK_FALSE(p.bound()); });
}

TEST_CASE("model/load: one tensor of another shape is named by the error's members") {
    Cpu      be{{.threads = 1}};
    Vit<Cpu> vit{eye};
    auto     tensors = random_tensors(vit, 1);
    named(tensors, "blocks.0.attn.qkv.weight").shape = {12, 16};
    try {
        load(be, vit, Checkpoint{"a.safetensors", tensors});
        FAIL("it was taken");
    } catch (const LoadError& e) {
        CHECK((e.file == "a.safetensors" && e.tensor == "blocks.0.attn.qkv.weight" && e.expected == "[24, 8]" && e.found == "[12, 16]"));
        CHECK(std::string(e.what()) == "a.safetensors: tensor 'blocks.0.attn.qkv.weight': expected [24, 8], found [12, 16]");
    }
}

TEST_CASE("model/load: a refused load leaves a loaded module as it was, values and all") {
    Cpu              be{{.threads = 1}};
    Vit<Cpu>         vit{eye};
    const auto       pixels = normal(3 * 8 * 8, 1);
    const Checkpoint good{"good", random_tensors(vit, 1)};
    load(be, vit, good);
    const auto before = features(be, vit, pixels);
    auto       other = random_tensors(vit, 99);
    other.pop_back();
    CHECK_THROWS_AS(load(be, vit, Checkpoint{"bad", other}), LoadError);
    CHECK(features(be, vit, pixels) == before);
    other = random_tensors(vit, 99);
    named(other, "norm.weight").dtype = Dtype::other;  // the very last thing: a type without numbers
    CHECK_THROWS_AS(load(be, vit, Checkpoint{"bad", other}), LoadError);
    CHECK(features(be, vit, pixels) == before);
    load(be, vit, Checkpoint{"other", random_tensors(vit, 99)});
    CHECK(features(be, vit, pixels) != before);
}

TEST_CASE("model/load: several modules are filled from several files, or none of them; all problems of all files are told") {
    Cpu         be{{.threads = 1}};
    Vit<Cpu>    a{eye}, b{eye};
    auto        good = random_tensors(a, 1), bad = random_tensors(b, 2);
    bad.pop_back();
    Loading<Cpu> loading{be};
    loading.add(a, Checkpoint{"a.pt", good});
    loading.add(b, Checkpoint{"b.pt", bad});
    loading.expect_only(Checkpoint{"c.pt", {tensor("known.x", {1}, {1}), tensor("stray", {1}, {1})}}, {"known."});
    const std::string what = message<LoadError>([&] { loading.finish(); });
    CHECK(says(what, "b.pt: the weights do not fit the model: 1 missing: 'norm.bias' [8]"));
    CHECK(says(what, "in c.pt: 1 unexpected: 'stray'"));
    CHECK(what.find("known") == what.npos);
    visit(a, [](const std::string&, const auto& p) { CHECK_FALSE(p.bound()); });
}

TEST_CASE("model/load: names are those of the file after renaming, and what is ignored is not missed") {
    Cpu      be{{.threads = 1}};
    Vit<Cpu> vit{eye};
    auto     tensors = random_tensors(vit, 1);
    for (auto& t : tensors) t.name = "tower." + t.name;
    tensors.push_back(tensor("head.weight", {2}, {1, 2}));
    CHECK_NOTHROW(load(be, vit, Checkpoint{"file", tensors}, NameMap{}.prefix("", "tower"), [](std::string_view name) { return name.starts_with("head."); }));
    CHECK_THROWS_AS(load(be, vit, Checkpoint{"file", tensors}, NameMap{}.prefix("", "tower")), LoadError);
}

TEST_CASE("model/load: a tied head that is stored all the same is passed over, and an untied one is not") {
    for (bool tied : {true, false}) {
        Cpu                be{{.threads = 1}};
        const LlamaConfig  c{.vocab_size = 9, .d_model = 8, .d_ff = 8, .n_layers = 1, .n_heads = 2, .n_kv_heads = 2, .head_dim = 4, .tied_embeddings = tied};
        LanguageModel<Cpu> llm{c};
        auto               tensors = random_tensors(llm, 1);
        tensors.push_back(tensor("model.layers.0.self_attn.rotary_emb.inv_freq", {2}, {1, 2}));
        if (tied) tensors.push_back(tensor("lm_head.weight", {9, 8}, normal(72, 3)));
        CHECK_NOTHROW(load_language_model(be, llm, Checkpoint{"file", tensors}));
        if (!tied) {
            std::erase_if(tensors, [](const TensorInfo& t) { return t.name == "lm_head.weight"; });
            CHECK(says(message<LoadError>([&] { load_language_model(be, llm, Checkpoint{"file", tensors}); }), "1 missing: 'lm_head.weight' [9, 8]"));
        }
    }
}

TEST_CASE("model/load: a pooling head may be in the file or not, and becomes absent where it is not") {
    VitConfig c = eye;
    c.class_token = false, c.attention_pool = true;
    Cpu        be{{.threads = 1}};
    const auto pixels = normal(3 * 8 * 8, 1);
    Vit<Cpu>   with{c}, without{c};
    auto       tensors = random_tensors(with, 1);
    load_tower(be, with, Checkpoint{"with", tensors});
    CHECK(with.attn_pool.latent.bound());

    auto half = tensors;
    std::erase_if(half, [](const TensorInfo& t) { return t.name == "attn_pool.latent"; });
    CHECK(says(message<LoadError>([&] { load_tower(be, without, Checkpoint{"half", half}); }), "unexpected: 'attn_pool.q.weight'"));
    CHECK_FALSE(without.attn_pool.latent.shape().empty());  // refused, so unchanged

    std::erase_if(tensors, [](const TensorInfo& t) { return t.name.starts_with("attn_pool."); });
    load_tower(be, without, Checkpoint{"without", tensors});
    CHECK(without.attn_pool.latent.shape().empty());
    CHECK(features(be, with, pixels) == features(be, without, pixels));

    c.attention_pool = false;
    Vit<Cpu> none{c};
    load_tower(be, none, Checkpoint{"with", random_tensors(with, 1)});
    CHECK(features(be, with, pixels) == features(be, none, pixels));
}

TEST_CASE("model/load: a position table of another grid is resampled, and one that is no grid has another shape") {
    Cpu      be{{.threads = 1}};
    Vit<Cpu> vit{eye};
    auto     tensors = random_tensors(vit, 1);
    named(tensors, "pos_embed") = tensor("pos_embed", {1, 10, 8}, normal(80, 2));
    CHECK_NOTHROW(load_tower(be, vit, Checkpoint{"file", tensors}));  // 1 + 3 x 3 to 1 + 2 x 2
    for (std::vector<std::size_t> shape : {std::vector<std::size_t>{1, 11, 8}, {1, 1, 8}, {1, 0, 8}, {2, 10, 8}, {1, 10, 4}, {10, 8}}) {
        std::size_t n = 1;
        for (std::size_t e : shape) n *= e;
        named(tensors, "pos_embed") = tensor("pos_embed", shape, normal(n, 2));
        CHECK(says(message<LoadError>([&] { load_tower(be, vit, Checkpoint{"file", tensors}); }), "tensor 'pos_embed': expected [1, 5, 8], found " + to_string(std::span<const std::size_t>(shape))));
    }
}
