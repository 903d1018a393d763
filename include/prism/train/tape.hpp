// Tape and its keepers: what one forward pass leaves for its backward pass.
//
//     Tape<B> tape;                                  // once; used again for every pass
//     auto    scope = ws.scope();                    // what is kept lies in the workspace until the scope ends
//     const Keep<B> kept{tape};
//     vit.forward(be, ws, pixels, features, kept);   // the forward of inference, with a keeper
//     backward(be, ws, vit, kept, pixels, d_features, &grads);
#pragma once

#include "prism/nn/keeper.hpp"
#include "prism/ops/backward.hpp"
#include "prism/ops/linear.hpp"
#include "prism/ops/rows.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace prism {

struct TapeOptions {
    bool  replay = true;  // blocks keep their input alone and run again in backward: less memory for a third more work
    float dropout = 0;    // share of the values of a residual branch that training sets to 0, where a decoder has it (Phi)
};

namespace detail {

/// The key of a part of what has the key `whole`: FNV-1a over the name and the index.
inline std::uint64_t part_key(std::uint64_t whole, const char* part, std::size_t i) {
    const auto mix = [](std::uint64_t h, std::uint64_t byte) { return (h ^ byte) * 0x100000001b3ULL; };
    for (; *part; ++part) whole = mix(whole, static_cast<unsigned char>(*part));
    for (std::size_t n = 0; n < 4; ++n) whole = mix(whole, i >> (8 * n) & 0xff);
    return mix(whole, 0xff);
}

/// Rows as the weight of a product.
template <Backend B>
Packed<f32, typename B::space> as_weight(In<B> rows) {
    return {rows.data(), rows.rows(), rows.cols(), rows.ld()};
}

}  // namespace detail

/// A low-rank adapter of a matrix W [d_out, d_in]: the model computes with W + factor b a. See low_rank.hpp.
template <Backend B>
struct LowRank {
    Mat<B>        a, b, da, db;      // a, da [rank, d_in]; b, db [d_out, rank]
    Vec<B>        factor, opposite;  // [rank], all the same; and less that
    float         dropout = 0;       // share of the values of x that the adapter does not see in training; the others grow by 1 / (1 - share)
    std::uint64_t key = 0;           // of the layer: which values those are

    /// The key of what is dropped in the pass of this seed.
    std::uint64_t key_in(std::uint64_t pass) const { return detail::part_key(pass ^ key, "lora_dropout", 0); }
};

template <Backend B> class Keep;
template <Backend B> struct Skim;

/// Names and places of what was kept. The values lie in the workspace of the pass.
template <Backend B>
class Tape {
public:
    Tape() = default;
    explicit Tape(TapeOptions options) : options_(options) {}

    const TapeOptions& options() const { return options_; }
    /// Forgets everything; `seed` decides what the next pass drops.
    void restart(std::uint64_t seed = 0) { entries_.clear(), seed_ = seed; }
    /// Gradients of this weight go to an adapter. It is not forgotten.
    void adapt(const void* weight, const LowRank<B>& adapter) { adapters_[weight] = adapter, adds_ |= adapter.dropout > 0; }

private:
    friend class Keep<B>;
    friend struct Skim<B>;
    struct Entry {
        std::uint64_t key;
        Mat<B>        rows;
    };
    TapeOptions        options_;
    std::uint64_t      seed_ = 0;
    bool               adds_ = false;  // some adapter drops
    std::vector<Entry> entries_;
    std::unordered_map<const void*, LowRank<B>> adapters_;

    const LowRank<B>* adapter(const void* weight) const {
        const auto at = adapters_.find(weight);
        return at == adapters_.end() ? nullptr : &at->second;
    }
    /// The model computes with W + factor b a; an adapter that drops sees d(x) in place of x: y += factor (d(x) - x) a^T b^T.
    void product(B& be, Workspace<B>& ws, const void* weight, In<B> x, Mat<B> y) const {
        const LowRank<B>* const low = adds_ ? adapter(weight) : nullptr;
        if (!low || low->dropout == 0) return;
        auto         scope = ws.scope();
        const Mat<B> seen = ws.like(x), inner = ws.mat(x.rows(), low->a.rows());
        ops::copy<B>(be, x, seen);
        ops::dropout<B>(be, low->dropout, low->key_in(seed_), seen);
        ops::clear<B>(be, inner);
        ops::linear_add<B>(be, seen, detail::as_weight<B>(low->a), {}, low->factor, inner);
        ops::linear_add<B>(be, x, detail::as_weight<B>(low->a), {}, low->opposite, inner);
        ops::linear_add<B>(be, inner, detail::as_weight<B>(low->b), {}, {}, y);
    }
};

