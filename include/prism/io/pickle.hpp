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
        std::int64_t integer = 0; // of a boolean, an integer; a number of the host's for a symbol or what it made
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

    explicit Unpickler(PickleHost& host) : host_(&host) {}
    Unpickler(const Unpickler&) = delete;
    Unpickler& operator=(const Unpickler&) = delete;

    /// Runs one pickle, up to and including its STOP. Each operand is checked against what is left of `in`, and each
    /// opcode adds at most one value, so memory stays within a small multiple of the bytes read. Throws FormatError
    /// that names the opcode or global and its offset.
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
    enum : std::uint8_t { proto = 0x80, stop = '.' };

    void step(std::uint8_t opcode, ByteReader& in, const PickleAt& at) {
        switch (opcode) {
            case proto:
                if (const auto version = in.read<std::uint8_t>("PROTO"); version < 2 || version > 4)
                    at.fail("pickle protocol " + std::to_string(version) + " is not read; 2 to 4 are");
                break;
            case 0x95: check_frame(in); break;                         // FRAME
            case 'N': push(PickleValue{}); break;                      // NONE
            case 0x88: push(PickleValue::of(Kind::boolean, 1)); break; // NEWTRUE
            case 0x89: push(PickleValue::of(Kind::boolean, 0)); break; // NEWFALSE
            case 'K': push_integer(in.read<std::uint8_t>("BININT1")); break;
            case 'M': push_integer(in.read<std::uint16_t>("BININT2")); break;
            case 'J': push_integer(in.read<std::int32_t>("BININT")); break;
            case 0x8a: push_integer(long1(in, at)); break;
            case 'G': push_real(in.read<std::uint64_t>("BINFLOAT")); break;
            case 'X': push_text(in.text(in.read<std::uint32_t>("BINUNICODE"), "BINUNICODE")); break;
            case 'T': push_text(in.text(in.read<std::uint32_t>("BINSTRING"), "BINSTRING")); break;
            case 'U': push_text(in.text(in.read<std::uint8_t>("SHORT_BINSTRING"), "SHORT_BINSTRING")); break;
            case 0x8c: push_text(in.text(in.read<std::uint8_t>("SHORT_BINUNICODE"), "SHORT_BINUNICODE")); break;
            case '}': push(make(Kind::dict)); break;          // EMPTY_DICT
            case ']': push(make(Kind::list)); break;          // EMPTY_LIST
            case 0x8f: push(make(Kind::list)); break;         // EMPTY_SET
            case ')': push(make(Kind::tuple)); break;         // EMPTY_TUPLE
            case '(': marks_.push_back(stack_.size()); break; // MARK
            case 't': {
                auto items = pop_to_mark(at);
                push(make(Kind::tuple, std::move(items)));
                break;
            } // TUPLE
            case 0x85:
            case 0x86:
            case 0x87: push_tuple(opcode - 0x84U, at); break; // TUPLE1 to 3
            case 'q': memo_[in.read<std::uint8_t>("BINPUT")] = top(at); break;
            case 'r': memo_[in.read<std::uint32_t>("LONG_BINPUT")] = top(at); break;
            case 0x94: memo_[static_cast<std::uint32_t>(memo_.size())] = top(at); break; // MEMOIZE
            case 'h': push(memo(in.read<std::uint8_t>("BINGET"), at)); break;
            case 'j': push(memo(in.read<std::uint32_t>("LONG_BINGET"), at)); break;
            case 'a': {
                const auto item = pop(at);
                append({item}, at);
                break;
            } // APPEND
            case 'e':
            case 0x90: append(pop_to_mark(at), at); break; // APPENDS, ADDITEMS
            case 's': {
                const auto value = pop(at), key = pop(at);
                set_items({key, value}, at);
                break;
            }                                                // SETITEM
            case 'u': set_items(pop_to_mark(at), at); break; // SETITEMS
            case 'c': {                                      // GLOBAL
                const auto module = in.line("a module's name"), name = in.line("a global's name");
                push_symbol(module, name, at);
                break;
            }
            case 0x93: { // STACK_GLOBAL
                const auto name = pop(at), module = pop(at);
                if (!name.is(Kind::text) || !module.is(Kind::text)) at.fail("STACK_GLOBAL without two names");
                push_symbol(module.text(), name.text(), at);
                break;
            }
            case 'R':
            case 0x81: { // REDUCE, NEWOBJ
                const auto arguments = pop(at), symbol = pop(at);
                if (!symbol.is(Kind::symbol)) at.fail("a call of something that is no global");
                if (!arguments.is(Kind::tuple)) at.fail("a call whose arguments are no tuple");
                push(host_->call(symbol.integer, arguments, *this, at));
                break;
            }
            case 'Q': {
                const auto id = pop(at);
                push(host_->persistent(id, at));
                break;
            }           // BINPERSID
            case 'b': { // BUILD
                const auto state = pop(at);
                if (!state.is(Kind::dict) || !top(at).is(Kind::dict))
                    at.fail("BUILD of something other than a dict by a dict");
                break; // attributes of a dict, such as a state dict's _metadata, carry no tensors
            }
            default: at.fail("the opcode " + name_of(opcode) + " does not occur in state dicts, and is not run");
        }
    }

    // The values below the last mark belong to the container that is being built around them.
    std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
    void        need(bool condition, const PickleAt& at) const {
               if (!condition) at.fail("the pickle takes more values than it has pushed");
    }
    PickleValue& top(const PickleAt& at) {
        need(stack_.size() > floor(), at);
        return stack_.back();
    }
    PickleValue pop(const PickleAt& at) {
        const PickleValue value = top(at);
        stack_.pop_back();
        return value;
    }
    std::vector<PickleValue> pop_to_mark(const PickleAt& at) {
        need(!marks_.empty(), at);
        const auto               first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
        std::vector<PickleValue> items(first, stack_.end());
        stack_.erase(first, stack_.end());
        marks_.pop_back();
        return items;
    }
    const PickleValue& memo(std::uint32_t index, const PickleAt& at) const {
        const auto found = memo_.find(index);
        if (found == memo_.end()) at.fail("the memo has no entry " + std::to_string(index));
        return found->second;
    }

    void push(PickleValue value) { stack_.push_back(value); }
    void push_integer(std::int64_t n) { push(PickleValue::of(Kind::integer, n)); }
    void push_real(std::uint64_t big_endian) {
        PickleValue v;
        v.kind = Kind::real, v.real = std::bit_cast<double>(__builtin_bswap64(big_endian));
        push(v);
    }
    void push_text(std::string_view text) {
        PickleValue v;
        v.kind = Kind::text, v.text_data = text.data(), v.text_bytes = static_cast<std::uint32_t>(text.size());
        push(v);
    }
    void push_tuple(std::size_t n, const PickleAt& at) {
        need(stack_.size() >= floor() + n, at);
        const auto               first = stack_.end() - static_cast<std::ptrdiff_t>(n);
        std::vector<PickleValue> items(first, stack_.end());
        stack_.erase(first, stack_.end());
        push(make(Kind::tuple, std::move(items)));
    }
    void push_symbol(std::string_view module, std::string_view name, const PickleAt& at) {
        push(PickleValue::of(Kind::symbol, host_->symbol(module, name, at)));
    }
    void append(const std::vector<PickleValue>& items, const PickleAt& at) {
        if (!top(at).is(Kind::list)) at.fail("values are appended to something that is no list");
        auto& values = top(at).items->values;
        values.insert(values.end(), items.begin(), items.end());
    }
    void set_items(const std::vector<PickleValue>& items, const PickleAt& at) {
        if (!top(at).is(Kind::dict)) at.fail("items are set in something that is no dict");
        if (items.size() % 2 != 0) at.fail("a dict gets a key without a value");
        for (std::size_t i = 0; i < items.size(); i += 2) check_key(items[i], at);
        auto& values = top(at).items->values;
        values.insert(values.end(), items.begin(), items.end());
    }

    static void check_frame(ByteReader& in) {
        if (in.read<std::uint64_t>("FRAME") > in.remaining()) in.fail("a FRAME reaches past the end");
    }
    static std::int64_t long1(ByteReader& in, const PickleAt& at) {
        const auto bytes = in.text(in.read<std::uint8_t>("LONG1"), "LONG1");
        if (bytes.size() > sizeof(std::int64_t)) at.fail("an integer of " + std::to_string(bytes.size()) + " bytes");
        std::uint64_t n = !bytes.empty() && (bytes.back() & 0x80) ? ~std::uint64_t{0} : 0; // extends the sign
        for (std::size_t i = bytes.size(); i-- > 0;) n = n << 8 | static_cast<std::uint8_t>(bytes[i]);
        return static_cast<std::int64_t>(n);
    }
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
    std::deque<PickleValue::Items>                 containers_; // owns all of them, so cycles need no counting
    std::vector<PickleValue>                       stack_;
    std::vector<std::size_t>                       marks_; // sizes of the stack
    std::unordered_map<std::uint32_t, PickleValue> memo_;
};

} // namespace prism
