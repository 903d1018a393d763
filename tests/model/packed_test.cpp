// Packed models: the same bits as the folders they were packed from, and files that are damaged or of another revision.
#include "generate/support.hpp"
#include "model/whole.hpp"
#include "prism/generate/policy.hpp"
#include "prism/image/read.hpp"
#include "prism/model/pack.hpp"
#include "prism/model/store_as.hpp"

#include <array>
#include <cstring>
#include <optional>
#include <set>

using namespace prism;
using namespace prism::test;

namespace {

/// The formats to pack in; nothing is as stored.
constexpr std::array formats{std::optional<Dtype>{}, std::optional{Dtype::f32}, std::optional{Dtype::bf16}, std::optional{Dtype::f16},
                             std::optional{Dtype::q8}, std::optional{Dtype::q4}, std::optional{Dtype::q4m}};

PretrainedOptions kept_as(std::optional<Dtype> format) {
    PretrainedOptions options;
    if (format) options.load.kept = keep_weights_as(*format);
    return options;
}

/// Whether all parameters lie in one file, in the types and layouts that they have elsewhere, with the same bytes.
template <class M>
void check_same_weights(const M& packed, const M& direct) {
    std::vector<std::pair<std::string, TensorInfo>> expected;
    visit(direct, [&](const std::string& path, const auto& p) {
        if (!p.shape().empty()) expected.emplace_back(path, p.stored());
    });
    auto        next = expected.begin();
    const void* owner = nullptr;
    visit(packed, [&](const std::string& path, const auto& p) {
        if (p.shape().empty()) return;
        REQUIRE(next != expected.end());
        const auto& [name, want] = *next++;
        const TensorInfo found = p.stored();
        if (!owner) owner = found.owner.get();
        const auto bytes = static_cast<std::size_t>(packed_bytes(want));
        const bool same = path == name && found.dtype == want.dtype && found.shape == want.shape && found.panels == want.panels && std::memcmp(found.data, want.data, bytes) == 0;
        CHECK_MESSAGE(same, path);
        CHECK_MESSAGE(found.owner.get() == owner, path);  // used where it lies: nothing was copied
        if (path.ends_with("embed_tokens.weight")) return;  // read by rows, or, where the head is tied to it, in products too
        CHECK_MESSAGE(found.panels == (path.find("weight") != path.npos && p.shape().size() > 1), path);
    });
    CHECK(next == expected.end());
}

std::vector<float> logits(Cpu& be, const LanguageModel<Cpu>& llm, const std::vector<std::int32_t>& ids) {
    struct Borrowed {
        const LanguageModel<Cpu>& llm;
    };
    const Borrowed         model{llm};
    Session<Cpu, Borrowed> session{be, model, {.max_tokens = ids.size()}};
    std::vector<float>     out;
    session.all_logits(ids, [&](std::size_t, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); });
    return out;
}

/// A small tower of our own, packed, as bytes.
const VitConfig eye_with_register = [] {
    VitConfig c = eye;
    c.n_registers = 1;
    return c;
}();
std::string small_packed() {
    Cpu                  be{{.threads = 1}};
    PretrainedTower<Cpu> tower{Vit<Cpu>{eye_with_register}, {.stats = statistics::half, .size = 8}};
    randomise(be, tower.vit, 1);
    std::string text;
    packing(tower).write([&](std::span<const std::byte> piece) { text.append(reinterpret_cast<const char*>(piece.data()), piece.size()); }, "small");
    return text;
}
/// A packed file with other contents around the same weights.
void repack(const std::filesystem::path& from, const std::filesystem::path& to, const std::function<void(Json&)>& change) {
    Bundle bundle = read_bundle(MappedFile::open(from));
    change(bundle.contents);
    write_bundle(to, bundle.contents, bundle.entries);
}

/// Out of line, because GCC 12 warns of dangling pointers where it is not.
[[gnu::noinline]] OneEye<Cpu> one_eye() { return {}; }

}  // namespace

