// Any bytes as an annotation file: rows whose pictures stay in their folder, or a typed error. With bad rows skipped, too.
#include "prism/train/data/conversations.hpp"

#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    using namespace prism;
    const auto* bytes = reinterpret_cast<const std::byte*>(data);
    for (const BadExamples bad : {BadExamples::refuse, BadExamples::skip}) {
        try {
            const ConversationFile file{MappedFile::of({bytes, bytes + n}, "fuzz"), {.bad = bad}};
            for (std::size_t i = 0; i < file.size(); ++i) {
                const Conversation c = file[i];
                const auto         path = std::filesystem::path("folder") / c.picture.value_or("x");
                if (c.turns.empty() || !path.lexically_normal().string().starts_with("folder")) std::abort();
            }
        } catch (const Error&) {}
    }
    return 0;
}
