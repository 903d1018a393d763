// Files of torch.save: .pt, .pth and .bin, zipped (since PyTorch 1.6) or not.
//
//     std::vector<TensorInfo> tensors = prism::read_torch("latest-checkpoint.pt");   // mapped; nothing is copied
//
// Names join the keys of nested dicts and the indices of lists with '.': "model.projector.projector.0.weight". Values
// that are no tensors are dropped. No code of the file runs: see io/pickle.hpp.
// Sources: pytorch/pytorch, torch/serialization.py, torch/_utils.py, torch/_tensor.py.
#pragma once

#include "prism/core/error.hpp"
#include "prism/core/tensor.hpp"
#include "prism/io/bytes.hpp"
#include "prism/io/file.hpp"
#include "prism/io/pickle.hpp"
#include "prism/io/zip.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

namespace prism {

namespace detail {

// clang-format off
enum class TorchRole {
    ordered_dict, rebuild_v2, rebuild_v3, rebuild_from_type, parameter, tensor_type, storage, untyped_storage, dtype, size, device
};
// clang-format on

/// A global of the table; `dtype` is that of a storage, or the one named.
struct TorchSymbol {
    std::string_view module, name;
    TorchRole        role;
    Dtype            dtype = Dtype::other;
};
inline constexpr std::array torch_symbols{
    TorchSymbol{"collections", "OrderedDict", TorchRole::ordered_dict},
    TorchSymbol{"torch._utils", "_rebuild_tensor_v2", TorchRole::rebuild_v2},
    TorchSymbol{"torch._utils", "_rebuild_tensor_v3", TorchRole::rebuild_v3},
    TorchSymbol{"torch._utils", "_rebuild_parameter", TorchRole::parameter},
    TorchSymbol{"torch.nn.parameter", "Parameter", TorchRole::parameter},
    TorchSymbol{"torch._tensor", "_rebuild_from_type_v2", TorchRole::rebuild_from_type},
    TorchSymbol{"torch", "Tensor", TorchRole::tensor_type},
    TorchSymbol{"torch", "Size", TorchRole::size},
    TorchSymbol{"torch", "device", TorchRole::device},
    TorchSymbol{"torch", "FloatStorage", TorchRole::storage, Dtype::f32},
    TorchSymbol{"torch", "DoubleStorage", TorchRole::storage, Dtype::f64},
    TorchSymbol{"torch", "HalfStorage", TorchRole::storage, Dtype::f16},
    TorchSymbol{"torch", "BFloat16Storage", TorchRole::storage, Dtype::bf16},
    TorchSymbol{"torch", "LongStorage", TorchRole::storage, Dtype::i64},
    TorchSymbol{"torch", "IntStorage", TorchRole::storage, Dtype::i32},
    TorchSymbol{"torch", "ShortStorage", TorchRole::storage, Dtype::i16},
    TorchSymbol{"torch", "CharStorage", TorchRole::storage, Dtype::i8},
    TorchSymbol{"torch", "ByteStorage", TorchRole::storage, Dtype::u8},
    TorchSymbol{"torch", "BoolStorage", TorchRole::storage, Dtype::boolean},
    TorchSymbol{"torch.storage", "UntypedStorage", TorchRole::untyped_storage},
    TorchSymbol{"torch", "float32", TorchRole::dtype, Dtype::f32},
    TorchSymbol{"torch", "float64", TorchRole::dtype, Dtype::f64},
    TorchSymbol{"torch", "float16", TorchRole::dtype, Dtype::f16},
    TorchSymbol{"torch", "bfloat16", TorchRole::dtype, Dtype::bf16},
    TorchSymbol{"torch", "float8_e4m3fn", TorchRole::dtype, Dtype::f8_e4m3},
    TorchSymbol{"torch", "float8_e5m2", TorchRole::dtype, Dtype::f8_e5m2},
    TorchSymbol{"torch", "int64", TorchRole::dtype, Dtype::i64},
    TorchSymbol{"torch", "int32", TorchRole::dtype, Dtype::i32},
    TorchSymbol{"torch", "int16", TorchRole::dtype, Dtype::i16},
    TorchSymbol{"torch", "int8", TorchRole::dtype, Dtype::i8},
    TorchSymbol{"torch", "uint64", TorchRole::dtype, Dtype::u64},
    TorchSymbol{"torch", "uint32", TorchRole::dtype, Dtype::u32},
    TorchSymbol{"torch", "uint16", TorchRole::dtype, Dtype::u16},
    TorchSymbol{"torch", "uint8", TorchRole::dtype, Dtype::u8},
    TorchSymbol{"torch", "bool", TorchRole::dtype, Dtype::boolean},
    TorchSymbol{"torch", "complex64", TorchRole::dtype},
    TorchSymbol{"torch", "complex128", TorchRole::dtype},
    TorchSymbol{"torch", "float8_e4m3fnuz", TorchRole::dtype},
    TorchSymbol{"torch", "float8_e5m2fnuz", TorchRole::dtype},
};

/// What the globals of state dicts mean.
template <class = void>
class TorchHost final : public PickleHost {
public:
    using Kind = PickleValue::Kind;

