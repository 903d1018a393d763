// Prompts: what each language model was trained to read around the words of a user.
//
//     auto prompt = prism::prompt_builder_for("vicuna-v15-7b");
//     prompt.add_turn(prism::Role::human, "What animal is this?");
//     auto ids = tokenizer.encode(prompt.pieces());   // the user cannot write control tokens
// Source: TRI-ML/prismatic-vlms, prismatic/models/backbones/llm/prompting/*.py; openvla, prismatic/extern/hf;
// transformers, models/llava; openvla-mini for Qwen.
#pragma once

#include "prism/core/error.hpp"
#include "prism/text/piece.hpp"
#include "prism/text/unicode.hpp"

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

enum class Role { human, gpt };

/// The text around messages. A prompt is `first_open` m `human_close` m `gpt_close` `human_open` m `human_close` ...
struct PromptFormat {
    std::string first_open, human_open, human_close, gpt_close;
    bool        preview_opens = true;   // a preview of the first turn begins with first_open, too, not with human_open
    bool        stripped = true;        // white space at the end of a prompt is dropped
    std::string after_gpt{};            // put in place of the last line feed when a prompt ends in a gpt turn
    bool        turns_stripped = true;  // in training, where turns are encoded one by one, white space at their ends is dropped
};

namespace detail {

template <class Pieces>
std::string joined(const Pieces& pieces) {
    std::string text;
    for (const Piece& piece : pieces) text += piece.text;
    return text;
}

}  // namespace detail

/// The text of pieces, joined.
template <class = void>
std::string to_string(std::span<const Piece> pieces) {
    return detail::joined(pieces);
}

/// A conversation that grows turn by turn.
class PromptBuilder {
public:
    explicit PromptBuilder(PromptFormat format) : format_(std::move(format)) {}

    /// Adds a message and gives the text that it adds to the prompt. `<image>` is taken out of the message and white
    /// space off its ends; an empty one of the model becomes a space. Throws ConfigError unless human and gpt
    /// alternate, beginning with human.
    template <class = void>
    std::string add_turn(Role role, std::string_view message) {
        const bool human = n_turns_ % 2 == 0;
        if ((role == Role::human) != human)
            throw ConfigError{"role", human ? "gpt" : "human",
                              std::string(human ? "human" : "gpt") + ", because turns alternate"};
        std::string text = cleaned(message);
        if (!human && text.empty()) text = " ";
        const auto turn = human ? human_turn(std::move(text), n_turns_ == 0) : gpt_turn(std::move(text));
        pieces_.insert(pieces_.end(), turn.begin(), turn.end());
        ++n_turns_;
        return detail::joined(turn);
    }

    /// The prompt so far, as one text and as pieces for Tokenizer::encode. Messages are not trusted in it.
    template <class = void>
    std::string prompt() const { return detail::joined(pieces()); }
    template <class = void>
    std::vector<Piece> pieces() const { return ended(pieces_, n_turns_ > 0 && n_turns_ % 2 == 0); }

    /// The prompt that one more human turn would give. The message is taken as it is.
    template <class = void>
    std::string potential_prompt(std::string_view message) const { return detail::joined(potential_pieces(message)); }
    template <class = void>
    std::vector<Piece> potential_pieces(std::string_view message) const {
        auto       all = pieces_;
        const auto turn = human_turn(std::string(message), n_turns_ == 0 && format_.preview_opens);
        all.insert(all.end(), turn.begin(), turn.end());
        return ended(std::move(all), false);
    }

    std::size_t         n_turns() const { return n_turns_; }
    const PromptFormat& format() const { return format_; }

private:
    static std::string cleaned(std::string_view message) {
        constexpr std::string_view image = "<image>";
        std::string                text;
        for (std::size_t at; (at = message.find(image)) != message.npos; message.remove_prefix(at + image.size())) text += message.substr(0, at);
        text += message;
        return std::string(unicode::strip(text));
    }
    template <class = void>
    std::vector<Piece> human_turn(std::string message, bool first) const {
        return {{first ? format_.first_open : format_.human_open, true},
                {std::move(message), false},
                {format_.human_close, true}};
    }
    template <class = void>
    std::vector<Piece> gpt_turn(std::string message) const {
        return {{std::move(message), false}, {format_.gpt_close, true}};
    }

    /// The pieces with what the format does to the end of a prompt.
    template <class = void>
    std::vector<Piece> ended(std::vector<Piece> pieces, bool after_gpt) const {
        if (after_gpt && !format_.after_gpt.empty()) {
            pieces.back().text.pop_back();
            pieces.back().text += format_.after_gpt;
        }
        while (format_.stripped && !pieces.empty()) {
            pieces.back().text.resize(unicode::rstrip(pieces.back().text).size());
            if (!pieces.back().text.empty()) break;
            pieces.pop_back();
        }
        return pieces;
    }

