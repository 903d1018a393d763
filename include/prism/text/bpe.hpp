// Byte-pair encoding: one merge loop for SentencePiece's scores and for the merge lists of Hugging Face.
//
// Both kinds repeatedly merge the neighbours of lowest rank, ties to the leftmost; they differ in where ranks come
// from. Symbols are numbers, ids of tokens as a rule, so merging builds no strings.
#pragma once

#include "prism/core/error.hpp"
#include "prism/text/byte_alphabet.hpp"
#include "prism/text/lookup.hpp"
#include "prism/text/sentencepiece.hpp"
#include "prism/text/unicode.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::detail {

struct BpeOptions {
    std::optional<std::int32_t> unk{};                  // for characters that are no token; they are dropped without
    bool                        fuse_unk = false;       // neighbouring unknown characters give one id
    bool                        byte_fallback = false;  // unknown characters give the tokens <0xXX> of their bytes
    bool                        ignore_merges = false;  // a piece that is a token is that token, whatever the merges
    bool                        byte_level = false;     // tokens are written in the byte alphabet
};

class Bpe {
public:
    using Symbol = std::uint32_t;

    /// Memory that one caller uses again and again.
    struct Scratch;

    /// With a merge list: (left, right, result), the index is the rank. A pair that stands twice has its later rank.
    template <class = void>
    Bpe(Vocabulary vocab, const std::vector<std::array<std::int32_t, 3>>& merges, BpeOptions options)
        : Bpe(std::move(vocab), options) {
        for (std::size_t id = 0; id < vocab_.end_id(); ++id)
            add_character(vocab_.token(static_cast<std::int32_t>(id)), static_cast<Symbol>(id));
        for (std::size_t rank = 0; rank < merges.size(); ++rank) {
            const auto [left, right, result] = merges[rank];
            add_merge(static_cast<Symbol>(left), static_cast<Symbol>(right), static_cast<std::uint32_t>(rank),
                      static_cast<Symbol>(result));
        }
        find_byte_symbols();
    }

    /// With SentencePiece's scores: every way of cutting a piece into two is a merge, of a rank that falls with the
    /// score. `pieces` have passed check_pieces. Throws FormatError when a piece stands twice.
    template <class = void>
    Bpe(const SentencePieceModel& model, const std::string& file)
        : Bpe(vocabulary(model, file),
              {.unk = unknown(model), .fuse_unk = true, .byte_fallback = model.byte_fallback}) {
        for (unsigned byte = 0; model.byte_fallback && byte < 256; ++byte)
            if (byte_tokens_[byte] == none)
                throw FormatError{file, 0, "there is no piece " + byte_token(byte) + ", which byte_fallback needs"};
        const auto&        pieces = model.pieces;
        std::vector<float> scores;
        scores.reserve(pieces.size());
        for (const ScoredPiece& piece : pieces) scores.push_back(piece.score);
        std::sort(scores.begin(), scores.end(), std::greater<>{});
        scores.erase(std::unique(scores.begin(), scores.end()), scores.end());

        unused_.assign(pieces.size(), false);
        for (Symbol id = 0; id < pieces.size(); ++id) {
            const ScoredPiece& piece = pieces[id];
            if (!piece.matches()) continue;
            add_character(piece.text, id);
            unused_[id] = piece.type == ScoredPiece::unused;
            has_unused_ |= unused_[id];
            if (piece.type == ScoredPiece::user_defined)
                frozen_.insert(piece.text, add_extra({static_cast<std::int32_t>(id), piece.text}));
        }
        for (Symbol id = 0; id < pieces.size(); ++id) {
            const ScoredPiece& piece = pieces[id];
            if (!piece.matches()) continue;
            const auto rank = static_cast<std::uint32_t>(
                std::lower_bound(scores.begin(), scores.end(), piece.score, std::greater<>{}) - scores.begin());
            const std::string_view text = piece.text;
            for (std::size_t cut = unicode::decode(text, 0).bytes; cut < text.size();
                 cut += unicode::decode(text, cut).bytes) {
                const auto left = part(pieces, text.substr(0, cut));
                const auto right = left ? part(pieces, text.substr(cut)) : std::nullopt;
                if (right) add_merge(*left, *right, rank, id);
            }
        }
    }

    const Vocabulary& vocabulary() const { return vocab_; }
    const BpeOptions& options() const { return options_; }

    /// Appends the ids of a piece of well-formed text (of any bytes, for a byte-level vocabulary).
    template <class = void>
    void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const;

private:
    static constexpr Symbol      none = ~Symbol{0};
    static constexpr std::size_t max_short = 32;  // symbols of a word; the queue is as quick from there on (measured)

