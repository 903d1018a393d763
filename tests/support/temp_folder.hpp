// A folder that goes away, and what an error says.
#pragma once

#include "prism/core/error.hpp"

#include <doctest/doctest.h>

#include <exception>
#include <filesystem>
#include <fstream>
#include <ios>
#include <string>
#include <string_view>
#include <system_error>

#include <unistd.h>

namespace prism::test {

/// An empty folder, removed with all that is in it.
class TempFolder {
public:
    TempFolder() {
        std::string name = (std::filesystem::temp_directory_path() / "prism-test-XXXXXX").string();
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        path_ = name;
    }
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;
    ~TempFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    const std::filesystem::path& path() const { return path_; }
    std::filesystem::path        operator/(std::string_view name) const { return path_ / name; }
    std::filesystem::path        write(std::string_view name, std::string_view bytes) const {
               std::filesystem::remove(path_ / name);  // a file that was there may be mapped: it stays as it is
               std::ofstream(path_ / name, std::ios::binary) << bytes;
               return path_ / name;
    }

private:
    std::filesystem::path path_;
};

/// Calls `use` and gives the message of the E that it throws; empty when it throws none. Any other exception fails.
template <class E = Error, class Use>
std::string message(Use&& use) {
    try {
        use();
    } catch (const E& e) { return e.what(); } catch (const std::exception& e) {
        FAIL_CHECK("another error: " << std::string(e.what()));
    }
    return {};
}

/// Whether `text` has `part` in it; prints both when not.
inline bool says(std::string_view text, std::string_view part) {
    if (text.find(part) != text.npos) return true;
    MESSAGE("'", std::string(text), "' does not say '", std::string(part), "'");
    return false;
}

}  // namespace prism::test