    /// Raw memory that tensors look into.
    struct Storage {
        std::string          key;
        std::optional<Dtype> dtype;      // none: bytes, typed by the tensor
        std::uint64_t        n = 0;      // elements, or bytes
        std::uint64_t        first = 0;  // of the elements within the memory; for views of the old format

        std::uint64_t item() const { return dtype ? item_bytes(*dtype) : 1; }
    };
    /// As it was pickled; TorchTensors checks it once its name is known.
    struct Tensor {
        const Storage*       storage;
        std::optional<Dtype> dtype;  // where the storage has none
        PickleValue          offset, size, stride;
        std::uint64_t        byte;  // of the opcode that built it
    };

    std::int64_t symbol(std::string_view module, std::string_view name, const PickleAt& at) override {
        const auto known = std::ranges::find_if(
            torch_symbols, [&](const TorchSymbol& s) { return s.module == module && s.name == name; });
        if (known == torch_symbols.end())
            at.fail("the global '" + std::string(module) + " " + std::string(name) +
                    "' does not belong to a state dict, and is neither imported nor called");
        return known - torch_symbols.begin();
    }

    PickleValue call(std::int64_t symbol, const PickleValue& arguments, Unpickler& machine,
                     const PickleAt& at) override {
        const TorchSymbol* function = &torch_symbols[static_cast<std::size_t>(symbol)];
        const PickleValue* args = &arguments;
        for (int depth = 0; function->role == TorchRole::rebuild_from_type; ++depth) {
            if (depth == 8) at.fail("a tensor that is wrapped more than eight times");
            // (function, type, arguments, state): how a tensor that carries Python attributes is written
            need(*args, {Kind::symbol, Kind::symbol, Kind::tuple}, at);
            function = &torch_symbols[static_cast<std::size_t>(args->values()[0].integer)];
            args = &args->values()[2];
        }
        switch (function->role) {
            case TorchRole::rebuild_v2: return tensor(*args, std::nullopt, at);
            case TorchRole::rebuild_v3: {
                need(*args, {Kind::made, Kind::integer, Kind::tuple, Kind::tuple, any_kind, any_kind, Kind::symbol},
                     at);
                const TorchSymbol& dtype = torch_symbols[static_cast<std::size_t>(args->values()[6].integer)];
                if (dtype.role != TorchRole::dtype)
                    at.fail("a tensor whose element type is '" + std::string(dtype.name) + "'");
                return tensor(*args, dtype.dtype, at);
            }
            case TorchRole::parameter: need(*args, {Kind::made}, at); return args->values()[0];
            case TorchRole::ordered_dict: return ordered_dict(*args, machine, at);
            case TorchRole::size: need(*args, {Kind::tuple}, at); return args->values()[0];
            case TorchRole::device: return {};
            default:
                at.fail("the global '" + std::string(function->module) + " " + std::string(function->name) +
                        "' is not called");
        }
    }

