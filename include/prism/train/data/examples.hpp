// Examples: what a conversation becomes for the language model, ids and labels, in the stages of Prismatic's training.
//
//     const prism::TokenRow row = prism::conversation_row(tokenizer, prism::prompt_format::pure(), turns, true, 2048);
// Source: TRI-ML/prismatic-vlms, prismatic/preprocessing/datasets/datasets.py, prismatic/util/data_utils.py.
#pragma once

#include "prism/backend/training.hpp"
#include "prism/text/prompt.hpp"
#include "prism/text/tokenizer.hpp"
#include "prism/train/data/conversations.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace prism {

/// ids [n_tokens], and of each position whether it is learnt: labels [n_tokens], the id itself or ignored_label. The
/// model predicts labels[i] at position i - 1.
struct TokenRow {
    std::vector<std::int32_t> ids, labels;
};

/// A caption and the end of text; the alignment stage. All of it is learnt but the first token, behind which the picture
/// stands. Text that spells control tokens is those tokens, as in the reference: annotations are trusted.
inline TokenRow caption_row(const Tokenizer& tokenizer, const PromptFormat& format, std::string_view caption, std::size_t max_tokens) {
    std::string text{unicode::strip(caption)};
    text += unicode::strip(format.gpt_close);
    TokenRow row{.ids = tokenizer.encode(text, {.parse_special = true}), .labels = {}};
    row.ids.resize(std::min(row.ids.size(), max_tokens));
    row.labels = row.ids;
    if (!row.labels.empty()) row.labels[0] = ignored_label;
    return row;
}

/// A conversation, turn by turn; the fine-tuning stages. What the model says is learnt, the end of its turns included.
/// The first token never is where there is a picture. Control tokens as for captions.
inline TokenRow conversation_row(const Tokenizer& tokenizer, const PromptFormat& format, std::span<const Turn> turns, bool has_picture, std::size_t max_tokens) {
    TokenRow      row;
    PromptBuilder prompt{format};
    for (const Turn& turn : turns) {
        const bool        first = prompt.n_turns() == 0;
        const std::string text = prompt.add_turn(turn.role, turn.text);
        const auto        ids = tokenizer.encode(format.turns_stripped ? unicode::rstrip(text) : std::string_view(text), {.add_special = first, .parse_special = true});
        row.ids.insert(row.ids.end(), ids.begin(), ids.end());
        if (turn.role == Role::gpt) row.labels.insert(row.labels.end(), ids.begin(), ids.end());
        else row.labels.resize(row.ids.size(), ignored_label);
    }
    row.ids.resize(std::min(row.ids.size(), max_tokens));
    row.labels.resize(row.ids.size());
    if (has_picture && !row.labels.empty()) row.labels[0] = ignored_label;
    return row;
}

}  // namespace prism