    PromptFormat       format_;
    std::vector<Piece> pieces_;
    std::size_t        n_turns_ = 0;
};

/// The system texts that models were trained with.
namespace system_text {
inline constexpr std::string_view vicuna =
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.";
inline constexpr std::string_view llama2_chat = "You are a helpful language and vision assistant. "
                                                "You are able to understand the visual content that the user provides, "
                                                "and assist the user with a variety of tasks using natural language.";
inline constexpr std::string_view qwen = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
}  // namespace system_text

namespace prompt_format {

inline PromptFormat pure() { return {"In: ", "In: ", "\nOut: ", "</s>"}; }

inline PromptFormat vicuna_v15(std::string_view system = system_text::vicuna) {
    return {std::string(unicode::strip(system)) + " USER: ", "USER: ", " ASSISTANT: ", "</s>"};
}

/// The opening tag lacks a bracket, and has to: the models were trained so.
inline PromptFormat llama2_chat(std::string_view system = system_text::llama2_chat) {
    return {"[INST] <<SYS>\n" + std::string(unicode::strip(system)) + "\n<</SYS>>\n\n", "[INST] ", " [/INST] ", "</s>"};
}

inline PromptFormat mistral_instruct() { return {"[INST] ", "[INST] ", " [/INST] ", "</s>"}; }

inline PromptFormat phi() { return {"<|endoftext|>Input: ", "Input: ", "\nOutput: ", "\n<|endoftext|>", false, true, {}, false}; }

/// ChatML, as MiniVLA has it.
inline PromptFormat qwen(std::string_view system = system_text::qwen) {
    const std::string user = "<|im_start|>user\n";
    return {"<|im_start|>system\n" + std::string(unicode::strip(system)) + "<|im_end|>\n" + user,
            user,
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>\n",
            false,
            false,
            "<|endoftext|>",
            false};
}

/// llava-hf/llava-1.5-*-hf. `<image>` is the token whose place the picture takes.
inline PromptFormat llava_15_hf() { return {"USER: <image>\n", "USER: ", " ASSISTANT: ", "</s>"}; }

}  // namespace prompt_format

/// The builder for one of Prismatic's llm_backbone_id (`llama2-7b-pure` ...), or for `llava-1.5-7b-hf`,
/// `llava-1.5-13b-hf`. `system` replaces the system text of formats that have one. Throws ConfigError for an unknown
/// id, or a system text that has no place.
template <class = void>
PromptBuilder prompt_builder_for(std::string_view llm_backbone_id,
                                 std::optional<std::string> system = std::nullopt) {
    const auto is = [&](std::string_view family, std::string_view kind) {
        return llm_backbone_id.starts_with(family) && llm_backbone_id.ends_with(kind);
    };
    if (is("vicuna-v15-", "b"))
        return PromptBuilder{prompt_format::vicuna_v15(system.value_or(std::string(system_text::vicuna)))};
    if (is("llama2-", "b-chat"))
        return PromptBuilder{prompt_format::llama2_chat(system.value_or(std::string(system_text::llama2_chat)))};
    if (is("qwen25-", "")) return PromptBuilder{prompt_format::qwen(system.value_or(std::string(system_text::qwen)))};
    if (system)
        throw ConfigError{"system", "'" + *system + "'",
                          "none, because '" + std::string(llm_backbone_id) + "' has no system text"};
    if (is("llama2-", "b-pure") || is("mistral-v0.1-", "b-pure")) return PromptBuilder{prompt_format::pure()};
    if (is("mistral-v0.1-", "b-instruct")) return PromptBuilder{prompt_format::mistral_instruct()};
    if (llm_backbone_id == "phi-2-3b") return PromptBuilder{prompt_format::phi()};
    if (is("llava-1.5-", "b-hf")) return PromptBuilder{prompt_format::llava_15_hf()};
    throw ConfigError{
        "llm_backbone_id", "'" + std::string(llm_backbone_id) + "'",
        "llama2-{7b,13b}-{pure,chat}, vicuna-v15-{7b,13b}, mistral-v0.1-7b-{pure,instruct}, phi-2-3b, qwen25-*, "
        "llava-1.5-{7b,13b}-hf"};
}

/// OpenVLA's question for an instruction, which is put into lower case. `v01` is the form of the first release
/// (checkpoints with v01 in their path).
template <class = void>
std::vector<Piece> openvla_pieces(std::string_view instruction, bool v01 = false) {
    const std::string question = "What action should the robot take to ";
    const std::string opening = v01 ? std::string(system_text::vicuna) + " USER: " + question : "In: " + question;
    return {{opening, true}, {unicode::lower(instruction), false}, {v01 ? "? ASSISTANT:" : "?\nOut:", true}};
}
template <class = void>
std::string openvla_prompt(std::string_view instruction, bool v01 = false) {
    return detail::joined(openvla_pieces(instruction, v01));
}

}  // namespace prism