    struct Merge {
        std::uint32_t rank = none;
        Symbol        result = none;
    };
    /// A symbol beyond the vocabulary: a character that is only part of pieces, or a piece that must not merge.
    struct Extra {
        std::optional<std::int32_t> id;
        std::string                 text;
    };

    template <class = void>
    Bpe(Vocabulary vocab, BpeOptions options) : vocab_(std::move(vocab)), options_(options) {
        std::fill(std::begin(ascii_), std::end(ascii_), none);
        for (unsigned byte = 0; byte < 256; ++byte) {
            const auto id = vocab_.find(byte_token(byte));
            byte_tokens_[byte] = id ? static_cast<Symbol>(*id) : none;
        }
    }
    static std::string byte_token(unsigned byte) {
        constexpr std::string_view digits = "0123456789ABCDEF";
        return {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
    }

    template <class = void>
    static std::int32_t unknown(const SentencePieceModel& model) {
        const auto is_unknown = [](const ScoredPiece& piece) { return piece.type == ScoredPiece::unknown; };
        return static_cast<std::int32_t>(std::find_if(model.pieces.begin(), model.pieces.end(), is_unknown) -
                                         model.pieces.begin());
    }
    template <class = void>
    static Vocabulary vocabulary(const SentencePieceModel& model, const std::string& file) {
        Vocabulary vocab;
        for (std::size_t i = 0; i < model.pieces.size(); ++i)
            if (!vocab.insert(model.pieces[i].text, static_cast<std::int32_t>(i)))
                throw FormatError{file, 0,
                                  "piece " + std::to_string(i) + " '" + model.pieces[i].text + "' stands there twice"};
        return vocab;
    }

    std::string_view text(Symbol symbol) const {
        return symbol < vocab_.end_id() ? vocab_.token(static_cast<std::int32_t>(symbol))
                                        : extras_[symbol - vocab_.end_id()].text;
    }
    template <class = void>
    Symbol add_extra(Extra extra) {
        extras_.push_back(std::move(extra));
        return static_cast<Symbol>(vocab_.end_id() + extras_.size() - 1);
    }
    /// A token of one character is the symbol of that character.
    template <class = void>
    void add_character(std::string_view token, Symbol symbol) {
        if (token.empty()) return;
        const unicode::Char c = unicode::decode(token, 0);
        if (c.bytes != token.size()) return;
        if (c.code < std::size(ascii_)) ascii_[c.code] = symbol;
        else characters_[c.code] = symbol;
    }
    Symbol character(char32_t code) const {
        if (code < std::size(ascii_)) return ascii_[code];
        const Symbol* symbol = characters_.find(code);
        return symbol ? *symbol : none;
    }
    /// The symbol of a part of a SentencePiece piece: a piece itself, or a single character.
    template <class = void>
    std::optional<Symbol> part(const std::vector<ScoredPiece>& pieces, std::string_view text) {
        const auto id = vocab_.find(text);
        if (id && pieces[static_cast<std::size_t>(*id)].matches()) return static_cast<Symbol>(*id);
        const unicode::Char c = unicode::decode(text, 0);
        if (c.bytes != text.size()) return std::nullopt;
        if (const Symbol known = character(c.code); known != none) return known;
        const Symbol symbol = add_extra({std::nullopt, std::string(text)});
        add_character(text, symbol);
        return symbol;
    }
    template <class = void>
    void add_merge(Symbol left, Symbol right, std::uint32_t rank, Symbol result) {
        merges_[std::uint64_t{left} << 32 | right] = {rank, result};
        if (text(right).starts_with(metaspace) && !text(left).ends_with(metaspace)) words_part_ = false;
    }
    void find_byte_symbols() {
        for (unsigned byte = 0; byte < 256; ++byte)
            byte_letters_[byte] = character(byte_letter(static_cast<unsigned char>(byte)));
    }

    template <class = void>
    void to_symbols(std::string_view piece, std::vector<Symbol>& symbols) const;
    template <class = void>
    Merge look(Symbol left, Symbol right, Scratch& scratch) const;
    template <class = void>
    void merge_short(std::span<const Symbol> word, Scratch& scratch, std::vector<std::int32_t>& ids) const;
    template <class = void>
    void merge_long(std::span<const Symbol> text, Scratch& scratch, std::vector<std::int32_t>& ids) const;
    template <class = void>
    void emit(Symbol symbol, const Scratch& scratch, std::vector<std::int32_t>& ids) const;

    Vocabulary              vocab_;
    BpeOptions              options_;
    FlatMap<Merge>          merges_;   // left symbol << 32 | right symbol
    Symbol                  ascii_[128];  // the symbols of characters, those below U+0080 apart; nvcc mistakes the type of an std::array
    FlatMap<Symbol>         characters_;
    std::array<Symbol, 256> byte_letters_{};  // byte-level: the symbols of bytes
    std::array<Symbol, 256> byte_tokens_{};   // <0x00> to <0xFF>
    std::vector<Extra>      extras_;
    Trie                    frozen_;  // user-defined pieces -> symbols that merge with nothing
    std::vector<bool>       unused_;  // pieces that are taken apart again after merging
    bool                    has_unused_ = false;
    bool                    words_part_ = true;  // no merge has a U+2581 inside that follows another character
};

struct Bpe::Scratch {
    struct Node {
        Symbol        symbol;
        std::uint32_t prev, next;  // neighbours that are still there; none at the ends
        Merge         with_next;
    };

