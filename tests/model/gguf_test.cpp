// Models in GGUF against the same models in Hugging Face's layout. The files are written here as llama.cpp's converters write them.
#include "model/whole.hpp"
#include "prism/model/gguf_files.hpp"
#include "prism/model/pack.hpp"
#include "prism/model/store_as.hpp"
#include "support/gguf.hpp"

#include <cstring>
#include <map>
#include <random>

using namespace prism;
using namespace prism::test;

namespace {

constexpr unsigned f32_type = 0, f16_type = 1, bf16_type = 30;

std::string bytes_of(const TensorInfo& t) {
    const TensorInfo dense = contiguous(t);
    return {reinterpret_cast<const char*>(dense.data), dense.bytes()};
}
unsigned type_of(Dtype t) { return t == Dtype::f32 ? f32_type : t == Dtype::f16 ? f16_type : bf16_type; }

/// convert_hf_to_gguf.py, LlamaModel.permute: reshape(n_head, 2, d / 2, ...).swapaxes(1, 2).
std::string permuted(const TensorInfo& t, std::size_t n_heads) {
    const std::string bytes = bytes_of(t);
    const std::size_t rows = t.shape[0], row = bytes.size() / rows, d = rows / n_heads;
    std::string       out;
    for (std::size_t h = 0; h < n_heads; ++h)
        for (std::size_t j = 0; j < d / 2; ++j)
            for (std::size_t half : {std::size_t{0}, std::size_t{1}}) out += bytes.substr((h * d + half * (d / 2) + j) * row, row);
    return out;
}

const std::vector<std::pair<std::string, std::string>> names{
    {"model.embed_tokens.", "token_embd."}, {"model.norm.", "output_norm."}, {"model.final_layernorm.", "output_norm."}, {"lm_head.", "output."},
    {"input_layernorm.", "attn_norm."}, {"post_attention_layernorm.", "ffn_norm."}, {"self_attn.q_proj.", "attn_q."}, {"self_attn.k_proj.", "attn_k."},
    {"self_attn.v_proj.", "attn_v."}, {"self_attn.o_proj.", "attn_output."}, {"self_attn.dense.", "attn_output."}, {"mlp.gate_proj.", "ffn_gate."},
    {"mlp.up_proj.", "ffn_up."}, {"mlp.down_proj.", "ffn_down."}, {"mlp.fc1.", "ffn_up."}, {"mlp.fc2.", "ffn_down."}};

std::string in_gguf(std::string name) {
    if (name.starts_with("model.layers.")) name = "blk." + name.substr(13);
    for (const auto& [from, to] : names)
        if (const auto at = name.find(from); at != name.npos) return name.replace(at, from.size(), to);
    FAIL("no name for " << name);
    return name;
}

/// The decoder of a config.json, as convert_hf_to_gguf.py describes and names it.
gguf::Writer language_file(const Json& c, const Tensors& tensors) {
    const std::string type = c.at("model_type"), arch = type == "qwen2" ? "qwen2" : type == "phi" ? "phi2" : "llama", p = arch + ".";
    const std::size_t n_heads = c.at("num_attention_heads"), n_kv_heads = c.value("num_key_value_heads", n_heads);
    gguf::Writer      w{{gguf::text_pair("general.architecture", arch), gguf::count_pair(p + "embedding_length", c.at("hidden_size")),
                         gguf::count_pair(p + "feed_forward_length", c.at("intermediate_size")), gguf::count_pair(p + "block_count", c.at("num_hidden_layers")),
                         gguf::count_pair(p + "attention.head_count", n_heads), gguf::count_pair(p + "attention.head_count_kv", n_kv_heads),
                         gguf::count_pair(p + "context_length", c.value("max_position_embeddings", 512)), gguf::real_pair(p + "rope.freq_base", c.value("rope_theta", 1e4f))}};
    if (type == "phi") {
        w.pairs.push_back(gguf::real_pair(p + "attention.layer_norm_epsilon", c.at("layer_norm_eps")));
        w.pairs.push_back(gguf::count_pair(p + "rope.dimension_count", c.at("rotary")));
    } else {
        w.pairs.push_back(gguf::real_pair(p + "attention.layer_norm_rms_epsilon", c.at("rms_norm_eps")));
    }
    std::map<std::string, std::string> fused;  // Phi-2's three projections are one tensor
    for (const TensorInfo& t : tensors) {
        const std::string name = in_gguf(t.name);
        const bool        q = name.find("attn_q.") != name.npos, k = name.find("attn_k.") != name.npos, v = name.find("attn_v.") != name.npos;
        if (arch == "phi2" && (q || k || v)) {
            fused[t.name] = bytes_of(t);
            continue;
        }
        w.add(name, t.shape, type_of(t.dtype), arch == "llama" && (q || k) ? permuted(t, q ? n_heads : n_kv_heads) : bytes_of(t));
    }
    if (arch == "phi2")
        for (std::size_t i = 0; i < c.at("num_hidden_layers"); ++i)
            for (const std::string leaf : {"weight", "bias"}) {
                std::string all;
                for (const char* which : {"q", "k", "v"}) all += fused.at("model.layers." + std::to_string(i) + ".self_attn." + which + "_proj." + leaf);
                const std::size_t d = c.at("hidden_size");
                w.add("blk." + std::to_string(i) + ".attn_qkv." + leaf, leaf == "weight" ? std::vector<std::size_t>{all.size() / 4 / d, d} : std::vector<std::size_t>{all.size() / 4}, f32_type, all);
            }
    return w;
}

void save(const std::filesystem::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::vector<float> logits(Cpu& be, const LanguageModel<Cpu>& llm) {
    struct Decoder {
        const LanguageModel<Cpu>& llm;
    } model{llm};
    Session<Cpu, Decoder>           session{be, model, {.max_tokens = 32}};
    const std::vector<std::int32_t> prompt{1, 5, 17, 200, 33, 34, 35};
    std::vector<float>              all;
    session.all_logits(prompt, [&](std::size_t, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); });
    return all;
}

/// Llama with grouped heads, or Phi-2, with random weights.
Json small_config(const std::string& type) {
    Json c{{"model_type", type}, {"vocab_size", 320}, {"hidden_size", 256}, {"intermediate_size", 512}, {"num_hidden_layers", 2}, {"num_attention_heads", 8}, {"max_position_embeddings", 64}};
    if (type == "phi") c["partial_rotary_factor"] = 0.5, c["rotary"] = 16, c["layer_norm_eps"] = 1e-5f;
    else c["num_key_value_heads"] = 2, c["rms_norm_eps"] = 1e-5f, c["rope_theta"] = 5e5f;
    return c;
}
Tensors random_decoder(const Json& c) { return random_tensors(LanguageModel<Cpu>{language_model_config(ConfigReader{c, "config.json"})}, 1); }

/// The bytes of random blocks of a type, with scales that are numbers.
std::string random_blocks(GgmlType type, std::size_t n_values, unsigned seed) {
    const GgmlLayout& layout = *ggml_layout(type);
    std::mt19937      random{seed};
    std::string       bytes;
    for (std::size_t b = 0; b < n_values / layout.values_per_block; ++b) {
        std::string block(layout.block_bytes, '\0');
        for (char& c : block) c = static_cast<char>(random());
        const auto scale_at = type == GgmlType::q6_k ? std::vector<std::size_t>{208} : type == GgmlType::q5_0 ? std::vector<std::size_t>{0} : std::vector<std::size_t>{0, 2};
        for (const std::size_t at : scale_at) block.replace(at, 2, u16(0x1800 + random() % 0x400));  // 0.002 to 0.004
        bytes += block;
    }
    return bytes;
}

}  // namespace

