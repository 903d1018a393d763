// A large checkpoint does not become larger in memory: weights are used where they lie in their file.
#include "model/support.hpp"
#include "prism/generate/session.hpp"
#include "prism/model/pack.hpp"

#include <fstream>

using namespace prism;
using namespace prism::test;

#if defined(__linux__)

namespace {

/// A line of /proc/self/status, in bytes: "VmRSS", "VmHWM".
std::size_t status_bytes(const std::string& key) {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);)
        if (line.starts_with(key + ":")) return std::stoul(line.substr(key.size() + 1)) * 1024;
    return 0;
}

/// Writes a decoder in bf16, tensor by tensor, without ever holding it.
std::size_t write_weights(const std::filesystem::path& path, const LlamaConfig& config) {
    LanguageModel<Dry>                        llm{config};
    Json                                      header = Json::object();
    std::vector<std::pair<std::size_t, bool>> tensors;  // values, and whether they are factors of a norm
    std::size_t                               at = 0;
    visit(llm, [&](const std::string& name, const auto& p) {
        if (p.shape().empty()) return;
        header[name] = {{"dtype", "BF16"}, {"shape", p.shape()}, {"data_offsets", {at, at + 2 * p.size()}}};
        at += 2 * p.size();
        tensors.emplace_back(p.size(), p.shape().size() == 1);
    });
    const std::string   text = header.dump();
    const std::uint64_t length = text.size();
    std::ofstream       out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof length);
    out << text;
    std::vector<bf16_t> block(1 << 16), ones(1 << 16, bf16_t{1.0f});
    for (std::size_t i = 0; i < block.size(); ++i) block[i] = bf16_t{static_cast<float>(i % 251) / 5000.0f - 0.025f};
    for (const auto& [n, norm] : tensors)
        for (std::size_t done = 0; done < n; done += block.size())
            out.write(reinterpret_cast<const char*>(norm ? ones.data() : block.data()), static_cast<std::streamsize>(2 * std::min(block.size(), n - done)));
    REQUIRE(out.good());
    return at;
}

}  // namespace

TEST_CASE("model/memory: loading and running a large bf16 checkpoint takes its stored size plus a tenth plus the workspace") {
    const LlamaConfig config{.vocab_size = 8000, .d_model = 1024, .d_ff = 4096, .n_layers = 9, .n_heads = 8, .n_kv_heads = 8, .head_dim = 128};
    ModelFolder        folder;
    const std::size_t stored = write_weights(folder / "model.safetensors", config);
    REQUIRE(stored > 300'000'000);
    folder.write("config.json", Json{{"model_type", "llama"}, {"vocab_size", 8000}, {"hidden_size", 1024}, {"intermediate_size", 4096}, {"num_hidden_layers", 9}, {"num_attention_heads", 8}});

    struct TextOnly {
        LanguageModel<Cpu> llm;
    };
    Cpu               be{{.threads = 2}};
    const std::size_t before = status_bytes("VmRSS");
    std::ofstream("/proc/self/clear_refs") << 5;  // the peak starts here; without the right to do so it counts what was before
    const TextOnly    model{std::move(language_model_from_pretrained(be, folder.path()).llm)};
    CHECK(status_bytes("VmRSS") - before < stored + stored / 10);  // in the layout of the kernels; pages of the file are given back
    CHECK(status_bytes("VmHWM") - before < stored + stored / 10);

    constexpr std::size_t   n_tokens = 64;
    const std::size_t       workspace = reading_cost(model.llm, n_tokens, 16).workspace_bytes;
    const std::size_t       cache = 2 * config.n_layers * n_tokens * 1024 * sizeof(float);
    Session<Cpu, TextOnly>  session{be, model, {.max_tokens = n_tokens, .prefill_chunk = n_tokens}};
    std::vector<std::int32_t> ids(n_tokens - 8);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * 131 % 8000);
    CHECK(session.generate(ids, {.max_new_tokens = 4}).ids.size() == 4);
    const std::size_t limit = stored + stored / 10 + workspace + cache;
    MESSAGE("stored " << stored / 1'000'000 << " MB, resident after a forward pass " << (status_bytes("VmRSS") - before) / 1'000'000 << " MB, limit " << limit / 1'000'000 << " MB");
    CHECK(status_bytes("VmRSS") - before < limit);
    CHECK(status_bytes("VmHWM") - before < limit);
}

TEST_CASE("model/memory: opening a packed file reads no weights, and running it takes no more than its size plus the workspace") {
    const LlamaConfig config{.vocab_size = 8000, .d_model = 1024, .d_ff = 4096, .n_layers = 9, .n_heads = 8, .n_kv_heads = 8, .head_dim = 128};
    ModelFolder        folder;
    write_weights(folder / "model.safetensors", config);
    folder.write("config.json", Json{{"model_type", "llama"}, {"vocab_size", 8000}, {"hidden_size", 1024}, {"intermediate_size", 4096}, {"num_hidden_layers", 9}, {"num_attention_heads", 8}});
    Cpu           be{{.threads = 2}};
    std::uint64_t stored = 0;
    {
        const auto model = language_model_from_pretrained(be, folder.path());
        stored = pack(folder / "model.prism", model);
    }
    std::filesystem::remove(folder / "model.safetensors");
    REQUIRE(stored > 300'000'000);

    struct TextOnly {
        LanguageModel<Cpu> llm;
    };
    const std::size_t before = status_bytes("VmRSS");
    std::ofstream("/proc/self/clear_refs") << 5;
    const TextOnly    model{std::move(language_model_from_pretrained(be, folder / "model.prism").llm)};
    const std::size_t opened = status_bytes("VmRSS") - std::min(before, status_bytes("VmRSS"));
    CHECK(opened < 8'000'000);  // the header, and what the system reads around it

    constexpr std::size_t     n_tokens = 64;
    const std::size_t         workspace = reading_cost(model.llm, n_tokens, 16).workspace_bytes, cache = 2 * config.n_layers * n_tokens * 1024 * sizeof(float);
    Session<Cpu, TextOnly>    session{be, model, {.max_tokens = n_tokens, .prefill_chunk = n_tokens}};
    std::vector<std::int32_t> ids(n_tokens - 8);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * 131 % 8000);
    CHECK(session.generate(ids, {.max_new_tokens = 4}).ids.size() == 4);
    const std::size_t limit = stored + stored / 20 + workspace + cache;
    MESSAGE("stored " << stored / 1'000'000 << " MB, resident after opening " << opened / 1'000'000 << " MB, after a forward pass " << (status_bytes("VmRSS") - before) / 1'000'000 << " MB");
    CHECK(status_bytes("VmRSS") - before < limit);
}

#endif
