// Hugging Face's tokenizer files: tokenizer.json, vocab.json with merges.txt, and the settings beside them.
//
// A part of a kind that is not known here is refused by name: a step that is left out would give other ids silently.
// Source: huggingface/tokenizers 0.19.1, tokenizers/src; huggingface/transformers 4.40.1,
// tokenization_utils_{base,fast}.py.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/file.hpp"
#include "prism/io/json.hpp"
#include "prism/text/tokenizer_files.hpp"
#include "prism/text/tokenizer_state.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::detail {

/// A value in a JSON file together with its place, for messages. Reading something that is not there, or of the wrong
/// type, throws FormatError with the place.
template <class J = Json>
class JsonAt {
public:
    JsonAt(const J& json, const std::string& file, std::string place = {})
        : json_(&json), file_(&file), place_(std::move(place)) {}

    const J&           json() const { return *json_; }
    const std::string& file() const { return *file_; }
    [[noreturn]] void  fail(const std::string& problem) const {
         throw FormatError{*file_, 0, (place_.empty() ? "" : "'" + place_ + "': ") + problem};
    }

    /// A member; null counts as absent.
    bool   has(const char* key) const { return json_->is_object() && json_->contains(key) && !(*json_)[key].is_null(); }
    JsonAt at(const char* key) const {
        if (!json_->is_object()) fail("expected an object");
        if (!has(key)) fail("'" + std::string(key) + "' is missing");
        return {(*json_)[key], *file_, place_.empty() ? key : place_ + "." + key};
    }
    std::vector<JsonAt> items() const {
        if (!json_->is_array()) fail("expected a list");
        std::vector<JsonAt> all;
        for (std::size_t i = 0; i < json_->size(); ++i)
            all.emplace_back((*json_)[i], *file_, place_ + "[" + std::to_string(i) + "]");
        return all;
    }
    const std::string& text() const {
        if (!json_->is_string()) fail("expected a string");
        return json_->template get_ref<const std::string&>();
    }
    bool flag() const {
        if (!json_->is_boolean()) fail("expected true or false");
        return json_->template get<bool>();
    }
    std::int64_t integer(std::int64_t low, std::int64_t high) const {
        const bool fits = json_->is_number_unsigned() ? json_->template get<std::uint64_t>() <= static_cast<std::uint64_t>(high)
                                                      : json_->is_number_integer() && json_->template get<std::int64_t>() >= low;
        if (!fits)
            fail("expected a number from " + std::to_string(low) + " to " + std::to_string(high) + ", found " +
                 json_->dump());
        return json_->template get<std::int64_t>();
    }
    std::string text(const char* key, const char* fallback) const { return has(key) ? at(key).text() : fallback; }
    bool        flag(const char* key, bool fallback) const { return has(key) ? at(key).flag() : fallback; }
    std::string type() const { return at("type").text(); }

private:
    const J*           json_;
    const std::string* file_;
    std::string        place_;
};

/// Calls each(step) for a part, or for each step of a part of type Sequence; nothing for null.
template <class J, class Each>
void for_each_step(const JsonAt<J>& part, const char* list, Each&& each) {
    if (part.type() != "Sequence") return each(part);
    for (const auto& step : part.at(list).items()) for_each_step(step, list, each);
}

/// A pattern that is a plain string: {"String": s}, or {"Regex": r} where r has nothing special in it.
template <class J>
std::optional<std::string> literal_pattern(const JsonAt<J>& pattern) {
    if (pattern.has("String")) return pattern.at("String").text();
    const std::string& regex = pattern.at("Regex").text();
    if (regex.find_first_of("\\^$.|?*+()[]{}") != std::string::npos) return std::nullopt;
    return regex;
}

template <class J>
std::string not_empty(const JsonAt<J>& at, std::string text) {
    if (text.empty()) at.fail("an empty pattern");
    return text;
}