TEST_CASE("model/gguf: a decoder has the scores of its Hugging Face folder") {
    Cpu be{{.threads = 2}};
    for (const std::string family : {"llama-bf16-sharded", "qwen2"}) {
        CAPTURE(family);
        TempFolder folder;
        const Json config = read_json(reference("lm/" + family) / "config.json");
        save(folder / "model.gguf", language_file(config, Checkpoint::open(reference("lm/" + family)).tensors()).file());
        CHECK(layout_of(folder / "model.gguf") == Layout::language_model);
        const auto expected = language_model_from_pretrained(be, reference("lm/" + family));
        CHECK(logits(be, language_model_from_pretrained(be, folder / "model.gguf").llm) == logits(be, expected.llm));
        CHECK(logits(be, language_model_from_pretrained(be, folder.path()).llm) == logits(be, expected.llm));  // the only one in its folder
    }
    for (const std::string type : {"llama", "mistral", "phi"}) {
        CAPTURE(type);
        ModelFolder   folder;
        const Json    config = small_config(type);
        const Tensors tensors = random_decoder(config);
        folder.write("config.json", config);
        folder.write("model.safetensors", tensors);
        save(folder / "model.gguf", language_file(config, tensors).file());
        CHECK(logits(be, language_model_from_pretrained(be, folder / "model.gguf").llm) == logits(be, language_model_from_pretrained(be, folder.path()).llm));
    }
}

