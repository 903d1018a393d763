// Any bytes: a zipped or old file of torch.save whose tensors can all be read, or FormatError. The checksum of data.pkl
// stops most changes to it, so fuzz_pickle looks behind that.
#include "prism/io/torch.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    using namespace prism;
    const auto bytes = std::as_bytes(std::span{data, n});
    try {
        for (const TensorInfo& t : read_torch(MappedFile::of({bytes.begin(), bytes.end()}, "fuzz")))
            if (t.elements() < 1 << 20) to_floats(t);
    } catch (const FormatError&) {}
    return 0;
}