TEST_CASE("model/packed: vision-language models of every layout and in every format answer with the same bits as their folders") {
    Cpu                                be{{.threads = 2}};
    ModelFolder                         work, llava;
    std::vector<std::filesystem::path> folders = reference_cases("vlm");
    llava.copy("tokenizers/llama");
    llava.write("config.json", LlavaParts{}.config);
    llava.write("model.safetensors", LlavaParts{}.older());
    folders.push_back(llava.path());
    std::set<Layout> layouts;
    for (const auto& folder : folders)
        for (const auto format : formats) {
            CAPTURE(folder.string());
            CAPTURE(std::string(format ? to_string(*format) : "as stored"));
            const auto direct = from_pretrained(be, folder, kept_as(format));
            layouts.insert(direct.layout);
            const std::uint64_t bytes = pack(work / "model.prism", direct);
            CHECK(bytes == std::filesystem::file_size(work / "model.prism"));
            const auto packed = from_pretrained(be, work / "model.prism");
            CHECK(layout_of(work / "model.prism") == direct.layout);
            CHECK(packed.layout == direct.layout);
            CHECK(packed.prompt_style == direct.prompt_style);
            CHECK(packed.picture_at == direct.picture_at);
            CHECK(packed.image_token == direct.image_token);
            CHECK(packed.action_vocabulary.size == direct.action_vocabulary.size);
            CHECK(packed.action_vocabulary.n_bins == direct.action_vocabulary.n_bins);
            REQUIRE(packed.action_statistics.size() == direct.action_statistics.size());
            for (const auto& entry : direct.action_statistics) {
                const ActionStatistics &want = entry.second, &found = packed.action_statistics.at(entry.first);
                CHECK((found.q01 == want.q01 && found.q99 == want.q99 && found.mask == want.mask));
            }
            PrismaticConfig config = direct.model.config;
            for (std::size_t i = 0; i < config.towers.size(); ++i) config.towers[i].vit = detail::loaded_config(direct.model.towers[i]);
            CHECK(to_json(packed.model.config) == to_json(config));
            check_same_weights(packed.model, direct.model);
            CHECK(run(be, packed.model) == run(be, direct.model));  // soft tokens bit by bit, and greedy ids

            REQUIRE((packed.tokenizer && direct.tokenizer));
            const Tokenizer tokenizer = tokenizer_from_pretrained(work / "model.prism");
            const std::string text = "In: What is <PAD> this, \xf0\x9f\x98\x81?\nOut:</s>";
            for (const bool special : {false, true}) {
                const auto ids = direct.tokenizer->encode(text, {.parse_special = special});
                CHECK(packed.tokenizer->encode(text, {.parse_special = special}) == ids);
                CHECK(tokenizer.encode(text, {.parse_special = special}) == ids);
                CHECK(packed.tokenizer->decode(ids, {.skip_special = special}) == direct.tokenizer->decode(ids, {.skip_special = special}));
            }
            CHECK(packed.tokenizer->pad_id() == direct.tokenizer->pad_id());
            CHECK(packed.tokenizer->eos_id() == direct.tokenizer->eos_id());

            if (!std::filesystem::exists(folder / "image.png")) continue;
            const Image image = read_image(folder / "image.png");
            if (direct.layout == Layout::openvla) {
                const std::string key = direct.action_statistics.begin()->first;
                Policy            a{be, direct, key}, b{be, packed, key};
                const Action      want = a.act(image, "Pick up the RED square"), found = b.act(image, "Pick up the RED square");
                CHECK((found.prompt == want.prompt && found.input_ids == want.input_ids && found.token_ids == want.token_ids && found.values == want.values));
            } else {
                Chat a{be, direct}, b{be, packed};
                a.show(image), b.show(image);
                const Answer want = a.ask("What is in it?", {.max_new_tokens = 8}), found = b.ask("What is in it?", {.max_new_tokens = 8});
                CHECK((found.prompt == want.prompt && found.input_ids == want.input_ids && found.output_ids == want.output_ids && found.text == want.text));
                std::vector<float> of_a, of_b;
                a.session().all_logits(want.input_ids, [&](std::size_t, std::span<const float> row) { of_a.insert(of_a.end(), row.begin(), row.end()); });
                b.session().all_logits(want.input_ids, [&](std::size_t, std::span<const float> row) { of_b.insert(of_b.end(), row.begin(), row.end()); });
                CHECK((of_a == of_b && !of_a.empty()));
            }
        }
    CHECK(layouts == std::set{Layout::prismatic_run, Layout::openvla, Layout::llava});
}