    PickleValue persistent(const PickleValue& id, const PickleAt& at) override {
        need(id, {Kind::text, Kind::symbol, Kind::text, any_kind, Kind::integer}, at);
        const auto&        items = id.values();
        const TorchSymbol& type = torch_symbols[static_cast<std::size_t>(items[1].integer)];
        if (items[0].text() != "storage" ||
            (type.role != TorchRole::storage && type.role != TorchRole::untyped_storage))
            at.fail("a persistent id that is no storage");
        if (items[4].integer < 0) at.fail("a storage of " + std::to_string(items[4].integer) + " elements");
        Storage storage{std::string(items[2].text()), type.dtype, static_cast<std::uint64_t>(items[4].integer), 0};
        if (storage.key.empty() || storage.key.find_first_not_of("0123456789") != storage.key.npos)
            at.fail("the storage key '" + storage.key + "' is no number");
        if (type.role == TorchRole::untyped_storage) storage.dtype.reset();

        if (const auto view = views_.find(storage.key); view != views_.end()) return made(view->second);
        const auto [root, fresh] = roots_.try_emplace(storage.key, storage);
        if (!fresh && (root->second.dtype != storage.dtype || root->second.n != storage.n))
            at.fail("the storage '" + storage.key + "' is described in two ways");
        if (items.size() > 5 && !items[5].is(Kind::none)) {  // the old format: a window into the storage of that key
            need(items[5], {Kind::text, Kind::integer, Kind::integer}, at);
            const std::int64_t first = items[5].values()[1].integer, n = items[5].values()[2].integer;
            if (first < 0 || n < 0 || static_cast<std::uint64_t>(first) > storage.n ||
                static_cast<std::uint64_t>(n) > storage.n - static_cast<std::uint64_t>(first))
                at.fail("a view of elements " + std::to_string(first) + " + " + std::to_string(n) +
                        " leaves the storage '" + storage.key + "'");
            storage.first = static_cast<std::uint64_t>(first), storage.n = static_cast<std::uint64_t>(n);
            views_.try_emplace(std::string(items[5].values()[0].text()), storage);
        }
        return made(std::move(storage));
    }

    const Tensor* find_tensor(const PickleValue& v) const { return find<Tensor>(v); }
    /// The storages that the pickle names, by key, whole.
    const std::unordered_map<std::string, Storage>& storages() const { return roots_; }

private:
    static constexpr Kind any_kind = static_cast<Kind>(0xff);

    /// `tuple` has at least these items, of these kinds.
    static void need(const PickleValue& tuple, std::initializer_list<Kind> kinds, const PickleAt& at) {
        bool good = tuple.is(Kind::tuple) && tuple.values().size() >= kinds.size();
        if (good)
            good = std::equal(kinds.begin(), kinds.end(), tuple.values().begin(),
                              [](Kind kind, const PickleValue& v) { return kind == any_kind || v.is(kind); });
        if (!good) at.fail("a call or persistent id with arguments that do not fit it");
    }

    PickleValue tensor(const PickleValue& args, std::optional<Dtype> dtype, const PickleAt& at) {
        need(args, {Kind::made, Kind::integer, Kind::tuple, Kind::tuple}, at);
        const auto&    items = args.values();
        const Storage* storage = find<Storage>(items[0]);
        if (!storage) at.fail("a tensor without a storage");
        const Tensor found{storage, dtype, items[1], items[2], items[3], at.byte};  // named: nvcc hands braces on to the variant
        return made(found);
    }

    PickleValue ordered_dict(const PickleValue& args, Unpickler& machine, const PickleAt& at) {
        std::vector<PickleValue> items;
        if (!args.values().empty()) {
            if (!args.values()[0].is(Kind::list)) at.fail("an OrderedDict of something that is no list of pairs");
            for (const PickleValue& pair : args.values()[0].values()) {
                need(pair, {any_kind, any_kind}, at);
                Unpickler::check_key(pair.values()[0], at);
                items.insert(items.end(), {pair.values()[0], pair.values()[1]});
            }
            // Few bytes of a pickle can name one list again and again.
            if ((copied_ += items.size()) > most_copied) at.fail("OrderedDicts share their contents too often");
        }
        return machine.make(Kind::dict, std::move(items));
    }

    PickleValue made(std::variant<Storage, Tensor> object) {
        made_.push_back(std::move(object));
        return PickleValue::of(Kind::made, static_cast<std::int64_t>(made_.size()) - 1);
    }
    template <class T>
    const T* find(const PickleValue& v) const {
        return v.is(Kind::made) ? std::get_if<T>(&made_[static_cast<std::size_t>(v.integer)]) : nullptr;
    }

    static constexpr std::size_t              most_copied = std::size_t{1} << 21;
    std::size_t                               copied_ = 0;  // values of all lists that became dicts
    std::deque<std::variant<Storage, Tensor>> made_;        // a deque, because tensors point at storages
    std::unordered_map<std::string, Storage>  roots_, views_;
};

/// Walks the object of a file and lists its tensors.
template <class Host, class FindStorage>
class TorchTensors {
public:
    /// `find(key)` gives the bytes of a storage as std::optional<std::span<const std::byte>>.
    TorchTensors(const std::shared_ptr<const MappedFile>& file, const Host& host, FindStorage find)
        : file_(file), host_(&host), find_(std::move(find)) {}

