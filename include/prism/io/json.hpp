// JSON from files that nobody vouches for.
//
//     prism::Json index = prism::read_json("model.safetensors.index.json");
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/file.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

using Json = nlohmann::json;

namespace detail {

template <class Type, class>
struct LateType {
    using type = Type;
};
/// Type, as a template names it that has a parameter T: a compiler then looks into Type where the template is used, and not
/// wherever its header is included. Of Json that saves most of what including costs.
template <class Type, class T>
using Late = typename LateType<Type, T>::type;

/// Builds a Json value from the parser's events, and is stricter than JSON: no name twice in an object, no more than
/// `max_depth` levels.
template <class J>
class StrictJson : public nlohmann::json_sax<J> {
public:
    using number_integer_t = typename J::number_integer_t;
    using number_unsigned_t = typename J::number_unsigned_t;
    using number_float_t = typename J::number_float_t;
    using string_t = typename J::string_t;
    using binary_t = typename J::binary_t;

    static constexpr std::size_t max_depth = 64;

    J                          value;
    std::string                problem;  // when parsing failed
    std::optional<std::size_t> byte;     // where, when the parser knows it; otherwise the last one that was read

    bool null() override { return put(nullptr); }
    bool boolean(bool x) override { return put(x); }
    bool number_integer(number_integer_t x) override { return put(x); }
    bool number_unsigned(number_unsigned_t x) override { return put(x); }
    bool number_float(number_float_t x, const string_t&) override { return put(x); }
    bool string(string_t& x) override { return put(std::move(x)); }
    bool binary(binary_t&) override { return false; }
    bool start_object(std::size_t) override { return open(J::object()); }
    bool start_array(std::size_t) override { return open(J::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }

    bool key(string_t& name) override {
        const auto [at, fresh] = open_.back()->template get_ref<typename J::object_t&>().try_emplace(name);
        if (!fresh) return refuse("the name \"" + name + "\" stands twice in one object");
        member_ = &at->second;
        return true;
    }
    bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) override {
        byte = position > 0 ? position - 1 : 0;
        const std::string_view text = e.what();
        problem = "not JSON: " + std::string(text.substr(std::min(text.size(), text.find("] ") + 2)));
        return false;
    }

private:
    bool refuse(std::string why) {
        problem = std::move(why);
        return false;
    }
    J* place(J&& x) {
        if (open_.empty()) return &(value = std::move(x));
        if (open_.back()->is_array()) return &open_.back()->emplace_back(std::move(x));
        return &(*member_ = std::move(x));
    }
    bool put(J x) {
        place(std::move(x));
        return true;
    }
    bool open(J container) {
        if (open_.size() == max_depth) return refuse("nested deeper than " + std::to_string(max_depth) + " levels");
        open_.push_back(place(std::move(container)));
        return true;
    }
    bool close() {
        open_.pop_back();
        return true;
    }

    std::vector<J*> open_;              // the containers that are not closed yet, innermost last
    J*              member_ = nullptr;  // where the value of the last key goes
};

/// Iterates over text and keeps `*reached` at the place up to which the parser has read.
struct ReachingText {
    using iterator_category = std::input_iterator_tag;
    using value_type = char;
    using difference_type = std::ptrdiff_t;
    using pointer = const char*;
    using reference = const char&;

    const char*  at;
    const char** reached;

    reference     operator*() const { return *at; }
    ReachingText& operator++() {
        *reached = ++at;
        return *this;
    }
    bool operator==(const ReachingText& other) const { return at == other.at; }
    bool operator!=(const ReachingText& other) const { return at != other.at; }
};

}  // namespace detail

/// One JSON value and nothing after it. Throws FormatError{file, byte, problem} for anything that is not JSON in UTF-8,
/// for a name that stands twice in an object, and for more than 64 levels.
template <class J = Json>  // a template, and J with it, so that including this compiles no parser
J parse_json(std::string_view text, const std::string& file) {
    const char*           reached = text.data();
    detail::StrictJson<J> events;
    if (!J::sax_parse(detail::ReachingText{text.data(), &reached},
                         detail::ReachingText{text.data() + text.size(), &reached}, &events))
        throw FormatError{file, events.byte.value_or(static_cast<std::size_t>(reached - text.data()) - 1),
                          events.problem};
    return std::move(events.value);
}

/// The same for a whole file. Throws LoadError when it cannot be read.
template <class J = Json>
J read_json(const std::filesystem::path& path) {
    return parse_json<J>(read_file(path), path.string());
}

}  // namespace prism