/// As Hugging Face reads a `char`. (Longer ones, step after step, would make a text grow without end.)
template <class J>
std::string one_character(const JsonAt<J>& at, std::string text) {
    if (text.empty() || unicode::decode(text, 0).bytes != text.size()) at.fail("one character is needed in place of a space");
    return text;
}

template <class Step = NormalizeStep, class J>
Step read_normalizer(const JsonAt<J>& step) {
    const std::string type = step.type();
    if (type == "Prepend") return PrependText{step.at("prepend").text()};
    if (type == "Replace") {
        const auto pattern = step.at("pattern");
        if (const auto text = literal_pattern(pattern))
            return ReplaceText{not_empty(pattern, *text), step.at("content").text()};
        pattern.fail("regular expression '" + pattern.at("Regex").text() + "' is not supported");
    }
    if (type == "NFC") return unicode::NormalForm::nfc;
    if (type == "NFD") return unicode::NormalForm::nfd;
    if (type == "NFKC") return unicode::NormalForm::nfkc;
    if (type == "NFKD") return unicode::NormalForm::nfkd;
    step.fail("normalizer '" + type + "' is not supported");
}

template <class J, class Steps>
void read_pre_tokenizer(const JsonAt<J>& step, Steps& steps) {
    const std::string type = step.type();
    if (!steps.empty() && std::holds_alternative<ByteLevelPieces>(steps.back()))
        step.fail("pre-tokenizer '" + type + "' after ByteLevel is not supported");
    if (type == "ByteLevel") {
        const bool prefix = step.flag("add_prefix_space", true), regex = step.flag("use_regex", true);
        if (prefix) steps.emplace_back(PrefixSpace{});
        if (regex) steps.emplace_back(SplitPattern{SplitPattern::gpt2});
        steps.emplace_back(ByteLevelPieces{});
    } else if (type == "Digits") {
        steps.emplace_back(SplitDigits{step.flag("individual_digits", false)});
    } else if (type == "Metaspace") {
        MetaspacePieces pieces;
        pieces.replacement = one_character(step, step.text("replacement", pieces.replacement.c_str()));
        const std::string scheme =
            step.flag("add_prefix_space", true) ? step.text("prepend_scheme", "always") : "never";
        if (scheme == "first") pieces.prepend = MetaspacePieces::first;
        else if (scheme == "never") pieces.prepend = MetaspacePieces::never;
        else if (scheme != "always") step.fail("prepend_scheme '" + scheme + "' is none of always, first, never");
        pieces.split = step.flag("split", true);
        steps.emplace_back(std::move(pieces));
    } else if (type == "Split") {
        static constexpr std::array<std::pair<std::string_view, SplitPattern::Pattern>, 3> known{{
            {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", SplitPattern::gpt2},
            {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)"
             R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
             SplitPattern::qwen2},
            {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)"
             R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
             SplitPattern::llama3},
        }};
        const std::string behavior = step.at("behavior").text();
        if (behavior != "Isolated") step.fail("behavior '" + behavior + "' is not supported, only Isolated is");
        if (step.flag("invert", false)) step.fail("invert is not supported");
        const auto pattern = step.at("pattern");
        if (const auto text = literal_pattern(pattern)) {
            steps.emplace_back(SplitLiteral{not_empty(pattern, *text)});
        } else {
            const std::string& regex = pattern.at("Regex").text();
            const auto*        found =
                std::find_if(known.begin(), known.end(), [&](const auto& entry) { return entry.first == regex; });
            if (found == known.end())
                pattern.fail("regular expression '" + regex + "' is none of GPT-2's, Qwen2's, Llama-3's");
            steps.emplace_back(SplitPattern{found->second});
        }
    } else {
        step.fail("pre-tokenizer '" + type + "' is not supported");
    }
}