TEST_CASE("model/packed: decoders alone give the same logits, and a tokenizer beside them comes along") {
    Cpu        be{{.threads = 2}};
    ModelFolder work;
    for (const auto& folder : reference_cases("lm"))
        for (const auto format : formats) {
            CAPTURE(folder.string());
            const auto direct = language_model_from_pretrained(be, folder, kept_as(format));
            pack(work / "model.prism", direct);
            const auto packed = language_model_from_pretrained(be, work / "model.prism");
            CHECK_FALSE(packed.tokenizer);
            CHECK(layout_of(work / "model.prism") == Layout::language_model);
            CHECK(to_json(packed.llm.config()) == to_json(direct.llm.config()));
            const std::vector<std::int32_t> ids{1, 5, 17, 200, 3, 9};
            CHECK(logits(be, packed.llm, ids) == logits(be, direct.llm, ids));
            CHECK(logits(be, language_model_from_pretrained(be, work / "model.prism", {.mode = FileMode::copy}).llm, ids) == logits(be, direct.llm, ids));
            const bool tied = std::visit([](const auto& c) { return c.tied_embeddings; }, direct.llm.config());
            if (!tied) check_same_weights(packed.llm, direct.llm);
        }
    CHECK_THROWS_WITH_AS(tokenizer_from_pretrained(work / "model.prism"), doctest::Contains("without a tokenizer"), LoadError);

    ModelFolder both;
    both.copy("tokenizers/llama"), both.copy("lm/llama-bf16-sharded");
    const auto direct = language_model_from_pretrained(be, both.path());
    pack(work / "model.prism", direct);
    const std::string text = "a</s> b <PAD>";
    CHECK(tokenizer_from_pretrained(work / "model.prism").encode(text, {.parse_special = true}) == direct.tokenizer->encode(text, {.parse_special = true}));
    CHECK(tokenizer_from_pretrained(work / "model.prism").size() == direct.tokenizer->size());
}

TEST_CASE("model/packed: towers alone give the same features, at other sizes too") {
    Cpu        be{{.threads = 2}};
    ModelFolder work;
    for (const auto& folder : reference_cases("vision")) {
        CAPTURE(folder.string());
        for (const auto format : formats) {
            const auto direct = tower_from_pretrained(be, folder, 0, kept_as(format));
            pack(work / "model.prism", direct);
            const auto packed = tower_from_pretrained(be, work / "model.prism");
            CHECK(layout_of(work / "model.prism") == Layout::tower);
            CHECK(to_json(packed.transform) == to_json(direct.transform));
            check_same_weights(packed.vit, direct.vit);
            const std::size_t side = direct.vit.config.image_size;
            CHECK(features(be, packed.vit, normal(3 * side * side, 1)) == features(be, direct.vit, normal(3 * side * side, 1)));
        }
        pack(work / "model.prism", tower_from_pretrained(be, folder));
        const std::size_t other = 2 * tower_from_pretrained(be, folder).vit.config.image_size;
        const auto        direct = tower_from_pretrained(be, folder, other), packed = tower_from_pretrained(be, work / "model.prism", other);
        CHECK(packed.transform.size == other);
        CHECK(features(be, packed.vit, normal(3 * other * other, 1)) == features(be, direct.vit, normal(3 * other * other, 1)));
        CHECK_THROWS_AS(tower_from_pretrained(be, work / "model.prism", 1), ConfigError);
    }
}

TEST_CASE("model/packed: a pooling head that a file left out is left out of the packed file, too") {
    Cpu        be{{.threads = 1}};
    ModelFolder work;
    VitConfig  pooled = eye_with_register;
    pooled.attention_pool = true;
    PretrainedTower<Cpu> tower{Vit<Cpu>{pooled}, {.stats = statistics::half, .size = 8}};
    auto                 tensors = random_tensors(tower.vit, 3);
    std::erase_if(tensors, [](const TensorInfo& t) { return t.name.starts_with("attn_pool."); });
    load_tower(be, tower.vit, Checkpoint{"without", tensors});
    pack(work / "model.prism", tower);
    const auto packed = tower_from_pretrained(be, work / "model.prism");
    CHECK_FALSE(packed.vit.config.attention_pool);
    CHECK(features(be, packed.vit, normal(3 * 64, 1)) == features(be, tower.vit, normal(3 * 64, 1)));
}

TEST_CASE("model/packed: a model of one's own is packed with its settings, and loads like any other file") {
    Cpu         be{{.threads = 1}};
    ModelFolder  work;
    auto        model = one_eye(), again = one_eye(), wrong = one_eye();
    wrong.eye = Linear<Cpu>{12, 17};
    randomise(be, model, 5, Dtype::bf16);
    packing_of_module(model, {{"d", 16}}).write(work / "mine.prism");
    const PackedModel packed = PackedModel::open(work / "mine.prism");
    CHECK(packed.settings.count("d") == 16);
    CHECK_FALSE(packed.tokenizer);
    load(be, again, packed.weights);
    check_same_weights(again, model);
    CHECK(says(message<LoadError>([&] { load(be, wrong, packed.weights); }), "'eye.weight' (expected [17, 12], found [16, 12])"));
    CHECK(says(message<LoadError>([&] { from_pretrained(be, work / "mine.prism"); }), "a model of somebody's own"));
}

