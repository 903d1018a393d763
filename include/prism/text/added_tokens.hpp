// Added tokens: texts that are tokens whatever the model says, control tokens among them, and how they are found.
#pragma once

#include "prism/text/lookup.hpp"
#include "prism/text/normalize.hpp"
#include "prism/text/unicode.hpp"

#include <algorithm>
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

/// Flags as in tokenizer.json.
struct AddedToken {
    std::string content;
    bool        single_word = false;             // only where no word character stands next to it
    bool        lstrip = false, rstrip = false;  // takes the white space before, after it
    bool        normalized = true;               // is looked for after normalisation
    bool        special = false;                 // a control token

    bool operator==(const AddedToken&) const = default;
};

/// The added tokens of a tokenizer, with the rules of Hugging Face's AddedVocabulary (tokenizers,
/// src/tokenizer/added_vocabulary.rs): among them that a token may be added again with other flags.
class AddedTokens {
public:
    /// Gives the token its id: that of its text where it has one, else the next one after all others.
    template <class = void>
    std::int32_t add(const AddedToken& token, const Vocabulary& vocab) {
        if (token.special && specials_.insert(token.content).second) first_specials_.push_back(token);
        if (const auto known = ids_.find(token.content); known != ids_.end() && tokens_.at(known->second) == token)
            return known->second;
        const std::int32_t id = find(token.content, vocab).value_or(next_id(vocab));
        ids_[token.content] = id;
        tokens_[id] = token;
        return id;
    }
    /// To be called after adding: builds the tables that `split` searches with.
    template <class = void>
    void prepare(const Vocabulary& vocab, const Normalizer& normalizer) {
        raw_ = {}, normalized_ = {};
        special_after_normalizing_ = false;
        const auto enter = [&](const AddedToken& token) {
            const auto id = static_cast<std::uint32_t>(*find(token.content, vocab));
            if (!token.normalized) return raw_.insert(token.content, id);
            std::string content = token.content;
            normalizer(content);
            normalized_.insert(content, id);
            special_after_normalizing_ |= is_special(token.content);
        };
        for (const AddedToken& token : first_specials_) enter(token);
        for (const auto& [id, token] : tokens_) enter(token);
    }

    std::optional<std::int32_t> find(std::string_view content, const Vocabulary& vocab) const {
        if (const auto known = ids_.find(content); known != ids_.end()) return known->second;
        return vocab.find(content);
    }
    /// Null for an id that no added token has.
    const AddedToken* token(std::int32_t id) const {
        const auto found = tokens_.find(id);
        return found == tokens_.end() ? nullptr : &found->second;
    }
    bool is_special(std::string_view content) const { return specials_.contains(content); }
    /// How many added tokens are not in the vocabulary anyway.
    template <class = void>
    std::size_t beyond(const Vocabulary& vocab) const {
        return static_cast<std::size_t>(
            std::count_if(ids_.begin(), ids_.end(), [&](const auto& entry) { return !vocab.find(entry.first); }));
    }
    const std::map<std::string, std::int32_t, std::less<>>& ids() const { return ids_; }
    /// Whether marks still matter in a text that is normalised.
    bool special_after_normalizing() const { return special_after_normalizing_; }

    enum class Stage { raw, normalized };

    /// Cuts a text at the added tokens of one stage: calls between(begin, end) and found(id) in the order of the text.
    /// Control tokens that touch a byte with a mark are text; `marks` is empty or has one character per byte, and
    /// `all_marked` stands for a mark on each.
    template <class Between, class Found>
    void split(Stage stage, std::string_view text, std::string_view marks, bool all_marked, Between between,
               Found found) const {
        const Trie& trie = stage == Stage::raw ? raw_ : normalized_;
        std::size_t start = 0;
        for (std::size_t at = 0; !trie.empty() && at < text.size();) {
            const auto match = trie.longest(text, at);
            if (!match) {
                ++at;
                continue;
            }
            std::size_t       begin = at, end = at + match->bytes;
            const AddedToken& token = tokens_.at(static_cast<std::int32_t>(match->value));
            at = end;
            if (is_special(token.content)) {
                if (all_marked) continue;
                if (!marks.empty() &&
                    marks.substr(begin, end - begin).find_first_not_of('\0') != std::string_view::npos) {
                    at = begin + 1;  // a control token that no mark touches may begin inside
                    continue;
                }
            }
            if (token.single_word && (ends_in_word(text.substr(0, begin)) || begins_with_word(text.substr(end))))
                continue;
            if (token.lstrip)
                begin =
                    std::max(start, unicode::without_trailing(text.substr(0, begin), unicode::is_white_space).size());
            if (token.rstrip)
                end = text.size() - unicode::without_leading(text.substr(end), unicode::is_white_space).size();
            if (start < begin) between(start, begin);
            found(static_cast<std::int32_t>(match->value));
            start = end;
        }
        if (start < text.size()) between(start, text.size());
    }

private:
    template <class = void>
    std::int32_t next_id(const Vocabulary& vocab) const {
        const auto size = static_cast<std::int32_t>(vocab.size());
        return tokens_.empty() ? size : std::max(size, tokens_.rbegin()->first + 1);
    }
    static bool ends_in_word(std::string_view text) {
        return !text.empty() && unicode::is_word(unicode::decode_last(text).code);
    }
    static bool begins_with_word(std::string_view text) {
        return !text.empty() && unicode::is_word(unicode::decode(text, 0).code);
    }

    std::map<std::string, std::int32_t, std::less<>> ids_;
    std::map<std::int32_t, AddedToken>               tokens_;          // as added last
    std::set<std::string, std::less<>>               specials_;        // texts that were ever added as special
    std::vector<AddedToken>                          first_specials_;  // these tokens, as added first
    Trie                                             raw_, normalized_;
    bool                                             special_after_normalizing_ = false;
};

}  // namespace prism::detail
