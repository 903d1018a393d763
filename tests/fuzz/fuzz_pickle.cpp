// Any bytes as a pickle of torch.save, over storages of 64 bytes each.
#include "prism/io/torch.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    using namespace prism;
    const auto bytes = std::as_bytes(std::span{data, n});
    const auto pickle = MappedFile::of({bytes.begin(), bytes.end()}, "fuzz");
    const auto storage = MappedFile::of(std::vector<std::byte>(64), "storage");
    const auto find = [&](const std::string& key) {
        return key == "9" ? std::nullopt : std::optional{storage->bytes()};
    };
    try {
        detail::TorchHost host;
        Unpickler         machine{host};
        ByteReader        in{pickle->bytes(), "fuzz"};
        const PickleValue root = machine.load(in);
        for (const TensorInfo& t : detail::TorchTensors{storage, host, find}.list(root, n))
            if (t.elements() < 1 << 20) to_floats(t);
    } catch (const FormatError&) {}
    return 0;
}