TEST_CASE("model/packed: packing a packed model writes the same file again, even over itself") {
    Cpu        be{{.threads = 1}};
    ModelFolder work;
    pack(work / "first.prism", from_pretrained(be, reference("vlm/openvla-hf"), kept_as(Dtype::q4)));
    const std::string first = read_file(work / "first.prism");
    const auto        packed = from_pretrained(be, work / "first.prism");
    pack(work / "first.prism", packed);
    CHECK(read_file(work / "first.prism") == first);
    CHECK(run(be, packed.model).ids.size() == 10);  // its own file is still mapped
}

TEST_CASE("model/packed: what a file was not packed for is refused in one sentence") {
    Cpu        be{{.threads = 1}};
    ModelFolder work;
    pack(work / "vla.prism", from_pretrained(be, reference("vlm/openvla-hf"), kept_as(Dtype::q4)));
    pack(work / "tower.prism", tower_from_pretrained(be, reference("vision/clip-gelu")));
    pack(work / "llm.prism", language_model_from_pretrained(be, reference("lm/qwen2"), kept_as(Dtype::q8)));
    const std::string converted = message<ConfigError>([&] { from_pretrained(be, work / "vla.prism", kept_as(Dtype::f32)); });
    CHECK(says(converted, "vla.prism"));
    CHECK(says(converted, "as-stored, because a packed file is used as it is; this one holds matrices in q8, q4"));
    CHECK(says(message<ConfigError>([&] { tower_from_pretrained(be, work / "tower.prism", 0, kept_as(Dtype::q8)); }), "matrices in f32"));
    CHECK(says(message<ConfigError>([&] { language_model_from_pretrained(be, work / "llm.prism", kept_as(Dtype::q8)); }), "matrices in"));
    CHECK(says(message<LoadError>([&] { from_pretrained(be, work / "tower.prism"); }), "vision tower alone"));
    CHECK(says(message<LoadError>([&] { from_pretrained(be, work / "llm.prism"); }), "language model alone"));
    CHECK(says(message<LoadError>([&] { tower_from_pretrained(be, work / "vla.prism"); }), "is a packed openvla, and no timm-tower"));
    CHECK(says(message<LoadError>([&] { language_model_from_pretrained(be, work / "tower.prism"); }), "is a packed timm-tower, and no language-model"));

    const auto refused = [&](const std::function<void(Json&)>& change, std::string_view part) {
        repack(work / "vla.prism", work / "other.prism", change);
        for (const std::string& what : {message<FormatError>([&] { from_pretrained(be, work / "other.prism"); }), message<FormatError>([&] { layout_of(work / "other.prism"); }),
                                       message<FormatError>([&] { tokenizer_from_pretrained(work / "other.prism"); })}) {
            CHECK(says(what, std::string(part)));
            CHECK(says(what, "other.prism"));
            CHECK(what.find('\n') == what.npos);
        }
    };
    refused([](Json& json) { json["panels"]["revision"] = panel_revision + 1; }, "revision " + std::to_string(panel_revision + 1) + ", and this prism reads panels of 16 rows, revision " + std::to_string(panel_revision) + ": pack the model again");
    refused([](Json& json) { json["panels"]["width"] = 32; }, "panels of 32 rows, revision 1, and this prism reads panels of 16 rows");
    refused([](Json& json) { json.erase("panels"); }, "'panels' is missing");
    refused([](Json& json) { json.erase("layout"); }, "'layout' is missing");
    refused([](Json& json) { json["tokenizer"]["added"] = {{{"content", "x"}, {"role", "king"}}}; }, "'tokenizer.added.0.role' is \"king\"");
    repack(work / "vla.prism", work / "other.prism", [](Json& json) { json["layout"] = "onion"; });
    CHECK(says(message<FormatError>([&] { layout_of(work / "other.prism"); }), "the layout 'onion' is none that is known here"));

    struct Bad { const char* pointer; Json value; const char* reported; };
    for (const Bad& bad : {Bad{"/settings/model/towers/0/vit/n_heads", 0, "'settings.model.towers.0.vit.n_heads' is 0"}, Bad{"/settings/model/towers/0/vit/n_layers", 4097, "'settings.model.towers.0.vit.n_layers' is 4097"},
                           Bad{"/settings/model/towers/0/vit/act", "relu", "'settings.model.towers.0.vit.act' is \"relu\""}, Bad{"/settings/model/towers/0/vit/norm_eps", 0, "'settings.model.towers.0.vit.norm_eps' is 0"},
                           Bad{"/settings/model/towers/1/transform/size", 28, "'settings.model.towers.1.transform.size' is 28"}, Bad{"/settings/model/towers/1/transform/std", {1, 1, 0}, "'settings.model.towers.1.transform.std'"},
                           Bad{"/settings/model/towers/1/transform/strategy", "squash", "'settings.model.towers.1.transform.strategy'"}, Bad{"/settings/model/towers", Json::array(), "'settings.model.towers' is []"},
                           Bad{"/settings/model/llm/head_dim", 15, "'settings.model.llm.head_dim' is 15"}, Bad{"/settings/model/llm/n_kv_heads", 3, "'settings.model.llm.n_kv_heads' is 3"},
                           Bad{"/settings/model/llm/family", "gpt", "'settings.model.llm.family' is \"gpt\""}, Bad{"/settings/model/projector", "conv", "'settings.model.projector' is \"conv\""},
                           Bad{"/settings/prompt_style", nullptr, "'settings.prompt_style' is missing"}, Bad{"/settings/action_vocabulary/n_bins", 0, "'settings.action_vocabulary.n_bins' is 0"}}) {
        repack(work / "vla.prism", work / "other.prism", [&](Json& json) { json[Json::json_pointer(bad.pointer)] = bad.value; });
        const std::string what = message<ConfigError>([&] { from_pretrained(be, work / "other.prism"); });
        CHECK_MESSAGE(says(what, bad.reported), what);
        CHECK(says(what, "other.prism"));
    }
    repack(work / "vla.prism", work / "other.prism", [&](Json& json) { json["settings"]["model"]["towers"][0]["vit"]["n_layers"] = 4096; });
    CHECK(says(message<LoadError>([&] { from_pretrained(be, work / "other.prism"); }), "missing: 'vision_backbone.0.blocks."));
}