template <class Step, class J>
Step read_decoder(const JsonAt<J>& step, const std::vector<Step>& before) {
    const std::string type = step.type();
    const bool        whole = std::none_of(before.begin(), before.end(), [](const Step& s) {
        return std::holds_alternative<FuseOut>(s) || std::holds_alternative<ByteLevelOut>(s);
    });
    if (!whole && (type == "ByteFallback" || type == "ByteLevel"))
        step.fail("decoder '" + type + "' after Fuse or ByteLevel is not supported");
    if (type == "Replace") {
        const auto pattern = step.at("pattern");
        if (const auto text = literal_pattern(pattern))
            return ReplaceOut{not_empty(pattern, *text), step.at("content").text()};
        pattern.fail("regular expression '" + pattern.at("Regex").text() + "' is not supported");
    }
    if (type == "ByteFallback") return ByteFallbackOut{};
    if (type == "Fuse") return FuseOut{};
    if (type == "Strip") {
        const auto count = [&](const char* key) { return static_cast<std::size_t>(step.at(key).integer(0, 1 << 20)); };
        return StripOut{not_empty(step, step.at("content").text()), count("start"), count("stop")};
    }
    if (type == "ByteLevel") return ByteLevelOut{};
    if (type == "Metaspace")
        return MetaspaceOut{one_character(step, step.text("replacement", std::string(metaspace).c_str())),
                            step.flag("add_prefix_space", true) && step.text("prepend_scheme", "always") != "never"};
    step.fail("decoder '" + type + "' is not supported");
}

/// Throws FormatError when steps that rewrite could make a text more than a thousand times longer: no real file comes
/// near, and a few such steps in a row would fill any memory.
template <class J, class Step>
void check_growth(const JsonAt<J>& part, const std::vector<Step>& steps) {
    double     growth = 1;
    const auto factor = [](const auto& step) -> double {
        if constexpr (requires { step.pattern.size(), step.content.size(); })
            return std::max(1.0, static_cast<double>(step.content.size()) / static_cast<double>(step.pattern.size()));
        else if constexpr (requires { step.text.size(); }) return 1.0 + static_cast<double>(step.text.size());
        else if constexpr (requires { step.replacement.size(); })
            return 1.0 + static_cast<double>(step.replacement.size());
        else return 1.0;
    };
    for (const Step& step : steps) growth *= std::visit(factor, step);
    if (growth > 1024) part.fail("these steps make texts more than 1024 times longer");
}

/// Flags of an added token; those that are absent are those of Python's AddedToken(content).
template <class J>
AddedToken read_added_token(const JsonAt<J>& token, bool special) {
    special |= token.flag("special", false);
    return {.content = token.at("content").text(),
            .single_word = token.flag("single_word", false),
            .lstrip = token.flag("lstrip", false),
            .rstrip = token.flag("rstrip", false),
            .normalized = token.flag("normalized", !special),
            .special = special};
}

/// A vocabulary from an object {token: id}. Ids may have gaps, but not so many that the file does not pay for the
/// table.
template <class J>
Vocabulary read_vocabulary(const JsonAt<J>& vocab) {
    if (!vocab.json().is_object() || vocab.json().empty()) vocab.fail("expected an object of tokens and ids");
    const auto high =
        std::min<std::int64_t>(Vocabulary::max_id, static_cast<std::int64_t>(4 * vocab.json().size()) + 65536);
    Vocabulary tokens;
    for (const auto& [token, id] : vocab.json().items()) {
        if (token.empty()) continue;  // no text contains it
        const auto number = JsonAt{id, vocab.file(), "vocab." + token}.integer(0, high);
        if (!tokens.insert(token, static_cast<std::int32_t>(number)))
            vocab.fail("id " + std::to_string(number) + " is given twice");
    }
    return tokens;
}

/// One merge as ids (left, right, result). `fail` gets what is wrong.
template <class Fail>
std::array<std::int32_t, 3> merge_ids(const Vocabulary& vocab, std::string_view left, std::string_view right,
                                      Fail&& fail) {
    const auto id = [&](const std::string& token) {
        const auto found = vocab.find(token);
        if (!found) fail("'" + token + "' is not in the vocabulary");
        return *found;
    };
    return {id(std::string(left)), id(std::string(right)), id(std::string(left).append(right))};
}