/// The keeper of a first pass over a block that backward will run again: it keeps nothing, but drops what training drops.
template <Backend B>
struct Skim : Forget {
    static constexpr bool trains = true;
    const Tape<B>* tape;
    std::uint64_t  key;

    Skim(const Tape<B>& of, std::uint64_t part) : tape(&of), key(part) {}
    Skim at(const char* part, std::size_t i = 0) const { return {*tape, detail::part_key(key, part, i)}; }
    bool drops() const { return tape->options_.dropout > 0; }
    void drop(B& be, Mat<B> x) const { ops::dropout<B>(be, tape->options_.dropout, key, x); }
    bool adds() const { return tape->adds_; }
    void product(B& be, Workspace<B>& ws, const void* weight, In<B> x, Mat<B> y) const {
        tape->product(be, ws, weight, x, y);
    }
};

/// The keeper of training: a place in a tape, to write in forward and to read in backward. A value, copied freely.
template <Backend B>
class Keep {
public:
    static constexpr bool keeps = true, trains = true;

    explicit Keep(Tape<B>& tape) : tape_(&tape), key_(0xcbf29ce484222325ULL ^ tape.seed_) {}

    Keep at(const char* part, std::size_t i = 0) const {
        Keep k = *this;
        k.key_ = detail::part_key(key_, part, i);
        return k;
    }

    // forward
    template <class Fn>
    void block(B& be, Workspace<B>& ws, const char* name, std::size_t i, In<B> x, Fn&& f) const {
        const Keep part = at(name, i);
        if (!tape_->options_.replay) return f(part);
        part.copy(be, ws, "in", x);
        f(Skim<B>{*tape_, part.key_});
    }
    struct NoScope {
        ~NoScope() {}
    };
    [[nodiscard]] NoScope scope(Workspace<B>&) const { return {}; }
    Mat<B>                another(Workspace<B>& ws, Mat<B> h) const { return ws.like(h); }
    void                  operator()(const char* name, Mat<B> rows) const { tape_->entries_.push_back({at(name).key_, rows}); }
    void                  operator()(const char* name, In<B> rows) const {
        (*this)(name, Mat<B>{const_cast<float*>(rows.data()), rows.shape(), rows.strides()});  // read only: operator[] gives an In
    }
    void copy(B& be, Workspace<B>& ws, const char* name, In<B> rows) const {
        Mat<B> kept = ws.like(rows);
        ops::copy<B>(be, rows, kept);
        (*this)(name, kept);
    }
    bool drops() const { return tape_->options_.dropout > 0; }
    void drop(B& be, Mat<B> x) const { ops::dropout<B>(be, tape_->options_.dropout, key_, x); }
    bool adds() const { return tape_->adds_; }
    void product(B& be, Workspace<B>& ws, const void* weight, In<B> x, Mat<B> y) const {
        tape_->product(be, ws, weight, x, y);
    }

    // backward
    /// What was kept under this name. Throws Error when nothing was.
    In<B> operator[](const char* name) const {
        const std::uint64_t key = at(name).key_;
        for (auto e = tape_->entries_.rbegin(); e != tape_->entries_.rend(); ++e)
            if (e->key == key) return e->rows;
        throw Error(std::string("backward: forward has not kept '") + name + "'");
    }
    /// The adapter of a weight; null where there is none.
    const LowRank<B>* adapter(const void* weight) const { return tape_->adapter(weight); }
    /// Drops what this adapter does not see of its input.
    void drop(B& be, const LowRank<B>& adapter, Mat<B> x) const { ops::dropout<B>(be, adapter.dropout, adapter.key_in(tape_->seed_), x); }
    /// Runs the `i`th block again on its input where the tape says so: forward(keeper, x). Then `back(keeper)`.
    template <class Forward, class Back>
    void unwind(B& be, Workspace<B>& ws, const char* name, std::size_t i, Forward&& forward, Back&& back) const {
        auto              space = ws.scope();
        const Keep        part = at(name, i);
        const std::size_t mark = tape_->entries_.size();
        if (tape_->options_.replay) {
            const In<B> in = part["in"];
            Mat<B>      x = ws.like(in);
            ops::copy<B>(be, in, x);
            forward(x, part);
        }
        back(part);
        tape_->entries_.resize(mark);
    }

private:
    Tape<B>*      tape_;
    std::uint64_t key_;
};

}  // namespace prism
