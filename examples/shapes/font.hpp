// A font of 5 x 7 dots: the capital letters and the digits.
//
//     if (dot('K', 2, 4)) ...   // column 2, row 4 of the letter
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace prism::shapes {

inline constexpr int glyph_width = 5, glyph_height = 7;

namespace detail {

inline constexpr std::string_view font_letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/// Seven rows a letter, five bits a row, the leftmost is 16.
inline constexpr std::array<std::array<std::uint8_t, 7>, 36> font{{
    {14, 17, 17, 31, 17, 17, 17}, {30, 17, 17, 30, 17, 17, 30}, {14, 17, 16, 16, 16, 17, 14}, {30, 17, 17, 17, 17, 17, 30},
    {31, 16, 16, 30, 16, 16, 31}, {31, 16, 16, 30, 16, 16, 16}, {14, 17, 16, 23, 17, 17, 14}, {17, 17, 17, 31, 17, 17, 17},
    {14, 4, 4, 4, 4, 4, 14},      {7, 2, 2, 2, 2, 18, 12},      {17, 18, 20, 24, 20, 18, 17}, {16, 16, 16, 16, 16, 16, 31},
    {17, 27, 21, 21, 17, 17, 17}, {17, 25, 21, 19, 17, 17, 17}, {14, 17, 17, 17, 17, 17, 14}, {30, 17, 17, 30, 16, 16, 16},
    {14, 17, 17, 17, 21, 18, 13}, {30, 17, 17, 30, 20, 18, 17}, {15, 16, 16, 14, 1, 1, 30},   {31, 4, 4, 4, 4, 4, 4},
    {17, 17, 17, 17, 17, 17, 14}, {17, 17, 17, 17, 17, 10, 4},  {17, 17, 17, 21, 21, 27, 17}, {17, 17, 10, 4, 10, 17, 17},
    {17, 17, 10, 4, 4, 4, 4},     {31, 1, 2, 4, 8, 16, 31},     {14, 17, 19, 21, 25, 17, 14}, {4, 12, 4, 4, 4, 4, 14},
    {14, 17, 1, 6, 8, 16, 31},    {31, 2, 4, 6, 1, 17, 14},     {2, 6, 10, 18, 31, 2, 2},     {31, 16, 30, 1, 1, 17, 14},
    {6, 8, 16, 30, 17, 17, 14},   {31, 1, 2, 4, 8, 8, 8},       {14, 17, 17, 14, 17, 17, 14}, {14, 17, 17, 15, 1, 2, 12},
}};

}  // namespace detail

/// Whether a letter is inked at a column and row. `letter` is a capital or a digit.
constexpr bool dot(char letter, int column, int row) {
    const std::size_t i = detail::font_letters.find(letter);
    return i != std::string_view::npos && (detail::font[i][static_cast<std::size_t>(row)] >> (glyph_width - 1 - column) & 1) != 0;
}

}  // namespace prism::shapes
