// Piece: part of a prompt, and whether the text in it may name control tokens.
//
//     std::vector<prism::Piece> prompt{{"In: ", true}, {user_text, false}, {"\nOut:", true}};
#pragma once

#include <string>

namespace prism {

/// Templates are trusted: `</s>` in one is the control token. What a user types is not: there it is four characters.
struct Piece {
    std::string text;
    bool        trusted = false;

    bool operator==(const Piece&) const = default;
};

}  // namespace prism