    std::vector<Symbol>                         symbols;
    std::vector<Node>                           nodes;
    std::vector<std::uint64_t>                  queue;      // rank << 32 | position, smallest first
    std::map<Symbol, std::pair<Symbol, Symbol>> parts;      // what unused pieces were merged from
    std::size_t                                 start = 0;  // of this piece among the ids
};

template <class>
void Bpe::to_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
    bool       unknown_waits = false;  // fusing needs to look one character ahead
    const auto flush_unknown = [&] {
        if (std::exchange(unknown_waits, false)) symbols.push_back(static_cast<Symbol>(*options_.unk));
    };
    const auto add = [&](Symbol symbol, char32_t code) {
        if (symbol != none) {
            flush_unknown();
            symbols.push_back(symbol);
            return;
        }
        if (options_.byte_fallback) {
            const std::string bytes = unicode::to_utf8(code);
            const auto        token = [&](char byte) { return byte_tokens_[static_cast<unsigned char>(byte)]; };
            if (std::all_of(bytes.begin(), bytes.end(), [&](char byte) { return token(byte) != none; })) {
                for (const char byte : bytes) symbols.push_back(token(byte));
                return;  // an unknown character that waits comes after these bytes, as in Hugging Face's BPE
            }
        }
        if (!options_.unk) return;
        if (!options_.fuse_unk) flush_unknown();
        unknown_waits = true;
    };
    if (options_.byte_level) {
        for (const char c : piece) {
            const auto byte = static_cast<unsigned char>(c);
            add(byte_letters_[byte], byte_letter(byte));
        }
    } else {
        for (std::size_t at = 0; at < piece.size();) {
            if (!frozen_.empty())
                if (const auto match = frozen_.longest(piece, at)) {
                    add(match->value, 0);
                    at += match->bytes;
                    continue;
                }
            const unicode::Char c = unicode::decode(piece, at);
            add(character(c.code), c.code);
            at += c.bytes;
        }
    }
    flush_unknown();
}

template <class>
Bpe::Merge Bpe::look(Symbol left, Symbol right, Scratch& scratch) const {
    const Merge* found = merges_.find(std::uint64_t{left} << 32 | right);
    if (!found) return {};
    if (has_unused_ && unused_[found->result]) scratch.parts[found->result] = {left, right};
    return *found;
}

/// A word: finding the lowest rank by looking at all is quicker than keeping order.
template <class>
void Bpe::merge_short(std::span<const Symbol> word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
    std::array<Symbol, max_short> symbols;
    std::array<Merge, max_short>  merges;  // of a symbol and the next one
    std::size_t                   n = word.size();
    std::copy(word.begin(), word.end(), symbols.begin());
    for (std::size_t i = 0; i + 1 < n; ++i) merges[i] = look(symbols[i], symbols[i + 1], scratch);
    while (n > 1) {
        std::size_t best = 0;
        for (std::size_t i = 1; i + 1 < n; ++i)
            if (merges[i].rank < merges[best].rank) best = i;
        if (merges[best].rank == none) break;
        symbols[best] = merges[best].result;
        --n;
        for (std::size_t i = best + 1; i < n; ++i) symbols[i] = symbols[i + 1], merges[i - 1] = merges[i];
        if (best > 0) merges[best - 1] = look(symbols[best - 1], symbols[best], scratch);
        if (best + 1 < n) merges[best] = look(symbols[best], symbols[best + 1], scratch);
    }
    for (std::size_t i = 0; i < n; ++i) emit(symbols[i], scratch, ids);
}

