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

/// A low-rank adapter of a matrix W [d_out, d_in]: the model computes with W + factor b a. See low_rank.hpp.
template <Backend B>
struct LowRank {
    Mat<B> a, b, da, db;  // a, da [rank, d_in]; b, db [d_out, rank]
    Vec<B> factor;        // [rank], all the same
};

template <Backend B> class Keep;

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
    void adapt(const void* weight, const LowRank<B>& adapter) { adapters_[weight] = adapter; }

private:
    friend class Keep<B>;
    struct Entry {
        std::uint64_t key;
        Mat<B>        rows;
    };
    TapeOptions        options_;
    std::uint64_t      seed_ = 0;
    std::vector<Entry> entries_;
    std::unordered_map<const void*, LowRank<B>> adapters_;
};

namespace detail {

/// The key of a part of what has the key `whole`: FNV-1a over the name and the index.
inline std::uint64_t part_key(std::uint64_t whole, const char* part, std::size_t i) {
    const auto mix = [](std::uint64_t h, std::uint64_t byte) { return (h ^ byte) * 0x100000001b3ULL; };
    for (; *part; ++part) whole = mix(whole, static_cast<unsigned char>(*part));
    for (std::size_t n = 0; n < 4; ++n) whole = mix(whole, i >> (8 * n) & 0xff);
    return mix(whole, 0xff);
}

}  // namespace detail

/// The keeper of a first pass over a block that backward will run again: it keeps nothing, but drops what training drops.
template <Backend B>
struct Skim : Forget {
    static constexpr bool trains = true;
    float         share = 0;
    std::uint64_t key = 0;

    Skim(float dropout, std::uint64_t of) : share(dropout), key(of) {}
    Skim at(const char* part, std::size_t i = 0) const { return {share, detail::part_key(key, part, i)}; }
    bool drops() const { return share > 0; }
    void drop(B& be, Mat<B> x) const { ops::dropout<B>(be, share, key, x); }
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
        f(Skim<B>{tape_->options_.dropout, part.key_});
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

    // backward
    /// What was kept under this name. Throws Error when nothing was.
    In<B> operator[](const char* name) const {
        const std::uint64_t key = at(name).key_;
        for (auto e = tape_->entries_.rbegin(); e != tape_->entries_.rend(); ++e)
            if (e->key == key) return e->rows;
        throw Error(std::string("backward: forward has not kept '") + name + "'");
    }
    /// The adapter of a weight; null where there is none.
    const LowRank<B>* adapter(const void* weight) const {
        const auto at = tape_->adapters_.find(weight);
        return at == tape_->adapters_.end() ? nullptr : &at->second;
    }
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
