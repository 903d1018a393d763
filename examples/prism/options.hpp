// Errors in the words of a command line: the library speaks of settings ('top_p'), a user has typed options (--top-p).
#pragma once

#include "commands.hpp"

#include "prism/core/error.hpp"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace program {

/// "a, b, c"
inline std::string joined(const std::vector<std::string>& words) {
    std::string all;
    for (const std::string& word : words) all += (all.empty() ? "" : ", ") + word;
    return all;
}

/// The option that a setting of the library is given by.
inline std::string option_of(std::string_view setting) {
    if (setting == "image_resize_strategy") return "--resize";
    if (setting == "picture") return "--image";
    std::string option = setting.starts_with("--") ? "" : "--";
    for (const char c : setting) option += c == '_' ? '-' : c;
    return option;
}

/// What an error says of a setting, said of an option.
inline std::string said_of(const std::string& option, const prism::ConfigError& e) { return option + " is " + (e.value.empty() ? "missing" : e.value) + "; allowed: " + e.allowed; }

/// What `read` makes of the values of options alone, before any work: what it refuses is a usage error.
template <class Read>
auto from_options(Read&& read) {
    try {
        return std::forward<Read>(read)();
    } catch (const prism::ConfigError& e) { throw UsageError{said_of(option_of(e.key), e)}; }
}

}  // namespace program