TEST_CASE("model/packed: a tensor that is not what it says is refused by its name") {
    ModelFolder work;
    work.TempFolder::write("small.prism", small_packed());
    const Json                   contents = read_bundle(MappedFile::open(work / "small.prism")).contents;
    const std::vector<std::byte> bytes(4096);
    const auto                   refused = [&](const Json& about, std::size_t n, const std::string& part) {
        write_bundle(work / "x.prism", contents, std::vector<BundleEntry>{{"w", about, std::span(bytes).first(n)}});
        const std::string what = message<FormatError>([&] { PackedModel::open(work / "x.prism"); });
        return says(what, "tensor 'w' ") && says(what, part);
    };
    const auto about = [](const char* dtype, Json shape, const char* layout) { return Json{{"dtype", dtype}, {"shape", std::move(shape)}, {"layout", layout}}; };
    const auto accepted = [&](const Json& json, std::size_t n) {
        write_bundle(work / "x.prism", contents, std::vector<BundleEntry>{{"w", json, std::span(bytes).first(n)}});
        return PackedModel::open(work / "x.prism").weights.tensors().size() == 1;
    };
    CHECK(accepted(about("F32", {2, 3}, "rows"), 24));
    CHECK(accepted(about("F32", Json::array(), "rows"), 4));
    CHECK(accepted(about("F32", {2, 3}, "panels"), 192));
    CHECK(accepted(about("Q4", {3, 33}, "rows"), 3 * 2 * 18));
    CHECK(accepted(about("Q8", {17, 2, 16}, "panels"), 2 * (64 + 512)));
    CHECK(refused(Json::object(), 24, "has a dtype that is none of F32"));
    CHECK(refused(about("I8", {24}, "rows"), 24, "has a dtype that is none of F32"));
    CHECK(refused(about("F32", {2, 3}, "tiles"), 24, "neither 'rows' nor 'panels'"));
    CHECK(refused(about("F32", 6, "rows"), 24, "has no shape"));
    CHECK(refused(about("F32", {1, 1, 1, 1, 1, 1, 1, 1, 6}, "rows"), 24, "has no shape"));
    CHECK(refused(about("F32", {2, -3}, "rows"), 24, "has -3 in its shape"));
    CHECK(refused(about("F32", {2, 0}, "rows"), 24, "has 0 in its shape"));
    CHECK(refused(about("F32", {0, 2}, "rows"), 24, "has 0 in its shape"));
    CHECK(refused(about("F32", {2, 1.5}, "rows"), 24, "has 1.5 in its shape"));
    CHECK(refused(about("F32", {2, 4}, "rows"), 24, "has 24 bytes, where F32 [2, 4] in rows takes 32"));
    CHECK(refused(about("Q8", {2, 3}, "panels"), 24, "has 24 bytes, where Q8 [2, 3] in panels takes 576"));
    CHECK(refused(about("F32", {4294967296, 4294967296}, "rows"), 24, "more values than its 24 bytes"));
    CHECK(refused(about("Q4", {9223372036854775807, 1}, "panels"), 24, "more values than its 24 bytes"));
}