/// The same for "left right", cut at its only space.
template <class Fail>
std::array<std::int32_t, 3> merge_ids(const Vocabulary& vocab, std::string_view line, Fail&& fail) {
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
        fail("'" + std::string(line) + "' is not two tokens with a space between");
    return merge_ids(vocab, line.substr(0, space), line.substr(space + 1), fail);
}

/// The section "model" of tokenizer.json.
template <class J>
Bpe read_bpe(const JsonAt<J>& model, bool byte_level) {
    const std::string type = model.text("type", "BPE");  // the oldest files do not say
    if (type != "BPE") model.fail("model '" + type + "' is not supported, only BPE is");
    if (model.has("dropout"))
        if (const J& p = model.at("dropout").json(); !p.is_number() || p.template get<double>() != 0) model.fail("dropout is not supported");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
        if (!model.text(key, "").empty()) model.fail(std::string(key) + " is not supported");

    Vocabulary                               vocab = read_vocabulary(model.at("vocab"));
    std::vector<std::array<std::int32_t, 3>> merges;
    const auto                               list = model.at("merges");
    if (!list.json().is_array()) list.fail("expected a list");
    merges.reserve(list.json().size());
    for (const J& merge : list.json()) {
        const auto fail = [&](const std::string& problem) {
            list.fail("merge " + std::to_string(merges.size()) + ": " + problem);
        };
        if (merge.is_string()) merges.push_back(merge_ids(vocab, merge.template get_ref<const std::string&>(), fail));
        else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
            merges.push_back(
                merge_ids(vocab, merge[0].template get_ref<const std::string&>(), merge[1].template get_ref<const std::string&>(), fail));
        else fail("expected two tokens");
    }
    BpeOptions options{.fuse_unk = model.flag("fuse_unk", false),
                       .byte_fallback = model.flag("byte_fallback", false),
                       .ignore_merges = model.flag("ignore_merges", false),
                       .byte_level = byte_level};
    if (model.has("unk_token")) {
        options.unk = vocab.find(model.at("unk_token").text());
        if (!options.unk) model.fail("unk_token '" + model.at("unk_token").text() + "' is not in the vocabulary");
    }
    return {std::move(vocab), merges, options};
}

/// The section "post_processor": what TemplateProcessing puts around a single text.
template <class J, class State>
void read_post_processor(const JsonAt<J>& part, State& state) {
    for_each_step(part, "processors", [&](const JsonAt<J>& step) {
        const std::string type = step.type();
        if (type == "ByteLevel") return;  // changes offsets only
        if (type != "TemplateProcessing") step.fail("post-processor '" + type + "' is not supported");
        bool past_text = false;
        for (const auto& item : step.at("single").items()) {
            if (item.has("Sequence")) {
                if (std::exchange(past_text, true)) item.fail("the text stands twice in the template");
                continue;
            }
            const std::string& name = item.at("SpecialToken").at("id").text();
            const auto         token = step.at("special_tokens").at(name.c_str());
            for (const auto& id : token.at("ids").items())
                (past_text ? state.suffix : state.prefix)
                    .push_back(static_cast<std::int32_t>(id.integer(0, Vocabulary::max_id)));
        }
        if (!past_text) step.fail("the template has no place for the text");
    });
}