    std::vector<TensorInfo> list(const PickleValue& root, std::size_t pickle_bytes) {
        // A container may be shared, and then all below it counts again. So that doubling at every level does not
        // take the memory of 2^64 names, the walk has a budget that no file without such tricks comes near.
        budget_ = 16 * pickle_bytes + slack_bytes;
        std::string name;
        visit(root, name);
        while (!open_.empty()) {
            Level&      level = open_.back();
            const auto& values = level.container.values();
            name.resize(level.name_bytes);
            const bool dict = level.container.is(Kind::dict);
            if (level.next == values.size()) {
                open_.pop_back();
                continue;
            }
            const PickleValue& key = values[level.next];
            const std::string  part = !dict                ? std::to_string(level.next)
                                      : key.is(Kind::text) ? std::string(key.text())
                                                           : std::to_string(key.integer);
            const PickleValue& value = values[level.next + (dict ? 1 : 0)];
            spend(1 + part.size(), name);  // also what is no tensor takes time
            level.next += dict ? 2 : 1;
            if (open_.size() > 1) name += '.';
            name += part;
            visit(value, name);
        }
        return std::move(tensors_);
    }

private:
    using Kind = PickleValue::Kind;
    static constexpr std::size_t slack_bytes = std::size_t{64} << 20, max_depth = 64;

    struct Level {
        PickleValue container;
        std::size_t name_bytes;
        std::size_t next = 0;
    };

    void visit(const PickleValue& value, const std::string& name) {
        if (value.is(Kind::dict) || value.is(Kind::list) || value.is(Kind::tuple)) {
            spend(sizeof(Level) + name.size(), name);
            if (open_.size() == max_depth)
                throw FormatError{file_->path(), 0,
                                  quoted(name) + " is nested deeper than 64 levels, or contains itself"};
            open_.push_back({value, name.size()});
        } else if (const auto* tensor = host_->find_tensor(value)) {
            spend(sizeof(TensorInfo) + 2 * name.size(), name);
            const Fault fault{file_->path(), tensor->byte, name};
            if (!names_.insert(name).second) fault.refuse("is there twice");
            tensors_.push_back(checked(*tensor, fault));
        }
    }

    void spend(std::size_t bytes, const std::string& name) {
        if (bytes > budget_)
            throw FormatError{file_->path(), 0, quoted(name) + " and others share their contents too often"};
        budget_ -= bytes;
    }
    static std::string quoted(const std::string& name) { return "'" + name.substr(0, 200) + "'"; }

    struct Fault {
        const std::string& file;
        std::uint64_t      byte;
        const std::string& name;

        [[noreturn]] void refuse(const std::string& problem) const {
            throw FormatError{file, byte, "tensor '" + name + "' " + problem};
        }
    };

    /// The tensor, known to lie within its storage and its storage within the file.
    TensorInfo checked(const typename Host::Tensor& pickled, const Fault& fault) {
        const auto& storage = *pickled.storage;
        TensorInfo                t;
        t.name = fault.name;
        t.file = fault.file;
        t.owner = file_;
        t.mapped = file_->mapped();
        t.dtype = storage.dtype ? *storage.dtype : pickled.dtype.value_or(Dtype::other);
        const std::size_t item = item_bytes(t.dtype);
        if (item == 0 || (pickled.dtype && *pickled.dtype != t.dtype))
            fault.refuse("has an element type that is not read");
        t.shape = extents(pickled.size, fault);
        t.stride = extents(pickled.stride, fault);
        if (t.shape.size() != t.stride.size())
            fault.refuse("has " + std::to_string(t.shape.size()) + " extents and " + std::to_string(t.stride.size()) +
                         " strides");

        const auto found = find_(storage.key);
        if (!found) fault.refuse("lies in the storage '" + storage.key + "', which the file lacks");
        const auto first = checked_product(storage.first, storage.item()),
                   bytes = checked_product(storage.n, storage.item());
        if (!first || !bytes || *first > found->size() || *bytes > found->size() - *first)
            fault.refuse("lies in a storage of " + std::to_string(storage.n) + " elements, of which the file has " +
                         std::to_string(found->size()) + " bytes");

        const auto bits = checked_bits(t.shape, 8 * item);
        if (!bits) fault.refuse("has the shape " + to_string(t.shape) + ", which is too large");
        t.data = found->data() + *first;
        if (*bits == 0) {
            t.stride.clear();
            return t;
        }
        t.data += checked_offset(pickled.offset.integer, t, *bytes / item, fault) * item;
        if (is_dense(t)) {
            t.stride.clear();
            return t;
        }
        // An extent whose stride is 0 takes no room in the file, and any amount of memory once it is gathered.
        gathered_bytes_ += std::min(*bits / 8, max_gathered_bytes() + 1);
        if (gathered_bytes_ > max_gathered_bytes())
            fault.refuse("with the shape " + to_string(t.shape) + " and strides " + to_string(t.stride) +
                         " repeats its storage beyond reason");
        return t;
    }
    std::uint64_t max_gathered_bytes() const { return file_->bytes().size() + slack_bytes; }