TEST_CASE("model/packed: every damaged form of a file is refused, or opened and run") {
    Cpu               be{{.threads = 1}};
    ModelFolder        work;
    const std::string good = small_packed();
    const auto        use = [&](const std::string& text) {
        work.TempFolder::write("x.prism", text);
        try {
            const auto tower = tower_from_pretrained(be, work / "x.prism", 0, {.mode = FileMode::copy});
            features(be, tower.vit, normal(3 * tower.vit.config.image_size * tower.vit.config.image_size, 1));
            return true;
        } catch (const Error&) {
            return false;
        }
    };
    CHECK(use(good));
    std::uint64_t header = 0;
    std::memcpy(&header, good.data() + 16, sizeof header);
    REQUIRE(good.size() > 4096);
    for (std::size_t n = 0; n < good.size(); n += n < 100 || n + 100 > good.size() ? 1 : 37) CHECK_MESSAGE(!use(good.substr(0, n)), n);
    for (std::size_t at = 0; at < 24; ++at)
        for (const int mask : {0xff, 0x01, 0x80}) {
            std::string bad = good;
            bad[at] = static_cast<char>(bad[at] ^ mask);
            CHECK_MESSAGE(!use(bad), at);
        }
    std::size_t refused = 0, tried = 0;
    for (std::size_t at = 24; at < 24 + header; at += 3)
        for (const int mask : {0x01, 0x04, 0x12}) {
            std::string bad = good;
            bad[at] = static_cast<char>(bad[at] ^ mask);
            if (at % 9 == 0) CHECK_MESSAGE(!use(bad), at);  // the checksum says so
            const std::uint32_t crc = detail::crc32_of(std::as_bytes(std::span{bad}).subspan(24, static_cast<std::size_t>(header)));
            std::memcpy(bad.data() + 12, &crc, sizeof crc);
            refused += !use(bad), ++tried;
        }
    CHECK(refused > tried / 2);
    CHECK(refused < tried);  // some settings may have other values
}

TEST_CASE("model/packed: panels are those of this revision; if this fails, raise panel_revision and the sums here") {
    const auto hash_of = [](Dtype dtype) {
        std::uint64_t hash = 0xcbf29ce484222325ULL;
        with_format(dtype, all_formats{}, [&]<Format F>(F) {
            constexpr std::size_t          rows = 19, cols = 70;
            const std::size_t              stride = blocks_per_row<F>(cols);
            std::vector<typename F::block> blocks(rows * stride);
            std::vector<std::byte>         panels(panels_bytes<F>(rows, cols));
            auto* const                    bytes = reinterpret_cast<unsigned char*>(blocks.data());
            for (std::size_t i = 0; i < blocks.size() * sizeof(typename F::block); ++i) bytes[i] = static_cast<unsigned char>(i * 2654435761U >> 13);
            interleave<F>(Packed<F, host>{blocks.data(), rows, cols, stride}, panels.data(), 0, 2);
            for (const std::byte b : panels) hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3ULL;
        });
        return hash;
    };
    CHECK(panel_revision == 1);
    CHECK(hash_of(Dtype::f32) == 0xdf161af1dc4b9afdULL);
    CHECK(hash_of(Dtype::f16) == 0xe0692e231e1c504aULL);
    CHECK(hash_of(Dtype::bf16) == 0xedddc88538e97aaaULL);
    CHECK(hash_of(Dtype::q8) == 0x8c7cdf4edbad4162ULL);
    CHECK(hash_of(Dtype::q4) == 0x65f036a9b9444ca6ULL);
    CHECK(hash_of(Dtype::q4m) == 0x3abadfe7d6531536ULL);
}
