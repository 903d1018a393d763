// A pickle machine that executes nothing: values, containers, and a host that says what the few allowed globals mean.
//
//     struct Host : prism::PickleHost { ... };         // io/torch.hpp has one
//     Host host;  prism::Unpickler machine{host};
//     const prism::PickleValue object = machine.load(in);
//
// A pickle is a program for a stack machine. In Python a global names any function of any module, and REDUCE calls it.
// Here a global is looked up in the host's table, and everything that is not in it is a FormatError.
// Sources: CPython, Lib/pickletools.py; pytorch/pytorch, torch/_weights_only_unpickler.py.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/bytes.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace prism {

/// A value of a pickle, small and copied freely. Containers are shared, as in Python: a list changed later changes
/// everywhere. Text and containers live as long as the pickle's bytes and its Unpickler.
struct PickleValue {
    enum class Kind : std::uint8_t { none, boolean, integer, real, text, tuple, list, dict, symbol, made };

    /// The items of a tuple or list; keys and values of a dict in turn.
    struct Items {
        std::vector<PickleValue> values;
    };

    Kind          kind = Kind::none;
    std::uint32_t text_bytes = 0;
    union {
        std::int64_t integer = 0;  // of a boolean, an integer; a number of the host's for a symbol or what it made
        double       real;
        const char*  text_data;
        Items*       items;
    };

    static PickleValue of(Kind kind, std::int64_t number) {
        PickleValue v;
        v.kind = kind, v.integer = number;
        return v;
    }
    bool             is(Kind k) const { return kind == k; }
    std::string_view text() const { return {text_data, text_bytes}; }
    const auto&      values() const { return items->values; }
};

/// The place of an opcode, for messages.
struct PickleAt {
    const std::string& file;
    std::uint64_t      byte;

    [[noreturn]] void fail(const std::string& problem) const { throw FormatError{file, byte, problem}; }
};

class Unpickler;

/// What globals, calls and persistent ids mean. Refuses by at.fail().
class PickleHost {
public:
    virtual ~PickleHost() = default;
    /// A number for a global that is allowed.
    virtual std::int64_t symbol(std::string_view module, std::string_view name, const PickleAt& at) = 0;
    /// symbol(*arguments), by a routine of the host's own; `arguments` is a tuple.
    virtual PickleValue call(std::int64_t symbol, const PickleValue& arguments, Unpickler& machine,
                             const PickleAt& at) = 0;
    virtual PickleValue persistent(const PickleValue& id, const PickleAt& at) = 0;
};

class Unpickler {
public:
    using Kind = PickleValue::Kind;

    /// Longer pickles than this have no business in a file of weights: 10000 tensors take less than 2 MB.
    static constexpr std::size_t max_bytes = std::size_t{64} << 20;

    template <class = void>
    explicit Unpickler(PickleHost& host) : host_(&host) {}
    Unpickler(const Unpickler&) = delete;
    Unpickler& operator=(const Unpickler&) = delete;

    /// Runs one pickle, up to and including its STOP. Each operand is checked against what is left of `in`, and each
    /// opcode adds at most one value, so memory stays within a small multiple of the bytes read. Throws FormatError
    /// that names the opcode or global and its offset.
    template <class = void>
    PickleValue load(ByteReader& in) {
        const std::size_t start = in.at();
        stack_.clear(), marks_.clear(), memo_.clear();
        for (;;) {
            const PickleAt at{in.file(), in.offset()};
            const auto     opcode = in.read<std::uint8_t>("an opcode");
            if (in.at() - start > max_bytes)
                at.fail("the pickle goes on after " + std::to_string(max_bytes) + " bytes");
            if (in.at() - start == 1 && opcode != proto) at.fail("no pickle of protocol 2 to 4 begins here");
            if (opcode == stop) {
                const PickleValue result = pop(at);
                if (!stack_.empty() || !marks_.empty()) at.fail("the pickle ends with values left over");
                return result;
            }
            step(opcode, in, at);
        }
    }

    /// A new container, for hosts.
    template <class = void>
    PickleValue make(Kind kind, std::vector<PickleValue> values = {}) {
        PickleValue v;
        v.kind = kind, v.items = &containers_.emplace_back(PickleValue::Items{std::move(values)});
        return v;
    }

    /// Throws FormatError unless `key` can stand in a dict of tensors.
    static void check_key(const PickleValue& key, const PickleAt& at) {
        if (!key.is(Kind::text) && !key.is(Kind::integer))
            at.fail("a dict gets a key that is neither text nor an integer");
    }

private:
    // clang-format off
    enum Opcode : std::uint8_t {
        proto = 0x80, frame = 0x95, stop = '.', mark = '(', none = 'N', new_true = 0x88, new_false = 0x89,
        bin_int = 'J', bin_int1 = 'K', bin_int2 = 'M', long1 = 0x8a, bin_float = 'G',
        bin_unicode = 'X', short_bin_unicode = 0x8c, bin_string = 'T', short_bin_string = 'U',
        empty_tuple = ')', tuple = 't', tuple1 = 0x85, tuple2 = 0x86, tuple3 = 0x87, empty_list = ']', append = 'a',
        appends = 'e', empty_set = 0x8f, add_items = 0x90, empty_dict = '}', set_item = 's', set_items = 'u',
        bin_put = 'q', long_bin_put = 'r', memoize = 0x94, bin_get = 'h', long_bin_get = 'j',
        global = 'c', stack_global = 0x93, reduce = 'R', new_object = 0x81, build = 'b', bin_persistent_id = 'Q'
    };
    // clang-format on