    static std::vector<std::size_t> extents(const PickleValue& tuple, const Fault& fault) {
        std::vector<std::size_t> values;
        if (tuple.values().size() > max_rank)
            fault.refuse("has " + std::to_string(tuple.values().size()) + " dimensions");
        for (const PickleValue& v : tuple.values()) {
            if (!v.is(Kind::integer) || v.integer < 0) fault.refuse("has an extent or stride that is no whole number");
            values.push_back(static_cast<std::size_t>(v.integer));
        }
        return values;
    }

    /// The first element. The last one is offset + sum of (extent - 1) * stride, and both are inside.
    static std::uint64_t checked_offset(std::int64_t offset, const TensorInfo& t, std::uint64_t n_stored,
                                        const Fault& fault) {
        std::uint64_t last = static_cast<std::uint64_t>(offset);
        bool          good = offset >= 0;
        for (std::size_t d = 0; good && d < t.shape.size(); ++d) {
            const auto reach = checked_product(t.shape[d] - 1, t.stride[d]);
            good = reach && !__builtin_add_overflow(last, *reach, &last);
        }
        if (!good || last >= n_stored)
            fault.refuse("at offset " + std::to_string(offset) + " with extents " + to_string(t.shape) +
                         " and strides " + to_string(t.stride) + " leaves its storage of " + std::to_string(n_stored) +
                         " elements");
        return static_cast<std::uint64_t>(offset);
    }

    static bool is_dense(const TensorInfo& t) {
        std::size_t step = 1;
        for (std::size_t d = t.shape.size(); d-- > 0; step *= t.shape[d])
            if (t.shape[d] != 1 && t.stride[d] != step) return false;
        return true;
    }

