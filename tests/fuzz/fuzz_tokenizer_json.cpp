// Any bytes as Hugging Face's tokenizer.json: a tokenizer that can be used, or an error.
#include "exercise_tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    const std::string_view bytes(reinterpret_cast<const char*>(data), n);
    if (bytes.starts_with("{")) prism::fuzz::exercise_file(bytes);
    return 0;
}
