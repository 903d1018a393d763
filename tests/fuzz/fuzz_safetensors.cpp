// Any bytes: tensors that can all be read, or FormatError.
#include "prism/io/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    using namespace prism;
    const auto bytes = std::as_bytes(std::span{data, n});
    try {
        const Safetensors file = read_safetensors(MappedFile::of({bytes.begin(), bytes.end()}, "fuzz"));
        for (const TensorInfo& t : file.tensors)
            if (t.dtype != Dtype::other) to_floats(t);
    } catch (const FormatError&) {}
    return 0;
}