/// A tokenizer from the text of tokenizer.json alone. Throws FormatError.
template <class State = TokenizerState, class J>
State tokenizer_json_state(const J& json, const std::string& file) {
    const JsonAt                   root{json, file};
    decltype(State::pre_tokenizer) pre_tokenizer;
    if (root.has("pre_tokenizer"))
        for_each_step(root.at("pre_tokenizer"), "pretokenizers",
                      [&](const JsonAt<J>& step) { read_pre_tokenizer(step, pre_tokenizer.steps); });
    const bool byte_level =
        !pre_tokenizer.steps.empty() && std::holds_alternative<ByteLevelPieces>(pre_tokenizer.steps.back());

    State state{read_bpe(root.at("model"), byte_level)};
    state.pre_tokenizer = std::move(pre_tokenizer);
    state.unk = state.bpe.options().unk;
    if (root.has("normalizer"))
        for_each_step(root.at("normalizer"), "normalizers",
                      [&](const JsonAt<J>& step) { state.normalizer.steps.push_back(read_normalizer(step)); });
    if (root.has("decoder"))
        for_each_step(root.at("decoder"), "decoders",
                      [&](const JsonAt<J>& step) { state.decoder.push_back(read_decoder(step, state.decoder)); });
    else state.decoder.emplace_back(JoinOut{});

    check_growth(root, state.normalizer.steps);
    check_growth(root, state.decoder);

    if (root.has("added_tokens")) {
        std::set<std::int64_t> ids;
        for (const auto& token : root.at("added_tokens").items()) {
            if (!ids.insert(token.at("id").integer(0, Vocabulary::max_id)).second)
                token.fail("id " + token.at("id").json().dump() + " is given twice");
            if (const AddedToken added = read_added_token(token, false); !added.content.empty()) state.add(added);
        }
    }
    if (root.has("post_processor")) read_post_processor(root.at("post_processor"), state);
    for (const auto* list : {&state.prefix, &state.suffix})
        for (const std::int32_t id : *list)
            if (state.token(id).empty()) root.at("post_processor").fail("no token has id " + std::to_string(id));

    // The file does not say what its control tokens are for: what opens the template is taken for BOS, what closes it
    // or is known to end texts for EOS. Settings beside the file decide otherwise.
    if (!state.prefix.empty()) state.bos = state.prefix.front();
    if (!state.suffix.empty()) state.eos = state.suffix.back();
    for (const char* name : {"</s>", "<|endoftext|>"})
        if (!state.eos && state.added.is_special(name)) state.eos = state.id(name);
    state.prepare();
    return state;
}

