// ConfigReader: settings of a config.json by name, with their type and range checked where they are read.
//
//     const auto c = prism::ConfigReader::open("config.json");
//     LlamaConfig llama{.d_model = c.count("hidden_size"), .norm_eps = c.real("rms_norm_eps", 1e-6)};
//     if (c.has("text_config")) read_text(c.object("text_config"));   // keys are reported as "text_config.hidden_size"
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/json.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

/// A JSON object that is read key by key. A key that is absent or null takes the fallback given, and is an error where
/// none is. Every reader throws ConfigError{file, key, value, allowed}; keys that nobody asks for are ignored. Copies
/// share the document.
class ConfigReader {
public:
    /// Throws ConfigError unless `json` is an object. `file` is for messages.
    template <class = void>
    ConfigReader(Json json, std::string file)
        : ConfigReader(std::make_shared<const Json>(std::move(json)), std::move(file), "") {}

    /// Throws LoadError when the file cannot be read, ConfigError when it is no JSON object.
    template <class J = Json>
    static ConfigReader open(const std::filesystem::path& path) {
        const std::string text = read_file(path, max_file_bytes);
        try {
            return {parse_json<J>(text, path.string()), path.string()};
        } catch (const FormatError& e) {
            throw ConfigError{path.string(), "(document)", e.problem + " (byte " + std::to_string(e.byte) + ")",
                              "a JSON object"};
        }
    }

    const std::string& file() const { return file_; }
    const Json&        json() const { return *object_; }
    /// Whether there is a value; null counts as none.
    template <class J = Json>
    bool has(std::string_view key) const { return !at<J>(key).is_null(); }

    /// A size: an integer from 1 to `limit`.
    template <class J = Json>
    std::size_t count(std::string_view key, std::optional<std::size_t> fallback = {},
                      std::size_t limit = max_count) const {
        return read<J>(key, fallback, [&](const J& value) { return count_of(key, value, limit); });
    }
    /// An integer from `least` to `most`.
    template <class J = Json>
    std::int64_t integer(std::string_view key, std::int64_t least, std::int64_t most,
                         std::optional<std::int64_t> fallback = {}) const {
        return read<J>(key, fallback, [&](const J& value) {
            if (is_integer(value))
                if (const auto n = value.template get<std::int64_t>(); n >= least && n <= most) return n;
            refuse(key, value, "an integer from " + std::to_string(least) + " to " + std::to_string(most));
        });
    }
    /// A finite number.
    template <class J = Json>
    double real(std::string_view key, std::optional<double> fallback = {}) const {
        return read<J>(key, fallback, [&](const J& value) { return real_of(key, value); });
    }
    template <class J = Json>
    bool flag(std::string_view key, std::optional<bool> fallback = {}) const {
        return read<J>(key, fallback, [&](const J& value) {
            if (!value.is_boolean()) refuse(key, value, "true or false");
            return value.template get<bool>();
        });
    }
    template <class J = Json>
    std::string text(std::string_view key, std::optional<std::string> fallback = {}) const {
        return read<J>(key, std::move(fallback), [&](const J& value) { return text_of(key, value); });
    }
    /// One of the words of `allowed`.
    template <class J = Json>
    std::string choice(std::string_view key, std::initializer_list<std::string_view> allowed,
                       std::optional<std::string> fallback = {}) const {
        return read<J>(key, std::move(fallback), [&](const J& value) {
            if (value.is_string())
                if (const auto& word = value.template get_ref<const std::string&>(); std::ranges::count(allowed, word))
                    return word;
            refuse(key, value, one_of(allowed));
        });
    }

    /// The object below `key`.
    template <class J = Json>
    ConfigReader object(std::string_view key) const {
        return {std::shared_ptr<const Json>(object_, &at<J>(key)), file_, path_of(key)};
    }
    /// The objects of a list, reported as "key.0", "key.1" and so on.
    template <class J = Json>
    std::vector<ConfigReader> objects(std::string_view key) const {
        std::vector<ConfigReader> readers;
        each<J>(key, [&](const std::string& name, const J& item) {
            readers.push_back({std::shared_ptr<const Json>(object_, &item), file_, path_of(name)});
        });
        return readers;
    }
    template <class J = Json>
    std::vector<std::size_t> counts(std::string_view key, std::optional<std::vector<std::size_t>> fallback = {},
                                    std::size_t limit = max_count) const {
        return list<J>(key, std::move(fallback),
                    [&](const std::string& name, const J& item) { return count_of(name, item, limit); });
    }
    template <class J = Json>
    std::vector<double> reals(std::string_view key, std::optional<std::vector<double>> fallback = {}) const {
        return list<J>(key, std::move(fallback),
                    [&](const std::string& name, const J& item) { return real_of(name, item); });
    }
    template <class J = Json>
    std::vector<std::string> texts(std::string_view key, std::optional<std::vector<std::string>> fallback = {}) const {
        return list<J>(key, std::move(fallback),
                    [&](const std::string& name, const J& item) { return text_of(name, item); });
    }