    template <class = void>
    void step(std::uint8_t opcode, ByteReader& in, const PickleAt& at) {
        switch (opcode) {
            case proto:
                if (const auto version = in.read<std::uint8_t>("PROTO"); version < 2 || version > 4)
                    at.fail("pickle protocol " + std::to_string(version) + " is not read; 2 to 4 are");
                return;
            case frame:  // says how much a streaming reader should fetch
                if (in.read<std::uint64_t>("FRAME") > in.remaining()) at.fail("a FRAME reaches past the end");
                return;
            case mark: return marks_.push_back(stack_.size());
            case none: return push({});
            case new_true: return push(PickleValue::of(Kind::boolean, 1));
            case new_false: return push(PickleValue::of(Kind::boolean, 0));
            case bin_int: return push_integer(in.read<std::int32_t>("BININT"));
            case bin_int1: return push_integer(in.read<std::uint8_t>("BININT1"));
            case bin_int2: return push_integer(in.read<std::uint16_t>("BININT2"));
            case long1: return push_integer(read_long1(in, at));
            case bin_float: return push_real(in.read<std::uint64_t>("BINFLOAT"));
            case bin_unicode: return push_text(in.text(in.read<std::uint32_t>("BINUNICODE"), "BINUNICODE"));
            case bin_string: return push_text(in.text(in.read<std::uint32_t>("BINSTRING"), "BINSTRING"));
            case short_bin_unicode:
            case short_bin_string: return push_text(in.text(in.read<std::uint8_t>("a short string"), "a short string"));
            case empty_tuple: return push(make(Kind::tuple));
            case tuple: return push_tuple(pop_to_mark(at));
            case tuple1: return push_tuple(pop_many(1, at));
            case tuple2: return push_tuple(pop_many(2, at));
            case tuple3: return push_tuple(pop_many(3, at));
            case empty_set:  // a set is kept as the list of its members
            case empty_list: return push(make(Kind::list));
            case append: return append_to_list(pop_many(1, at), at);
            case add_items:
            case appends: return append_to_list(pop_to_mark(at), at);
            case empty_dict: return push(make(Kind::dict));
            case set_item: return set_in_dict(pop_many(2, at), at);
            case set_items: return set_in_dict(pop_to_mark(at), at);
            case bin_put: return put(in.read<std::uint8_t>("BINPUT"), at);
            case long_bin_put: return put(in.read<std::uint32_t>("LONG_BINPUT"), at);
            case memoize: return put(static_cast<std::uint32_t>(memo_.size()), at);
            case bin_get: return get(in.read<std::uint8_t>("BINGET"), at);
            case long_bin_get: return get(in.read<std::uint32_t>("LONG_BINGET"), at);
            case global: {
                const auto module = in.line("a module's name"), name = in.line("a global's name");
                return push_symbol(module, name, at);
            }
            case stack_global: {
                const auto name = pop(at), module = pop(at);
                if (!name.is(Kind::text) || !module.is(Kind::text)) at.fail("STACK_GLOBAL without two names");
                return push_symbol(module.text(), name.text(), at);
            }
            case new_object:
            case reduce: {
                const auto arguments = pop(at), symbol = pop(at);
                if (!symbol.is(Kind::symbol)) at.fail("a call of something that is no global");
                if (!arguments.is(Kind::tuple)) at.fail("a call whose arguments are no tuple");
                return push(host_->call(symbol.integer, arguments, *this, at));
            }
            case bin_persistent_id: return push(host_->persistent(pop(at), at));
            case build:  // sets attributes, such as a state dict's _metadata; they hold no tensors
                if (!pop(at).is(Kind::dict) || !top(at).is(Kind::dict)) at.fail("BUILD of something that is no dict");
                return;
            default: at.fail("the opcode " + name_of(opcode) + " does not occur in state dicts, and is not run");
        }
    }

    // The values below the last mark belong to the container that is being built around them.
    std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

    PickleValue& top(const PickleAt& at) {
        if (stack_.size() <= floor()) underflow(at);
        return stack_.back();
    }
    PickleValue pop(const PickleAt& at) {
        const PickleValue value = top(at);
        stack_.pop_back();
        return value;
    }
    template <class = void>
    std::vector<PickleValue> pop_many(std::size_t n, const PickleAt& at) {
        if (stack_.size() < floor() + n) underflow(at);
        const auto               first = stack_.end() - static_cast<std::ptrdiff_t>(n);
        std::vector<PickleValue> items(first, stack_.end());
        stack_.erase(first, stack_.end());
        return items;
    }
    template <class = void>
    std::vector<PickleValue> pop_to_mark(const PickleAt& at) {
        if (marks_.empty()) underflow(at);
        auto items = pop_many(stack_.size() - floor(), at);
        marks_.pop_back();
        return items;
    }
    [[noreturn]] static void underflow(const PickleAt& at) {
        at.fail("the pickle takes more values than it has pushed");
    }