TEST_CASE("model/gguf: quantised weights keep their blocks, or become those of ours that lose least") {
    Cpu be{{.threads = 2}};
    struct Case {
        GgmlType type;
        Dtype    kept;
        double   error;  // of a value, in units of its group's largest
    };
    for (const Case& c : {Case{GgmlType::q8_0, Dtype::q8, 0}, Case{GgmlType::q4_0, Dtype::q4, 0}, Case{GgmlType::q4_1, Dtype::q4m, 0}, Case{GgmlType::q4_k, Dtype::q4m, 2e-3},
                          Case{GgmlType::q5_k, Dtype::q8, 4.1e-3}, Case{GgmlType::q6_k, Dtype::q8, 4.1e-3}, Case{GgmlType::q5_0, Dtype::q8, 4.1e-3}}) {
        CAPTURE(ggml_layout(c.type)->name);
        const Json   config = small_config("llama");
        gguf::Writer file = language_file(config, {});
        std::map<std::string, std::vector<float>> values;
        for (const TensorInfo& t : random_decoder(config)) {
            const std::string name = in_gguf(t.name);
            if (t.shape.size() < 2) {
                file.add(name, t.shape, f32_type, bytes_of(t));
                continue;
            }
            const std::string blocks = random_blocks(c.type, t.elements(), static_cast<unsigned>(values.size()));
            file.add(name, t.shape, static_cast<unsigned>(c.type), blocks);
            auto& expected = values[t.name];
            expected.resize(t.elements());
            dequantise(c.type, std::as_bytes(std::span(blocks)), expected);
        }
        TempFolder folder;
        save(folder / "model.gguf", file.file());
        const Gguf       gguf = Gguf::open(folder / "model.gguf");
        const auto       settings = gguf_language_config(gguf);
        const Checkpoint tensors = gguf_language_tensors(gguf, settings);
        for (const auto& [name, expected] : values) {
            CAPTURE(name);
            const TensorInfo* found = tensors.find(name);
            REQUIRE(found);
            CHECK(found->dtype == c.kept);
            const TensorInfo dense = contiguous(*found);
            std::vector<float> decoded(dense.elements());
            with_format(dense.dtype, all_formats{}, [&]<Format F>(F) {
                using Block = typename F::block;
                std::vector<Block> blocks(decoded.size() / F::values_per_block);
                std::memcpy(blocks.data(), dense.data, blocks.size() * sizeof(Block));
                F::decode(std::span<const Block>(blocks), decoded);
            });
            const std::size_t rows = dense.shape[0], cols = dense.shape[1];
            const bool        turned = name.find("q_proj") != name.npos || name.find("k_proj") != name.npos;
            double            worst = 0;
            for (std::size_t i = 0; i < rows; ++i) {
                const std::size_t d = 32, at = i % d, from = !turned ? i : i / d * d + (at < d / 2 ? 2 * at : 2 * at - d + 1);
                for (std::size_t g = 0; g < cols; g += 32) {
                    float largest = 0;
                    for (std::size_t j = g; j < g + 32; ++j) largest = std::max(largest, std::fabs(expected[from * cols + j]));
                    for (std::size_t j = g; j < g + 32; ++j) worst = std::max(worst, static_cast<double>(std::fabs(decoded[i * cols + j] - expected[from * cols + j]) / largest));
                }
            }
            CHECK(worst <= c.error);
        }
        // Kept as stored, the model's scores are those of its values; the formats' products are tested elsewhere.
        const auto model = language_model_from_pretrained(be, folder / "model.gguf");
        ModelFolder plain;
        Tensors     floats;
        for (const TensorInfo& t : random_decoder(config)) floats.push_back(values.contains(t.name) ? tensor(t.name, t.shape, values[t.name]) : t);
        for (TensorInfo& t : floats)
            if (t.name.find("q_proj") != t.name.npos || t.name.find("k_proj") != t.name.npos) {
                std::vector<float> turned(t.elements());
                for (std::size_t i = 0; i < t.shape[0]; ++i) std::ranges::copy_n(values[t.name].begin() + static_cast<std::ptrdiff_t>(detail::row_in_file(i, 32) * t.shape[1]), static_cast<std::ptrdiff_t>(t.shape[1]), turned.begin() + static_cast<std::ptrdiff_t>(i * t.shape[1]));
                t = tensor(t.name, t.shape, turned);
            }
        plain.write("config.json", config), plain.write("model.safetensors", floats);
        const auto found = logits(be, model.llm), expected = logits(be, language_model_from_pretrained(be, plain.path()).llm);
        float      largest = 0, off = 0;
        for (std::size_t i = 0; i < found.size(); ++i) largest = std::max(largest, std::fabs(expected[i])), off = std::max(off, std::fabs(found[i] - expected[i]));
        CHECK(off <= (c.error > 0 ? 0.05f : 2e-3f) * largest);
    }
}