/// A text of any length, in n log n: a list of the symbols that are left, and a queue of the merges that may be next.
template <class>
void Bpe::merge_long(std::span<const Symbol> text, Scratch& scratch, std::vector<std::int32_t>& ids) const {
    auto&      nodes = scratch.nodes;
    auto&      queue = scratch.queue;
    const auto n = static_cast<std::uint32_t>(text.size());
    nodes.clear();
    queue.clear();
    // An entry that a later merge has made void is known by its rank, which is no longer the node's.
    const auto enqueue = [&](std::uint32_t at) {
        auto& node = nodes[at];
        node.with_next = node.next == none ? Merge{} : look(node.symbol, nodes[node.next].symbol, scratch);
        if (node.with_next.rank != none) queue.push_back(std::uint64_t{node.with_next.rank} << 32 | at);
        return node.with_next.rank != none;
    };
    for (std::uint32_t i = 0; i < n; ++i)
        nodes.push_back({text[i], i == 0 ? none : i - 1, i + 1 == n ? none : i + 1, {}});
    for (std::uint32_t i = 0; i < n; ++i) enqueue(i);
    std::make_heap(queue.begin(), queue.end(), std::greater<>{});
    while (!queue.empty()) {
        std::pop_heap(queue.begin(), queue.end(), std::greater<>{});
        const auto at = static_cast<std::uint32_t>(queue.back());
        const auto rank = static_cast<std::uint32_t>(queue.back() >> 32);
        queue.pop_back();
        auto& node = nodes[at];
        if (node.with_next.rank != rank) continue;
        node.symbol = node.with_next.result;
        auto& right = nodes[node.next];
        right.with_next = {};
        node.next = right.next;
        if (node.next != none) nodes[node.next].prev = at;
        if (node.prev != none && enqueue(node.prev)) std::push_heap(queue.begin(), queue.end(), std::greater<>{});
        if (enqueue(at)) std::push_heap(queue.begin(), queue.end(), std::greater<>{});
    }
    for (std::uint32_t at = 0; at != none; at = nodes[at].next) emit(nodes[at].symbol, scratch, ids);
}

template <class>
void Bpe::emit(Symbol symbol, const Scratch& scratch, std::vector<std::int32_t>& ids) const {
    if (symbol < vocab_.end_id()) {
        if (has_unused_ && unused_[symbol])
            if (const auto parts = scratch.parts.find(symbol); parts != scratch.parts.end()) {
                emit(parts->second.first, scratch, ids);
                return emit(parts->second.second, scratch, ids);
            }
        const auto id = static_cast<std::int32_t>(symbol);
        const bool repeated = options_.fuse_unk && id == options_.unk && ids.size() > scratch.start && ids.back() == id;
        return repeated ? void() : ids.push_back(id);
    }
    const Extra& extra = extras_[symbol - vocab_.end_id()];
    if (extra.id) return ids.push_back(*extra.id);
    if (!options_.byte_fallback) return emit(static_cast<Symbol>(*options_.unk), scratch, ids);
    for (const char byte : extra.text)
        ids.push_back(static_cast<std::int32_t>(byte_tokens_[static_cast<unsigned char>(byte)]));
}

template <class>
void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const {
    if (piece.empty()) return;
    if (options_.ignore_merges) {
        std::string letters;
        if (options_.byte_level)
            for (const char c : piece) unicode::append(letters, byte_letter(static_cast<unsigned char>(c)));
        if (const auto whole = vocab_.find(options_.byte_level ? std::string_view(letters) : piece))
            return ids.push_back(*whole);
    }
    auto& symbols = scratch.symbols;
    symbols.clear();
    scratch.parts.clear();
    scratch.start = ids.size();
    to_symbols(piece, symbols);
    if (symbols.size() >= none)
        throw Error("tokenizer: a text of " + std::to_string(piece.size()) + " bytes is too long for one piece");
    // Where no merge crosses the start of a word, words are problems of their own: a handful of symbols instead of the
    // whole text. The cut is exact, because a merged symbol never spans it.
    const Symbol space = words_part_ && !has_unused_ ? character(0x2581) : none;
    for (std::size_t first = 0, i = 1; first < symbols.size(); ++i)
        if (i == symbols.size() || (symbols[i] == space && symbols[i - 1] != space && space != none)) {
            const auto part = std::span(symbols).subspan(first, i - first);
            part.size() <= max_short ? merge_short(part, scratch, ids) : merge_long(part, scratch, ids);
            first = i;
        }
}

}  // namespace prism::detail
