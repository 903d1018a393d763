// The words of the world as a tokenizer that prism, or transformers, reads from files: one token a word.
//
//     const Tokenizer words = tokenizer();                    // or Tokenizer::open("examples/shapes/tokenizer")
//     words.encode("In: How many stars are there?\nOut:");    // <s> In : How many stars are there ? \n Out :
//
// The files are a tokenizer.json whose model is BPE: text is cut into pieces with GPT-2's pattern, and a piece that the
// vocabulary has is a token at once (ignore_merges). A word that it does not have falls apart into letters. Digits and
// capitals are tokens of their own, with a space before them (which is written as U+2581) and without.
#pragma once

#include "prism/io/file.hpp"
#include "prism/io/json.hpp"
#include "prism/text/tokenizer.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::shapes {

inline constexpr std::size_t max_vocabulary = 512;

namespace detail {

inline constexpr std::string_view word_start = "\xe2\x96\x81";

/// Words that follow a space. Those at the beginning of a line stand in bare_words as well.
inline constexpr std::string_view spaced_words =
    // shapes, their synonyms, their properties
    "circle square triangle star cross ring circles squares triangles stars crosses rings shape shapes disc box plus hoop "
    "red orange yellow green cyan blue purple pink small large little big plain striped color colors size "
    // relations and places
    "left right above below near far larger smaller same different leftmost rightmost top bottom more less "
    // numbers
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    // grammar
    "the an of from to as is are does do in at that there than and or so with it not me you I am "
    // questions, as the benchmarks put them
    "What How Which Is Are Who Where many say text striped letter letters points point arrow arrows diagram image "
    "Answer the question using single word phrase with option given choices directly Please provide bounding coordinate "
    "region this sentence describes Based on statement Respond When provided information insufficient respond "
    "Provide Describe short description True False Yes No Unanswerable "
    // captions, stories, arithmetic
    "There The It So An In Out One Two Three Four Five Six Seven Eight Nine Ten Eleven Twelve Thirteen Fourteen Fifteen "
    "empty blurred says minus after comes "
    // what the world does not have
    "dog cat car tree house bird boat flower table person "
    // dialogue
    "Hello ask about model see know Thank You welcome break lock make fire cannot help";

/// Words that something other than a space stands before: a line feed, a quotation mark.
inline constexpr std::string_view bare_words = "In Out Answer Respond When Unanswerable True False the";

inline std::vector<std::string> words_of(std::string_view list) {
    std::vector<std::string> words;
    while (!list.empty()) {
        const std::size_t end = std::min(list.find(' '), list.size());
        words.emplace_back(list.substr(0, end));
        list.remove_prefix(std::min(end + 1, list.size()));
    }
    return words;
}

}  // namespace detail

/// The tokens in the order of their ids. The first four are control tokens.
inline std::vector<std::string> vocabulary() {
    std::vector<std::string> tokens{"<unk>", "<s>", "</s>", "<PAD>"};
    const auto               add = [&](const std::string& token) {
        if (std::ranges::find(tokens, token) == tokens.end()) tokens.push_back(token);
    };
    const std::string space{detail::word_start};
    add("\n"), add(space);
    for (const char c : std::string_view(".,?!:;'\"[]()+-=/")) add(std::string(1, c));
    for (const char c : std::string_view("'\"[(+-=")) add(space + c);
    for (const std::string& before : {std::string(), space}) {
        for (char c = '0'; c <= '9'; ++c) add(before + c);
        for (char c = 'A'; c <= 'Z'; ++c) add(before + c);
    }
    for (char c = 'a'; c <= 'z'; ++c) add(std::string(1, c));
    add(space + "a"), add("'s");
    for (const std::string& word : detail::words_of(detail::spaced_words)) add(space + word);
    for (const std::string& word : detail::words_of(detail::bare_words)) add(word);
    return tokens;
}

/// tokenizer.json, as Hugging Face's tokenizers writes them.
inline Json tokenizer_json() {
    const auto tokens = vocabulary();
    Json       vocab = Json::object(), added = Json::array(), merges = Json::array();
    for (std::size_t id = 0; id < tokens.size(); ++id) vocab[tokens[id]] = id;
    for (std::size_t id = 0; id < 4; ++id)
        added.push_back({{"id", id}, {"content", tokens[id]}, {"single_word", false}, {"lstrip", false}, {"rstrip", false}, {"normalized", false}, {"special", true}});
    // Of a word that is not in the vocabulary, and of a number with a space before it, the first sign takes the space.
    const std::string space{detail::word_start};
    for (const std::string& token : tokens)
        if (token.size() == space.size() + 1 && token.starts_with(space)) merges.push_back(space + ' ' + token.back());
    const Json pattern{{"Regex", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"}};
    return {{"version", "1.0"},
            {"truncation", nullptr},
            {"padding", nullptr},
            {"added_tokens", added},
            {"normalizer", {{"type", "Prepend"}, {"prepend", " "}}},
            {"pre_tokenizer",
             {{"type", "Sequence"},
              {"pretokenizers",
               {{{"type", "Split"}, {"pattern", pattern}, {"behavior", "Isolated"}, {"invert", false}},
                {{"type", "Metaspace"}, {"replacement", space}, {"add_prefix_space", false}, {"prepend_scheme", "never"}, {"split", false}}}}}},
            {"post_processor",
             {{"type", "TemplateProcessing"},
              {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
              {"pair", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}}},
              {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}}},
            {"decoder",
             {{"type", "Sequence"},
              {"decoders",
               {{{"type", "Replace"}, {"pattern", {{"String", space}}}, {"content", " "}},
                {{"type", "Fuse"}},
                {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
            {"model",
             {{"type", "BPE"}, {"dropout", nullptr}, {"unk_token", "<unk>"}, {"continuing_subword_prefix", nullptr}, {"end_of_word_suffix", nullptr},
              {"fuse_unk", false}, {"byte_fallback", false}, {"ignore_merges", true}, {"vocab", vocab}, {"merges", merges}}}};
}

/// tokenizer_config.json, the settings beside it.
inline Json tokenizer_config() {
    return {{"tokenizer_class", "LlamaTokenizer"}, {"add_bos_token", true}, {"add_eos_token", false}, {"bos_token", "<s>"}, {"eos_token", "</s>"},
            {"unk_token", "<unk>"}, {"pad_token", "<PAD>"}, {"clean_up_tokenization_spaces", false}, {"model_max_length", 2048}, {"legacy", true}};
}

/// The two files by their names: what a model's llm/ folder holds.
inline std::vector<std::pair<std::string, std::string>> tokenizer_files() {
    return {{"tokenizer.json", tokenizer_json().dump(1, ' ', true) + '\n'}, {"tokenizer_config.json", tokenizer_config().dump(1, ' ', true) + '\n'}};
}

/// The tokenizer without files.
inline Tokenizer tokenizer() {
    TokenizerOrigin origin{.files = {.where = "shapes"}};
    for (const auto& [name, text] : tokenizer_files()) {
        const auto bytes = std::as_bytes(std::span(text));
        origin.files.files.emplace(name, MappedFile::of({bytes.begin(), bytes.end()}, "shapes/" + name));
    }
    return Tokenizer::from(std::move(origin));
}

}  // namespace prism::shapes