    /// Throws ConfigError for the value that `key` has; for rules that involve more than one key.
    template <class J = Json>
    [[noreturn]] void refuse(std::string_view key, const std::string& allowed) const { refuse(key, at<J>(key), allowed); }

    /// "'a', 'b' or 'c'", for messages about a choice.
    template <class Words>
    static std::string one_of(const Words& words) {
        std::string text;
        std::size_t i = 0;
        for (const auto& word : words) {
            if (i > 0) text += i + 1 == std::size(words) ? " or " : ", ";
            text.append("'").append(word).append("'");
            ++i;
        }
        return text;
    }

    static constexpr std::size_t   max_count = std::size_t{1} << 24;
    static constexpr std::uint64_t max_file_bytes = std::uint64_t{64} << 20;

private:
    template <class = void>
    ConfigReader(std::shared_ptr<const Json> object, std::string file, std::string path)
        : object_(std::move(object)), file_(std::move(file)), path_(std::move(path)) {
        if (!object_->is_object())
            throw ConfigError{file_, path_.empty() ? "(document)" : path_, shown(*object_), "an object"};
    }

    /// The value, or null.
    template <class J = Json>
    const J& at(std::string_view key) const {
        static const J none;
        const J&       object = *object_;
        const auto     found = object.find(key);
        return found == object.end() ? none : *found;
    }
    template <class = void>
    std::string path_of(std::string_view key) const {
        return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
    }

    template <class J, class T, class Convert>
    T read(std::string_view key, std::optional<T> fallback, Convert convert) const {
        const J& value = at<J>(key);
        return value.is_null() && fallback ? *std::move(fallback) : convert(value);
    }
    template <class J, class Visit>
    void each(std::string_view key, Visit visit) const {
        const J& value = at<J>(key);
        if (!value.is_array()) refuse(key, value, "a list");
        for (std::size_t i = 0; i < value.size(); ++i) visit(std::string(key) + "." + std::to_string(i), value[i]);
    }
    template <class J, class T, class Convert>
    std::vector<T> list(std::string_view key, std::optional<std::vector<T>> fallback, Convert convert) const {
        if (fallback && !has(key)) return *std::move(fallback);
        std::vector<T> items;
        each<J>(key, [&](const std::string& name, const J& item) { items.push_back(convert(name, item)); });
        return items;
    }

    /// An integer that fits std::int64_t.
    template <class J = Json>
    static bool is_integer(const J& value) {
        return value.is_number_integer() &&
               (!value.is_number_unsigned() || value.template get<std::uint64_t>() <= std::numeric_limits<std::int64_t>::max());
    }
    template <class J = Json>
    std::size_t count_of(std::string_view key, const J& value, std::size_t limit) const {
        if (is_integer(value) && value.template get<std::int64_t>() >= 1)
            if (const auto n = value.template get<std::uint64_t>(); n <= limit) return static_cast<std::size_t>(n);
        refuse(key, value, "an integer from 1 to " + std::to_string(limit));
    }
    template <class J = Json>
    double real_of(std::string_view key, const J& value) const {
        if (value.is_number())
            if (const auto x = value.template get<double>(); std::isfinite(x)) return x;
        refuse(key, value, "a finite number");
    }
    template <class J = Json>
    std::string text_of(std::string_view key, const J& value) const {
        if (!value.is_string()) refuse(key, value, "a string");
        return value.template get<std::string>();
    }

    template <class J = Json>
    static std::string shown(const J& value) {
        if (value.is_null()) return "";  // which ConfigError spells "missing"
        constexpr std::size_t longest = 80;
        std::string           text = value.dump(-1, ' ', true, J::error_handler_t::replace);
        if (text.size() > longest) text.replace(longest, std::string::npos, "...");
        return text;
    }
    template <class J = Json>
    [[noreturn]] void refuse(std::string_view key, const J& value, const std::string& allowed) const {
        throw ConfigError{file_, path_of(key), shown(value), allowed};
    }

    std::shared_ptr<const Json> object_;
    std::string                 file_, path_;
};

}  // namespace prism
