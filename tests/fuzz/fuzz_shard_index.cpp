// Any bytes as model.safetensors.index.json: plain file names, or LoadError.
#include "prism/io/checkpoint.hpp"

#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    using namespace prism;
    try {
        for (const auto& shard : parse_shard_index({reinterpret_cast<const char*>(data), n}, "fuzz")) {
            const std::filesystem::path path = std::filesystem::path("folder") / shard.first;
            if (path.lexically_normal().parent_path() != "folder") std::abort();
        }
    } catch (const LoadError&) {}
    return 0;
}