TEST_CASE("model/gguf: LLaVA's decoder and mmproj file are the model of its Hugging Face folder") {
    Cpu              be{{.threads = 2}};
    const LlavaParts parts;
    ModelFolder      hugging_face;
    hugging_face.write("config.json", parts.config), hugging_face.write("model.safetensors", parts.older());
    const Run expected = run(be, from_pretrained(be, hugging_face.path()).model);

    gguf::Writer language = language_file(parts.config.at("text_config"), parts.llm);
    {   // a vocabulary of bytes
        std::string tokens, types, scores;
        for (int i = 0; i < 640; ++i) {
            constexpr const char* hex = "0123456789ABCDEF";
            const bool  byte = i >= 3 && i < 259;
            tokens += gguf::counted(i == 0 ? "<unk>" : i == 1 ? "<s>" : i == 2 ? "</s>" : byte ? std::string("<0x") + hex[(i - 3) / 16] + hex[(i - 3) % 16] + ">" : "w" + std::to_string(i));
            types += u32(i == 0 ? 2 : i < 3 ? 3 : byte ? 6 : 1), scores += le(static_cast<float>(-i));
        }
        language.pairs.push_back(gguf::text_pair("tokenizer.ggml.model", "llama"));
        language.pairs.push_back(gguf::pair("tokenizer.ggml.tokens", 9, u32(8) + u64(640) + tokens));
        language.pairs.push_back(gguf::pair("tokenizer.ggml.token_type", 9, u32(5) + u64(640) + types));
        language.pairs.push_back(gguf::pair("tokenizer.ggml.scores", 9, u32(6) + u64(640) + scores));
        language.pairs.push_back(gguf::count_pair("tokenizer.ggml.bos_token_id", 1)), language.pairs.push_back(gguf::count_pair("tokenizer.ggml.eos_token_id", 2));
    }
    for (const bool older : {true, false}) {
        CAPTURE(older);
        const gguf::Writer vision{{gguf::text_pair("general.architecture", "clip"), gguf::pair("clip.use_gelu", 7, "\x01"), gguf::count_pair("clip.vision.image_size", 42),
                             gguf::count_pair("clip.vision.patch_size", 14), gguf::count_pair("clip.vision.embedding_length", 32), gguf::count_pair("clip.vision.feed_forward_length", 128),
                             gguf::count_pair("clip.vision.attention.head_count", 2), gguf::count_pair("clip.vision.block_count", 2), gguf::real_pair("clip.vision.attention.layer_norm_epsilon", 1e-5f),
                             gguf::pair("clip.vision.image_mean", 9, u32(6) + u64(3) + le(0.5f) + le(0.25f) + le(0.125f))}};
        const std::vector<std::pair<std::string, std::string>> rules{
            {"embeddings.class_embedding", "v.class_embd"}, {"embeddings.patch_embedding", "v.patch_embd"}, {"embeddings.position_embedding", "v.position_embd"}, {"pre_layrnorm", "v.pre_ln"},
            {"self_attn.q_proj", "attn_q"}, {"self_attn.k_proj", "attn_k"}, {"self_attn.v_proj", "attn_v"}, {"self_attn.out_proj", "attn_out"}, {"layer_norm", "ln"},
            {"mlp.fc1", older ? "ffn_down" : "ffn_up"}, {"mlp.fc2", older ? "ffn_up" : "ffn_down"}, {"encoder.layers.", "v.blk."}, {"linear_1", "mm.0"}, {"linear_2", "mm.2"}};
        Tensors all = parts.tower;
        append(all, parts.projector);
        // With `rounded`, some of the matrices in blocks of 32: one of three that are stacked among them.
        const auto mmproj = [&](bool rounded) {
            gguf::Writer file{vision.pairs};
            for (const TensorInfo& t : all) {
                std::string name = t.name;
                if (name.starts_with("encoder.layers.2.") || name.starts_with("post_layernorm.")) continue;  // the last block, and what is behind it
                for (const auto& [from, to] : rules)
                    if (const auto at = name.find(from); at != name.npos) name.replace(at, from.size(), to);
                if (!rounded || !(name.ends_with("attn_v.weight") || name.ends_with("mm.2.weight"))) {
                    file.add(name, t.shape, type_of(t.dtype), bytes_of(t));
                    continue;
                }
                std::vector<q8::block> blocks(t.elements() / 32);
                q8::encode(to_floats(t), blocks);
                file.add(name, t.shape, static_cast<unsigned>(GgmlType::q8_0), {reinterpret_cast<const char*>(blocks.data()), blocks.size() * sizeof(q8::block)});
            }
            return file.file();
        };
        TempFolder folder;
        save(folder / "ggml-model.gguf", language.file()), save(folder / "mmproj-model.gguf", mmproj(false));
        CHECK(layout_of(folder.path()) == Layout::llava);
        const auto pair = from_pretrained(be, folder.path());
        CHECK(run(be, pair.model) == expected);
        CHECK(run(be, from_pretrained(be, folder / "ggml-model.gguf", {.vision_dir = folder / "mmproj-model.gguf"}).model) == expected);
        CHECK((pair.model.config.towers[0].transform.strategy == Resize::crop && pair.model.config.towers[0].transform.stats.mean == std::array{0.5f, 0.25f, 0.125f}));
        CHECK(pair.image_token == 640);
        CHECK(tokenizer_from_pretrained(folder.path()).size() == 641);
        Chat chat{be, pair, std::size_t{256}};
        chat.show(read_image(reference("vlm/openvla-hf") / "image.png"));
        CHECK_NOTHROW(chat.ask("What?", {.max_new_tokens = 2}));
        pack(folder / "model.prism", pair);
        const auto packed = from_pretrained(be, folder / "model.prism");
        CHECK(run(be, packed.model) == expected);
        CHECK(packed.tokenizer->encode("What?") == pair.tokenizer->encode("What?"));
        Workspace<Cpu> ws{be, 1 << 16};
        CHECK_THROWS_AS(pair.model.towers[0].tokens(be, ws, {}, {}), ConfigError);

        CHECK(says(message<LoadError>([&] { from_pretrained(be, folder / "ggml-model.gguf"); }), "is a decoder alone"));
        CHECK(says(message<LoadError>([&] { language_model_from_pretrained(be, folder / "mmproj-model.gguf"); }), "beside the file of a decoder"));
        CHECK(says(message<ConfigError>([&] { from_pretrained(be, folder / "ggml-model.gguf", {.vision_dir = folder / "ggml-model.gguf"}); }), "'general.architecture' is llama"));
        CHECK(tokenizer_from_pretrained(folder / "ggml-model.gguf").size() == 640);
        CHECK(tokenizer_from_pretrained(folder / "ggml-model.gguf", {.vision_dir = folder / "mmproj-model.gguf"}).id("<image>") == 640);
        save(folder / "mmproj-other.gguf", mmproj(false));
        CHECK(says(message<LoadError>([&] { from_pretrained(be, folder.path()); }), "2 of vision towers (mmproj): name the one that is meant"));
        CHECK(run(be, from_pretrained(be, folder.path(), {.vision_dir = folder / "mmproj-other.gguf"}).model) == expected);

        save(folder / "mmproj-other.gguf", mmproj(true));
        const Run rounded = run(be, from_pretrained(be, folder.path(), {.vision_dir = folder / "mmproj-other.gguf"}).model);
        float     off = 0, largest = 0;
        for (std::size_t i = 0; i < rounded.soft.size(); ++i) off = std::max(off, std::fabs(rounded.soft[i] - expected.soft[i])), largest = std::max(largest, std::fabs(expected.soft[i]));
        CHECK((off > 0 && off < 0.05f * largest));
        std::filesystem::remove(folder / "mmproj-other.gguf");

        save(folder / "second.gguf", language.file());
        CHECK(says(message<LoadError>([&] { from_pretrained(be, folder.path()); }), "2 GGUF files of decoders"));
    }
}

