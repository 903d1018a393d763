// Any bytes as a SentencePiece model: a tokenizer that can be used, or an error.
#include "exercise_tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    const std::string_view bytes(reinterpret_cast<const char*>(data), n);
    // Neither of the other formats: their fuzzers take those.
    if (bytes.starts_with("GGUF") || bytes.starts_with("{")) return 0;
    prism::fuzz::exercise_file(bytes);
    return 0;
}
