#include "files.hpp"
#include "options.hpp"

#include "prism/image/read.hpp"
#include "prism/io/checkpoint.hpp"
#include "prism/io/gguf.hpp"
#include "prism/io/safetensors.hpp"
#include "prism/text/unicode.hpp"

#include <algorithm>
#include <iostream>
#include <iterator>

namespace program {

namespace {

bool is_stream(const std::filesystem::path& path) { return path == "-"; }

/// All of standard input. Throws LoadError when it is longer than any input that makes sense there.
std::string standard_input() {
    constexpr std::size_t limit = std::size_t{1} << 32;
    std::string           bytes;
    char                  block[1 << 16];
    while (std::cin.read(block, sizeof block) || std::cin.gcount() > 0) {
        bytes.append(block, static_cast<std::size_t>(std::cin.gcount()));
        if (bytes.size() > limit) throw prism::LoadError{"standard input", "is longer than " + std::to_string(limit) + " bytes"};
    }
    return bytes;
}

}  // namespace

void note(const Common& common, std::string_view text) {
    if (!common.quiet) std::cerr << text << '\n';
}

void expect_text(const char* option, std::string_view text) {
    if (prism::unicode::strip(text).empty()) throw UsageError{std::string(option) + ": there is no text in it"};
}

void expect_png(const char* option, const std::filesystem::path& path) {
    const std::string ending = prism::unicode::lower(path.extension().string());
    if (!ending.empty() && ending != ".png") throw UsageError{std::string(option) + ' ' + path.string() + ": pictures are written as PNG, so the name has to end in .png"};
}

std::vector<std::string> unknown_words(const prism::Tokenizer& words, std::string_view text) {
    const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || static_cast<unsigned char>(c) >= 0x80; };
    std::vector<std::string> unknown;
    for (std::size_t at = 0; at < text.size();) {
        std::size_t end = at;
        while (end < text.size() && is_letter(text[end])) ++end;
        if (end == at) {
            ++at;
            continue;
        }
        std::string word(text.substr(at, end - at));
        at = end;
        if (word.size() == 1) continue;  // all letters are tokens
        const auto ids = words.encode(word, {.add_special = false});
        if ((ids.size() != 1 || ids[0] == words.unk_id()) && std::ranges::find(unknown, word) == unknown.end()) unknown.push_back(std::move(word));
    }
    return unknown;
}

void note_unknown_words(const Common& common, const prism::Tokenizer& words, std::string_view text) {
    if (!common.model.empty() || common.json || common.quiet) return;
    if (const std::string all = joined(unknown_words(words, text)); !all.empty())
        note(common, "the small model does not know: " + all + " (it has some 300 words, in American spelling; prism shapes --questions shows what it is asked)");
}

void print(const prism::Json& json) { std::cout << json.dump(-1, ' ', false, prism::Json::error_handler_t::replace) << '\n'; }

prism::Image open_picture(const Common& common, const std::filesystem::path& path) {
    const std::string        name = is_stream(path) ? "standard input" : path.string();
    const prism::ReadOptions options{.on_warning = [&](const std::string& problem) { note(common, problem); }};
    if (!is_stream(path)) return prism::read_image(path, options);
    const std::string bytes = standard_input();
    return prism::decode_image(std::as_bytes(std::span{bytes}), name, options);
}

prism::Json open_json(const std::filesystem::path& path) {
    return is_stream(path) ? prism::parse_json(standard_input(), "standard input") : prism::read_json(path);
}

std::vector<prism::TensorInfo> open_tensors(const std::filesystem::path& path) {
    if (!is_stream(path)) return prism::read_tensors(prism::MappedFile::open(path));
    const std::string bytes = standard_input();
    const auto        view = std::as_bytes(std::span{bytes});
    return prism::read_tensors(prism::MappedFile::of({view.begin(), view.end()}, "standard input"));
}

void expect_one_output(const Common& common, const std::filesystem::path& out) {
    if (is_stream(out) && common.json) throw UsageError{"--out - and --json both want standard output"};
}

void write_tensor(const Common& common, const std::filesystem::path& path, const std::string& name,
                  const std::vector<std::size_t>& shape, std::span<const float> values) {
    const prism::TensorData tensor{name, prism::Dtype::f32, shape, std::as_bytes(values)};
    if (!is_stream(path)) {
        prism::write_safetensors(path, {&tensor, 1});
        if (common.json) print({{"shape", shape}});
        else std::cout << name << ' ' << prism::to_string(shape) << " in " << path.string() << '\n';
        return;
    }
    prism::write_safetensors(
        [](std::span<const std::byte> bytes) {
            std::cout.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
        },
        "standard output", {&tensor, 1});
}

std::filesystem::path model_folder(const Common& common, Default which) {
    for (const auto& part : {common.vision_dir, common.llm_dir})
        if (!part.empty() && !std::filesystem::is_directory(part) && !(part == common.vision_dir && prism::is_gguf(part))) throw prism::LoadError{part.string(), "is no folder"};
    if (!common.model.empty()) return common.model;
    const std::filesystem::path model = which == Default::acts ? PRISM_SOURCES "/tests/data/reference/vlm/openvla-hf" : PRISM_SOURCES "/examples/shapes/model.prism";
    if (!std::filesystem::exists(model)) throw prism::LoadError{model.string(), "is the model of the repository, and is not there; name one with --model"};
    note(common, which == Default::acts ? "no --model given: using the small policy of the repository, whose weights are random, and so are its actions"
                                        : "no --model given: using the small model of the repository, which knows pictures of coloured shapes and nothing else");
    return model;
}

}  // namespace program