TEST_CASE("model/gguf: what cannot be run is refused with its key") {
    Cpu        be{{.threads = 1}};
    TempFolder folder;
    const auto refused = [&](const std::function<void(gguf::Writer&)>& change) {
        const Json   config = small_config("llama");
        gguf::Writer file = language_file(config, random_decoder(config));
        change(file);
        save(folder / "model.gguf", file.file());
        return message<Error>([&] { language_model_from_pretrained(be, folder / "model.gguf"); });
    };
    const auto with = [&](std::string pair) { return refused([&](gguf::Writer& w) { w.pairs.push_back(std::move(pair)); }); };
    const auto without = [&](std::size_t i) { return refused([&](gguf::Writer& w) { w.pairs.erase(w.pairs.begin() + static_cast<std::ptrdiff_t>(i)); }); };
    const auto instead = [&](std::size_t i, std::string pair) { return refused([&](gguf::Writer& w) { w.pairs[i] = std::move(pair); }); };
    CHECK(says(with(gguf::count_pair("llama.expert_count", 8)), "'llama.expert_count' is 8; allowed: 0"));
    CHECK(says(with(gguf::text_pair("llama.rope.scaling.type", "yarn")), "'llama.rope.scaling.type' is yarn; allowed: none, linear"));
    CHECK(says(with(gguf::real_pair("llama.rope.scaling.factor", 4)), "'llama.rope.scaling.factor' is 4"));
    CHECK(says(with(gguf::real_pair("llama.rope.scale_linear", 4)), "'llama.rope.scale_linear' is 4"));
    CHECK(with(gguf::real_pair("llama.rope.scaling.factor", 0)).empty());
    CHECK(with(gguf::count_pair("llama.attention.sliding_window", 0)).empty());
    CHECK(says(refused([&](gguf::Writer& w) { w.add("blk.0.attn_k.bias", {256}, 8, std::string(8 * 34, '\0')); }), "'blk.0.attn_k.bias'"));
    CHECK(says(refused([&](gguf::Writer& w) { w.pairs.push_back(gguf::text_pair("llama.rope.scaling.type", "linear")), w.pairs.push_back(gguf::real_pair("llama.rope.scaling.factor", 4)); }), "'llama.rope.scaling.factor' is 4"));
    CHECK(says(with(gguf::count_pair("split.count", 3)), "one of several parts"));
    CHECK(says(with(gguf::count_pair("llama.rope.dimension_count", 16)), "'llama.rope.dimension_count' is 16; allowed: the size of a head, 32"));
    CHECK(says(without(1), "'llama.embedding_length' is missing"));
    CHECK(says(instead(0, gguf::text_pair("general.architecture", "gemma")), "'general.architecture' is gemma; allowed: llama, qwen2, phi2"));
    CHECK(says(instead(4, gguf::count_pair("llama.attention.head_count", 7)), "'llama.attention.head_count' is 7; allowed: a divisor of 256"));
    CHECK(says(refused([&](gguf::Writer& w) { w.add("rope_freqs.weight", {2}, f32_type, le(1.f) + le(0.5f)); }), "1 unexpected: 'rope_freqs.weight'"));
    CHECK(refused([&](gguf::Writer& w) { w.add("rope_freqs.weight", {2}, f32_type, le(1.f) + le(1.f)); }).empty());
}