    template <class = void>
    void put(std::uint32_t index, const PickleAt& at) { memo_[index] = top(at); }
    template <class = void>
    void get(std::uint32_t index, const PickleAt& at) {
        const auto found = memo_.find(index);
        if (found == memo_.end()) at.fail("the memo has no entry " + std::to_string(index));
        push(found->second);
    }

    template <class = void>
    void push(PickleValue value) { stack_.push_back(value); }
    template <class = void>
    void push_integer(std::int64_t n) { push(PickleValue::of(Kind::integer, n)); }
    template <class = void>
    void push_real(std::uint64_t big_endian) {
        PickleValue v;
        v.kind = Kind::real, v.real = std::bit_cast<double>(__builtin_bswap64(big_endian));
        push(v);
    }
    template <class = void>
    void push_text(std::string_view text) {
        PickleValue v;
        v.kind = Kind::text, v.text_data = text.data(), v.text_bytes = static_cast<std::uint32_t>(text.size());
        push(v);
    }
    template <class = void>
    void push_tuple(std::vector<PickleValue> items) { push(make(Kind::tuple, std::move(items))); }
    template <class = void>
    void push_symbol(std::string_view module, std::string_view name, const PickleAt& at) {
        push(PickleValue::of(Kind::symbol, host_->symbol(module, name, at)));
    }
    template <class = void>
    void append_to_list(const std::vector<PickleValue>& items, const PickleAt& at) {
        if (!top(at).is(Kind::list)) at.fail("values are appended to something that is no list");
        auto& values = top(at).items->values;
        values.insert(values.end(), items.begin(), items.end());
    }
    template <class = void>
    void set_in_dict(const std::vector<PickleValue>& items, const PickleAt& at) {
        if (!top(at).is(Kind::dict)) at.fail("items are set in something that is no dict");
        if (items.size() % 2 != 0) at.fail("a dict gets a key without a value");
        for (std::size_t i = 0; i < items.size(); i += 2) check_key(items[i], at);
        auto& values = top(at).items->values;
        values.insert(values.end(), items.begin(), items.end());
    }

    /// Little-endian two's complement of as many bytes as it needs.
    template <class = void>
    static std::int64_t read_long1(ByteReader& in, const PickleAt& at) {
        const auto bytes = in.text(in.read<std::uint8_t>("LONG1"), "LONG1");
        if (bytes.size() > sizeof(std::int64_t)) at.fail("an integer of " + std::to_string(bytes.size()) + " bytes");
        std::uint64_t n = !bytes.empty() && (bytes.back() & 0x80) ? ~std::uint64_t{0} : 0;  // extends the sign
        for (std::size_t i = bytes.size(); i-- > 0;) n = n << 8 | static_cast<std::uint8_t>(bytes[i]);
        return static_cast<std::int64_t>(n);
    }
    template <class = void>
    static std::string name_of(std::uint8_t opcode) {
        static constexpr std::pair<std::uint8_t, const char*> names[]{{'0', "POP"},
                                                                      {'1', "POP_MARK"},
                                                                      {'2', "DUP"},
                                                                      {'i', "INST"},
                                                                      {'o', "OBJ"},
                                                                      {'I', "INT"},
                                                                      {'L', "LONG"},
                                                                      {'F', "FLOAT"},
                                                                      {'S', "STRING"},
                                                                      {'V', "UNICODE"},
                                                                      {'P', "PERSID"},
                                                                      {'g', "GET"},
                                                                      {'p', "PUT"},
                                                                      {'d', "DICT"},
                                                                      {'l', "LIST"},
                                                                      {'B', "BINBYTES"},
                                                                      {'C', "SHORT_BINBYTES"},
                                                                      {0x82, "EXT1"},
                                                                      {0x83, "EXT2"},
                                                                      {0x84, "EXT4"},
                                                                      {0x8b, "LONG4"},
                                                                      {0x8d, "BINUNICODE8"},
                                                                      {0x8e, "BINBYTES8"},
                                                                      {0x91, "FROZENSET"},
                                                                      {0x92, "NEWOBJ_EX"},
                                                                      {0x96, "BYTEARRAY8"},
                                                                      {0x97, "NEXT_BUFFER"},
                                                                      {0x98, "READONLY_BUFFER"}};
        constexpr const char*                                 digits = "0123456789abcdef";
        std::string text = std::string("0x") + digits[opcode >> 4] + digits[opcode & 15];
        const auto  known = std::ranges::find(names, opcode, [](const auto& n) { return n.first; });
        return known == std::end(names) ? text : std::string(known->second) + " (" + text + ")";
    }

    PickleHost*                                    host_;
    std::deque<PickleValue::Items>                 containers_;  // owns all of them, so cycles need no counting
    std::vector<PickleValue>                       stack_;
    std::vector<std::size_t>                       marks_;  // sizes of the stack
    std::unordered_map<std::uint32_t, PickleValue> memo_;
};

}  // namespace prism
