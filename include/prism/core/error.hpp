// Errors: one exception type per kind of failure, the facts as members, one sentence in what().
//
//     try { prism::load(cpu, vlm, file); }
//     catch (const prism::LoadError& e) { std::cerr << e.what() << '\n'; }   // or e.file, e.tensor, e.expected, e.found
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace prism {

/// Everything that prism throws on its own account derives from this.
class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// A file, folder or set of weights that does not fit: missing, unreadable, or not what the model expects.
class LoadError : public Error {
public:
    /// One tensor that does not fit.
    LoadError(std::string file, std::string tensor, std::string expected, std::string found)
        : Error(file + ": tensor '" + tensor + "': expected " + expected + ", found " + found), file(std::move(file)),
          tensor(std::move(tensor)), expected(std::move(expected)), found(std::move(found)) {}

    /// A file or folder as a whole, or several tensors listed in `problem`.
    LoadError(std::string file, const std::string& problem) : Error(file + ": " + problem), file(std::move(file)) {}

    std::string file, tensor, expected, found;
};

/// A view of the wrong shape was handed to an operation.
class ShapeError : public Error {
public:
    ShapeError(std::string op, std::string argument, std::string expected, std::string found)
        : Error(op + ": " + argument + ": expected " + expected + ", found " + found), op(std::move(op)),
          argument(std::move(argument)), expected(std::move(expected)), found(std::move(found)) {}

    std::string op, argument, expected, found;
};

/// Bytes that do not follow their format. `byte` is the offset in the file (or in the text that was parsed).
class FormatError : public Error {
public:
    FormatError(std::string file, std::uint64_t byte, std::string problem)
        : Error(file + ": byte " + std::to_string(byte) + ": " + problem), file(std::move(file)), byte(byte),
          problem(std::move(problem)) {}

    std::string   file;
    std::uint64_t byte;
    std::string   problem;
};

/// A call to a device library failed.
class DeviceError : public Error {
public:
    DeviceError(std::string call, int code, const std::string& advice)
        : Error(call + " failed with code " + std::to_string(code) + ": " + advice), call(std::move(call)), code(code) {}

    std::string call;
    int         code;
};

/// A setting, from a configuration file or an option, whose value cannot be used.
class ConfigError : public Error {
public:
    ConfigError(std::string key, std::string value, std::string allowed)
        : Error("'" + key + "' is " + (value.empty() ? std::string("missing") : value) + "; allowed: " + allowed),
          key(std::move(key)), value(std::move(value)), allowed(std::move(allowed)) {}

    /// The same, for a setting that stands in a file.
    ConfigError(const std::string& file, std::string key, std::string value, std::string allowed)
        : Error(file + ": '" + key + "' is " + (value.empty() ? std::string("missing") : value) + "; allowed: " + allowed),
          key(std::move(key)), value(std::move(value)), allowed(std::move(allowed)) {}

    std::string key, value, allowed;
};

}  // namespace prism
