// Any bytes: a GGUF file whose metadata and tensors can all be read, or FormatError. Metadata asked for in the wrong
// type is a ConfigError.
#include "prism/io/gguf.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    using namespace prism;
    const auto bytes = std::as_bytes(std::span{data, n});
    try {
        const Gguf file{MappedFile::of({bytes.begin(), bytes.end()}, "fuzz")};
        for (const GgufTensor& t : file.tensors()) to_floats(t);
        for (const auto& [key, value] : file.metadata()) {
            try {
                value.is_array() ? void(value.integers()) : void(value.integer());
            } catch (const ConfigError&) {}
            try {
                value.is_array() ? void(value.texts()) : void(value.text());
            } catch (const ConfigError&) {}
            try {
                value.is_array() ? void(value.reals()) : void(value.real());
            } catch (const ConfigError&) {}
        }
    } catch (const FormatError&) {}
    return 0;
}