/// What transformers knows about a tokenizer class without being told.
struct TokenizerClass {
    std::string_view name, bos, eos, unk, pad;
    bool             llama = false;       // has add_bos_token and add_eos_token
    bool             byte_level = false;  // has add_prefix_space
};
inline constexpr std::array<TokenizerClass, 5> tokenizer_classes{{
    {"LlamaTokenizer", "<s>", "</s>", "<unk>", "", true, false},
    {"CodeGenTokenizer", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", false, true},
    {"GPT2Tokenizer", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", false, true},
    {"GPTNeoXTokenizer", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", false, true},
    {"Qwen2Tokenizer", "", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", false, false},
}};

/// The settings beside a tokenizer: tokenizer_config.json, and where that does not list the added tokens
/// special_tokens_map.json and added_tokens.json.
template <class J = Json>
class TokenizerSettings {
public:
    explicit TokenizerSettings(const TokenizerFiles& files) {
        const auto read = [&](const char* name) {
            const auto file = files.find(name);
            return file ? parse_json<J>(text_of(*file), file->path()) : J();
        };
        file_ = files.place("tokenizer_config.json");
        json_ = read("tokenizer_config.json");
        present_ = json_.is_object();
        if (!present_) json_ = J::object();
        std::string name = root().text("tokenizer_class", "");
        if (name.empty() && files.has("tokenizer.model")) name = "LlamaTokenizer", present_ = true;  // the only one here that reads that file
        if (name.ends_with("Fast")) name.resize(name.size() - 4);
        for (const TokenizerClass& known : tokenizer_classes)
            if (known.name == name) class_ = known;
        // What transformers converts has the settings that its slow class takes by default.
        clean_up_ = !class_.llama && (class_.name != "Qwen2Tokenizer" || files.has("tokenizer.json"));
        if (!root().has("added_tokens_decoder")) {
            const J map = read("special_tokens_map.json");
            if (map.is_object())
                for (const auto& [key, value] : map.items()) {
                    J& here = json_[key];
                    if (key == "additional_special_tokens" && value.is_array() && here.is_array()) here.insert(here.end(), value.begin(), value.end());
                    else here = value;
                }
            plain_added_ = read("added_tokens.json");
            if (converts(files) && files.has("tokenizer.json")) replaced_ = read("tokenizer.json"), replaced_file_ = files.place("tokenizer.json");
        }
    }

    bool                  present() const { return present_; }
    /// Whether transformers converts the SentencePiece file: where there is no other, or the settings speak of a prefix space.
    bool converts(const TokenizerFiles& files) const {
        return class_.llama && files.has("tokenizer.model") && (!files.has("tokenizer.json") || root().has("add_prefix_space"));
    }
    /// Whether texts get a prefix space. The setting reaches the slow class, which takes null for no, where there is no tokenizer.json.
    bool prefix_space(const TokenizerFiles& files) const {
        return !class_.llama || files.has("tokenizer.json") || root().flag("add_prefix_space", !json_.contains("add_prefix_space"));
    }
    const TokenizerClass& known_class() const { return class_; }
    JsonAt<J>             root() const { return {json_, file_}; }

    /// The text of a control token: "bos_token" and so on. A setting of null says that there is none.
    std::string name(const char* key, std::string_view fallback) const {
        if (!json_.contains(key)) return std::string(fallback);
        if (!root().has(key)) return {};
        const auto value = root().at(key);
        return value.json().is_object() ? value.at("content").text() : value.text();
    }

    /// Does to a tokenizer what constructing its class in transformers does.
    template <class State>
    void apply(State& state) const {
        const auto settings = root();
        add_tokens(state);

        const auto id = [&](const char* key, std::string_view fallback) {
            const std::string token = name(key, fallback);
            return token.empty() ? std::nullopt : state.id(token);
        };
        const auto set = [&](std::optional<std::int32_t>& which, const char* key, std::string_view fallback) {
            if (present_ || json_.contains(key)) which = id(key, fallback);
        };
        set(state.bos, "bos_token", class_.bos), set(state.eos, "eos_token", class_.eos);
        set(state.unk, "unk_token", class_.unk), set(state.pad, "pad_token", class_.pad);
        if (present_) state.clean_up = settings.flag("clean_up_tokenization_spaces", clean_up_);
        if (class_.llama) {
            state.prefix.clear(), state.suffix.clear();
            if (settings.flag("add_bos_token", true)) state.prefix.push_back(required(state.bos, "bos_token"));
            if (settings.flag("add_eos_token", false)) state.suffix.push_back(required(state.eos, "eos_token"));
        }
        if (class_.byte_level) set_prefix_space(state.pre_tokenizer.steps, settings.flag("add_prefix_space", false));
        state.prepare();
    }

private:
    /// A pre-tokeniser that is ByteLevel alone takes add_prefix_space from the settings.
    template <class Steps>
    static void set_prefix_space(Steps& steps, bool wanted) {
        const bool there = !steps.empty() && std::holds_alternative<PrefixSpace>(steps.front());
        const bool alone = std::all_of(steps.begin(), steps.end(), [](const auto& step) {
            return std::holds_alternative<PrefixSpace>(step) || std::holds_alternative<SplitPattern>(step) ||
                   std::holds_alternative<ByteLevelPieces>(step);
        });
        if (!alone || there == wanted) return;
        if (wanted) steps.insert(steps.begin(), PrefixSpace{});
        else steps.erase(steps.begin());
    }

    std::int32_t required(std::optional<std::int32_t> id, const char* key) const {
        if (!id) root().fail(std::string(key) + " is missing, and add_" + std::string(key, 3) + "_token asks for it");
        return *id;
    }

    /// Tokens listed by id, in that order, then control tokens that are named and not there yet.
    template <class State>
    void add_tokens(State& state) const {
        std::map<std::int64_t, AddedToken> listed;
        std::vector<AddedToken>            named;
        std::set<std::string>              special;
        const auto                         name_one = [&](const JsonAt<J>& value) {
            AddedToken token{.content = {}, .normalized = false, .special = true};
            if (value.json().is_object()) token = read_added_token(value, true);
            else token.content = value.text();
            if (!token.content.empty() && special.insert(token.content).second) named.push_back(token);
        };
        for (const auto& [key, fallback] : {std::pair{"bos_token", class_.bos},
                                            {"eos_token", class_.eos},
                                            {"unk_token", class_.unk},
                                            {"sep_token", {}},
                                            {"pad_token", class_.pad},
                                            {"cls_token", {}},
                                            {"mask_token", {}}}) {
            if (root().has(key)) name_one(root().at(key));
            else if (!json_.contains(key) && !fallback.empty())
                name_one(JsonAt{J(std::string(fallback)), file_, key});
        }
        if (root().has("additional_special_tokens"))
            for (const auto& token : root().at("additional_special_tokens").items()) name_one(token);

        if (root().has("added_tokens_decoder"))
            for (const auto& [key, value] : root().at("added_tokens_decoder").json().items()) {
                const JsonAt token{value, file_, "added_tokens_decoder." + key};
                if (key.empty() || key.size() > 8 || key.find_first_not_of("0123456789") != std::string::npos)
                    token.fail("the key is no id");
                listed[std::stoll(key)] = read_added_token(token, false);
            }
        if (plain_added_.is_object())
            for (const auto& [token, value] : plain_added_.items()) {
                const bool is_special = special.contains(token);
                listed[JsonAt{value, file_, "added_tokens.json: " + token}.integer(0, Vocabulary::max_id)] = {
                    .content = token, .normalized = !is_special, .special = is_special};
            }
        if (const JsonAt<J> replaced{replaced_, replaced_file_}; replaced_.is_object() && replaced.has("added_tokens"))
            for (const JsonAt<J>& token : replaced.at("added_tokens").items())
                listed[token.at("id").integer(0, Vocabulary::max_id)] = read_added_token(token, false);
        for (auto& [id, token] : listed) {
            token.special |= special.contains(token.content);
            if (!token.content.empty()) state.add(token);
        }
        for (const AddedToken& token : named)
            if (!state.added.ids().contains(token.content)) state.add(token);
    }

    std::string    file_, replaced_file_;
    J              json_, plain_added_, replaced_;  // replaced_: a tokenizer.json of which the added tokens alone are used
    bool           present_ = false, clean_up_ = true;
    TokenizerClass class_{};
};

/// A byte-level tokenizer from vocab.json and merges.txt, both of which are there, as the classes of transformers convert
/// them. Throws FormatError.
template <class State = TokenizerState, class J>
State vocab_and_merges_state(const TokenizerFiles& files, const TokenizerSettings<J>& settings) {
    const auto             vocab_file = files.find("vocab.json"), merges_file = files.find("merges.txt");
    const J                json = parse_json<J>(text_of(*vocab_file), vocab_file->path());
    Vocabulary             vocab = read_vocabulary(JsonAt{json, vocab_file->path()});
    const std::string_view text = text_of(*merges_file);
    std::vector<std::array<std::int32_t, 3>> merges;
    for (std::size_t at = 0, end; at < text.size(); at = end + 1) {
        end = std::min(text.find('\n', at), text.size());
        std::string_view line = text.substr(at, end - at);
        if (line.ends_with('\r')) line.remove_suffix(1);
        if (line.empty() || (at == 0 && line.starts_with("#version"))) continue;
        merges.push_back(merge_ids(vocab, line, [&](const std::string& problem) {
            throw FormatError{merges_file->path(), at, problem};
        }));
    }
    State      state{Bpe{std::move(vocab), merges, {.byte_level = true}}};
    const bool qwen2 = settings.known_class().name == "Qwen2Tokenizer";
    if (qwen2) state.normalizer.steps.emplace_back(unicode::NormalForm::nfc);
    if (settings.root().flag("add_prefix_space", false)) state.pre_tokenizer.steps.emplace_back(PrefixSpace{});
    set_byte_level_steps(state, qwen2 ? SplitPattern::qwen2 : SplitPattern::gpt2);
    state.prepare();
    return state;
}

}  // namespace prism::detail
