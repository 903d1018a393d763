// Writing what torch.save writes: nested dictionaries of tensors and plain values, in a file that PyTorch loads with
// weights_only=True, and read_torch without copying.
//
//     prism::write_torch("latest-checkpoint.pt", {{"model", prism::TorchDict{{"projector", prism::TorchDict{{"projector.0.weight", tensor}}}}}, {"step", 100}});
// Sources: pytorch/pytorch, torch/serialization.py, torch/_utils.py; pickle protocol 2, CPython's Lib/pickletools.py.
#pragma once

#include "prism/core/error.hpp"
#include "prism/core/tensor.hpp"
#include "prism/io/file.hpp"
#include "prism/io/torch.hpp"
#include "prism/io/zip_writer.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

namespace prism {

struct TorchItem;
/// A dictionary, in this order.
using TorchDict = std::vector<TorchItem>;

/// A name with a number, a text, a tensor, another dictionary, or None.
struct TorchItem {
    struct Nested {};

    std::string                                                                                name;
    std::variant<std::monostate, bool, std::int64_t, double, std::string, TensorInfo, Nested> value;
    TorchDict                                                                                  items{};  // where the value is Nested

    explicit TorchItem(std::string n) : name(std::move(n)) {}
    TorchItem(std::string n, TorchDict x) : name(std::move(n)), value(Nested{}), items(std::move(x)) {}
    TorchItem(std::string n, TensorInfo x) : name(std::move(n)), value(std::move(x)) {}
    TorchItem(std::string n, std::string x) : name(std::move(n)), value(std::move(x)) {}
    TorchItem(std::string n, const char* x) : name(std::move(n)), value(std::string(x)) {}
    TorchItem(std::string n, bool x) : name(std::move(n)), value(x) {}
    TorchItem(std::string n, double x) : name(std::move(n)), value(x) {}
    template <std::integral T>
    TorchItem(std::string n, T x) : name(std::move(n)), value(static_cast<std::int64_t>(x)) {}
};

namespace detail {

/// Pickles a value and collects the storages that it names. Tensors of the same memory share one.
class TorchPickler {
public:
    explicit TorchPickler(std::string file) : file_(std::move(file)) {}

    std::string pickle(const TorchDict& root) {
        out_ = "\x80\x02";
        put(root);
        out_ += '.';
        return std::move(out_);
    }
    /// What lies in data/0, data/1 and so on.
    const std::vector<TensorInfo>& storages() const { return storages_; }

private:
    using Memory = std::tuple<const std::byte*, std::size_t, Dtype>;

    void put(const TorchDict& dict) {
        out_ += "}(";
        std::set<std::string_view> names;
        for (const TorchItem& item : dict) {
            if (!names.insert(item.name).second) throw LoadError{file_, item.name, "one entry of the name", "two"};
            put(item.name);
            if (std::holds_alternative<TorchItem::Nested>(item.value)) put(item.items);
            else std::visit([&](const auto& value) { put(value); }, item.value);
        }
        out_ += 'u';
    }
    void put(std::monostate) { out_ += 'N'; }
    void put(TorchItem::Nested) {}  // put with its items
    void put(bool x) { out_ += x ? '\x88' : '\x89'; }
    void put(std::int64_t x) {
        if (x == static_cast<std::int32_t>(x)) out_ += 'J', bytes(static_cast<std::int32_t>(x));
        else out_ += "\x8a\x08", bytes(x);
    }
    void put(double x) {
        out_ += 'G';
        const auto bits = std::bit_cast<std::uint64_t>(x);
        for (int shift = 56; shift >= 0; shift -= 8) out_ += static_cast<char>(bits >> shift & 0xff);  // the one big-endian number
    }
    void put(const std::string& x) {
        if (x.size() > std::numeric_limits<std::uint32_t>::max()) throw LoadError{file_, "a text of " + std::to_string(x.size()) + " bytes cannot be pickled"};
        out_ += 'X', bytes(static_cast<std::uint32_t>(x.size())), out_ += x;
    }

    void put(const TensorInfo& tensor) {
        const auto type = std::ranges::find_if(torch_symbols, [&](const TorchSymbol& s) { return s.role == TorchRole::storage && s.dtype == tensor.dtype; });
        if (type == torch_symbols.end()) throw LoadError{file_, tensor.name, "an element type that PyTorch has", std::string(to_string(tensor.dtype))};
        if (tensor.panels) throw LoadError{file_, tensor.name, "values in rows", "values in panels"};
        const TensorInfo  t = contiguous(tensor);
        const std::size_t n = t.elements();
        const auto [at, fresh] = keys_.try_emplace(n > 0 ? Memory{t.data, n, t.dtype} : Memory{nullptr, storages_.size(), t.dtype}, storages_.size());
        if (fresh) storages_.push_back(t);

        out_ += "ctorch._utils\n_rebuild_tensor_v2\n((";
        put(std::string("storage"));
        out_.append("c").append(type->module).append("\n").append(type->name).append("\n");
        put(std::to_string(at->second)), put(std::string("cpu")), put(static_cast<std::int64_t>(n));
        out_ += "tQ", put(std::int64_t{0});  // of the storage tuple, and the offset in it
        out_ += '(';
        for (const std::size_t extent : t.shape) put(static_cast<std::int64_t>(extent));
        out_ += "t(";
        std::size_t stride = n;
        for (const std::size_t extent : t.shape) {
            stride = extent > 0 ? stride / extent : 1;
            put(static_cast<std::int64_t>(stride));
        }
        out_ += "t\x89" "ccollections\nOrderedDict\n)RtR";  // needs no gradient, has no hooks
    }

    template <class T>
    void bytes(T number) {
        const auto raw = std::bit_cast<std::array<char, sizeof number>>(number);
        out_.append(raw.data(), raw.size());
    }

    std::string                   file_, out_;
    std::vector<TensorInfo>       storages_;
    std::map<Memory, std::size_t> keys_;
};

}  // namespace detail

/// Writes such a file: beside its place, synced, then renamed. Throws LoadError when the disk fails, for a name that
/// stands twice, and for a tensor of a type that PyTorch has not, or in panels.
inline void write_torch(const std::filesystem::path& path, const TorchDict& root) {
    detail::TorchPickler pickler{path.string()};
    const std::string    pickle = pickler.pickle(root), folder = path.stem().string();
    NewFile              out{path};
    ZipWriter            zip{[&](std::span<const std::byte> bytes) { out.write(bytes); }};
    const auto           add = [&](const std::string& name, std::string_view text) { zip.add(folder + "/" + name, std::as_bytes(std::span{text})); };
    add("data.pkl", pickle);
    add("byteorder", "little");
    const auto& storages = pickler.storages();
    for (std::size_t i = 0; i < storages.size(); ++i) zip.add(folder + "/data/" + std::to_string(i), {storages[i].data, storages[i].bytes()});
    add("version", "3\n");
    // 40 digits that differ where contents do: two sums over the names and checksums.
    std::uint64_t names = 14695981039346656037ULL, sums = names;
    for (const auto& entry : zip.entries()) {
        for (const char c : entry.name) names = (names ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
        sums = (sums ^ entry.crc) * 1099511628211ULL;
    }
    const auto digits = [](std::uint64_t n) {
        const std::string text = std::to_string(n);
        return std::string(20 - text.size(), '0') + text;
    };
    add(".data/serialization_id", digits(names) + digits(sums));
    zip.finish();
    out.commit();
}

}  // namespace prism
