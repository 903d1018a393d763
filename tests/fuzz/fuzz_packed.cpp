// Any bytes, with a checksum that fits their header: a packed model whose tensors, settings and tokenizer can be read, or
// an error.
#include "exercise_tokenizer.hpp"

#include "prism/model/packed.hpp"
#include "prism/model/settings.hpp"

#include <cstring>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    using namespace prism;
    std::vector<std::byte> bytes(n);
    if (n) std::memcpy(bytes.data(), data, n);
    if (n >= detail::bundle_header_at) {
        std::uint64_t header = 0;
        std::memcpy(&header, bytes.data() + 16, sizeof header);
        if (header <= n - detail::bundle_header_at) {
            const std::uint32_t crc = detail::crc32_of(std::span{bytes}.subspan(detail::bundle_header_at, header));
            std::memcpy(bytes.data() + 12, &crc, sizeof crc);
        }
    }
    try {
        const PackedModel packed = PackedModel::read(MappedFile::of(std::move(bytes), "fuzz"));
        unsigned          sum = 0;
        for (const TensorInfo& t : packed.weights.tensors()) {
            const auto size = packed_bytes(t);
            sum += static_cast<unsigned>(t.data[0]) + static_cast<unsigned>(t.data[size - 1]);
            if (item_bytes(t.dtype) && !t.panels) to_floats(t);
        }
        fuzz::require(sum < ~0U && packed.formats().size() < 100);
        if (packed.layout == "timm-tower") {
            vit_settings(packed.settings.object("vit")), transform_settings(packed.settings.object("transform"));
        } else if (packed.layout == "language-model") {
            language_model_settings(packed.settings);
        } else {
            const auto c = prismatic_settings(packed.settings.object("model"));
            fuzz::require(prismatic_settings(ConfigReader{to_json(c), "again"}).n_patches() == c.n_patches());
        }
        if (packed.tokenizer) Tokenizer::from(*packed.tokenizer);
    } catch (const Error&) {}
    return 0;
}