    std::shared_ptr<const MappedFile> file_;
    const Host*                       host_;
    FindStorage                       find_;
    std::vector<Level>                open_;
    std::vector<TensorInfo>           tensors_;
    std::unordered_set<std::string>   names_;
    std::size_t                       budget_ = 0;
    std::uint64_t                     gathered_bytes_ = 0;
};

inline std::string_view as_text(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline constexpr std::string_view zip_magic{"PK\x03\x04", 4};
/// The pickle of the integer that opens the old format.
inline constexpr std::string_view torch_legacy_magic{"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e",
                                                     15};

}  // namespace detail

/// The tensors of a zipped file. Storages are pointed into, and not checksummed: PyTorch can be told not to compute
/// checksums, and reading 50 GB to list them would be too slow. Throws FormatError.
template <class T = void>
std::vector<TensorInfo> read_torch_zip(const ZipArchive& zip) {
    const auto& file = zip.file();
    const auto& entries = zip.entries();
    if (entries.empty()) throw FormatError{file->path(), 0, "the zip file is empty"};
    const std::string top = entries.front().name.substr(0, entries.front().name.find('/') + 1);
    for (const ZipEntry& entry : entries)
        if (entry.name == top + "constants.pkl" || entry.name.starts_with(top + "code/"))
            zip.refuse(
                entry,
                "makes this a TorchScript program; save the state dict instead: torch.save(model.state_dict(), path)");
    const auto stored = [&](const std::string& name) {
        const ZipEntry* entry = zip.find(top + name);
        if (entry && entry->deflated)
            zip.refuse(*entry, "is compressed, which torch.save never does; prism maps weights as they lie");
        return entry;
    };

    const ZipEntry* pickle = stored("data.pkl");
    if (!pickle) throw FormatError{file->path(), 0, "the zip file has no data.pkl, so torch.save did not write it"};
    if (pickle->crc != 0) zip.check_crc(*pickle, pickle->packed);  // 0: PyTorch was told not to compute it
    if (const ZipEntry* order = stored("byteorder"); order && detail::as_text(order->packed) != "little")
        zip.refuse(*order, "says that the bytes are in another order than 'little'");

    detail::TorchHost<T> host;
    Unpickler            machine{host};
    ByteReader           in{pickle->packed, file->path(), pickle->offset};
    const PickleValue    root = machine.load(in);
    const auto           find = [&](const std::string& key) -> std::optional<std::span<const std::byte>> {
        const ZipEntry* entry = stored("data/" + key);
        return entry ? std::optional{entry->packed} : std::nullopt;
    };
    return detail::TorchTensors{file, host, find}.list(root, pickle->packed.size());
}

/// The tensors of a file from before PyTorch 1.6: five pickles, then the storages. Throws FormatError.
template <class T = void>
std::vector<TensorInfo> read_torch_legacy(const std::shared_ptr<const MappedFile>& file) {
    using Kind = PickleValue::Kind;
    ByteReader in{file->bytes(), file->path()};
    if (in.text(detail::torch_legacy_magic.size(), "the magic number") != detail::torch_legacy_magic)
        throw FormatError{file->path(), 0, "torch.save did not write this file"};
    detail::TorchHost<T> host;
    Unpickler            machine{host};

    constexpr std::int64_t known_version = 1001;
    if (const auto version = machine.load(in); !version.is(Kind::integer) || version.integer != known_version)
        in.fail("the protocol version is not 1001");
    const PickleValue system = machine.load(in);
    if (!system.is(Kind::dict)) in.fail("the third pickle is no dict");
    for (std::size_t i = 0; i < system.values().size(); i += 2)
        if (system.values()[i].is(Kind::text) && system.values()[i].text() == "little_endian" &&
            !system.values()[i + 1].integer)
            in.fail("the bytes are in big-endian order");
    const std::size_t start = in.at();
    const PickleValue root = machine.load(in);
    const std::size_t pickle_bytes = in.at() - start;
    const PickleValue keys = machine.load(in);
    if (!keys.is(Kind::list)) in.fail("the fifth pickle is no list of storages");

    std::unordered_map<std::string, std::span<const std::byte>> found;
    for (const PickleValue& key : keys.values()) {
        if (!key.is(Kind::text)) in.fail("a storage key is no text");
        const auto storage = host.storages().find(std::string(key.text()));
        if (storage == host.storages().end())
            in.fail("the storage '" + std::string(key.text()) + "' belongs to no tensor");
        if (const auto n = in.read<std::uint64_t>("a storage's size"); n != storage->second.n)
            in.fail("the storage '" + storage->first + "' has " + std::to_string(n) + " elements, where " +
                    std::to_string(storage->second.n) + " are stated");
        const auto bytes = checked_product(storage->second.n, storage->second.item());
        if (!bytes) in.fail("the storage '" + storage->first + "' is too large");
        if (!found.try_emplace(storage->first, in.take(*bytes, "a storage")).second)
            in.fail("the storage '" + storage->first + "' is there twice");
    }
    if (in.remaining() > 0) in.fail(std::to_string(in.remaining()) + " bytes follow the last storage");

    const auto find = [&](const std::string& key) -> std::optional<std::span<const std::byte>> {
        const auto at = found.find(key);
        return at == found.end() ? std::nullopt : std::optional{at->second};
    };
    return detail::TorchTensors{file, host, find}.list(root, pickle_bytes);
}

/// Either kind, told apart by content. Throws FormatError.
template <class = void>
std::vector<TensorInfo> read_torch(const std::shared_ptr<const MappedFile>& file) {
    const auto text = detail::as_text(file->bytes());
    if (text.starts_with(detail::zip_magic)) return read_torch_zip(ZipArchive{file});
    constexpr std::size_t tar_magic_at = 257;
    if (text.size() > tar_magic_at && text.substr(tar_magic_at).starts_with("ustar"))
        throw FormatError{file->path(), tar_magic_at,
                          "this is a tar file of a PyTorch before 0.1.10; load and save it with a newer one"};
    return read_torch_legacy(file);
}

/// Also throws LoadError when the file cannot be read.
template <class = void>
std::vector<TensorInfo> read_torch(const std::filesystem::path& path, FileMode mode = FileMode::map) {
    return read_torch(MappedFile::open(path, mode));
}

}  // namespace prism
