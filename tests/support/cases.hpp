// Where the reference cases lie: answers of PyTorch, timm, transformers and Pillow for small models.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <vector>

namespace prism::test {

/// The folders that hold reference cases, all in the same layout: the selection in tests/data, and the whole set where
/// there is one (the environment variable PRISM_REFERENCE_CASES, else the folder shared/reference/cases beside the
/// checkout). A test runs every case of every root and fails if any fails.
inline std::vector<std::filesystem::path> reference_roots() {
    std::vector<std::filesystem::path> roots{std::filesystem::path(PRISM_TEST_DATA) / "reference"};
    if (const char* named = std::getenv("PRISM_REFERENCE_CASES"); named && *named) roots.emplace_back(named);
    else if (const auto beside = std::filesystem::path(PRISM_SOURCE_DIR) / "../shared/reference/cases"; std::filesystem::exists(beside))
        roots.push_back(beside);
    return roots;
}

/// The folders below `room` ("vision", "lm", "vlm") in every root.
inline std::vector<std::filesystem::path> reference_cases(const char* room) {
    std::vector<std::filesystem::path> cases;
    for (const auto& root : reference_roots())
        if (std::filesystem::is_directory(root / room))
            for (const auto& entry : std::filesystem::directory_iterator(root / room))
                if (entry.is_directory()) cases.push_back(entry.path());
    return cases;
}

}  // namespace prism::test
