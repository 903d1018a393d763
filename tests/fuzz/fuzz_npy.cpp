// Any bytes: an npy or npz file whose arrays can all be read, or FormatError.
#include "prism/io/numpy.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    using namespace prism;
    const auto bytes = std::as_bytes(std::span{data, n});
    const auto file = MappedFile::of({bytes.begin(), bytes.end()}, "fuzz");
    try {
        to_floats(read_npy(file));
    } catch (const FormatError&) {}
    try {
        constexpr std::uint64_t limit_bytes = 1 << 20;
        for (const TensorInfo& t : read_npz(ZipArchive{file}, limit_bytes)) to_floats(t);
    } catch (const FormatError&) {}
    return 0;
}
