// KvCache: the keys and values of the tokens that a decoder has read, layer by layer.
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/core/buffer.hpp"

#include <cstddef>
#include <limits>
#include <string>

namespace prism {

/// Room for `capacity` tokens of one sequence, taken once, in f32 or bf16; each head has rows of its own, one after
/// another. Movable state, owned by the caller.
template <Backend B>
class KvCache {
public:
    /// Throws ConfigError for a capacity whose bytes cannot be counted, and for another type.
    KvCache(B& be, std::size_t n_layers, std::size_t n_kv_heads, std::size_t head_dim, std::size_t capacity, Dtype dtype = Dtype::f32)
        : n_layers_(n_layers), n_heads_(n_kv_heads), head_dim_(head_dim), capacity_(capacity), dtype_(dtype) {
        if (dtype != Dtype::f32 && dtype != Dtype::bf16) throw ConfigError{"cache", std::string(to_string(dtype)), "F32, BF16"};
        buffer_ = be.allocate(bytes());
    }

    /// Tokens that are in it, which is the position of the next one.
    std::size_t length() const { return length_; }
    std::size_t capacity() const { return capacity_; }
    std::size_t n_layers() const { return n_layers_; }

    Dtype       dtype() const { return dtype_; }
    /// Elements from one head to the next.
    std::size_t head_stride() const { return capacity_ * head_dim_; }

    /// Calls f(keys, values): the first head's `n` rows from `first` on of a layer, [n, head_dim] each, as views of f32 or
    /// bf16.
    template <class Fn>
    void visit(std::size_t layer, std::size_t first, std::size_t n, Fn&& f) const {
        if (dtype_ == Dtype::bf16) f(rows<bf16_t>(2 * layer, first, n), rows<bf16_t>(2 * layer + 1, first, n));
        else f(rows<float>(2 * layer, first, n), rows<float>(2 * layer + 1, first, n));
    }

    /// `n` more tokens are in it. Called by decoders when all layers have written.
    void advance(std::size_t n) { length_ += n; }
    /// Forgets all but the first `n` tokens: what follows them is read anew.
    void truncate(std::size_t n) {
        if (n < length_) length_ = n;
    }
    /// Throws ConfigError unless `n` more tokens fit.
    void reserve(std::size_t n) const {
        if (n > capacity_ - length_)
            throw ConfigError{"tokens", std::to_string(length_ + n), "at most " + std::to_string(capacity_) + " in this cache"};
    }

private:
    std::size_t bytes() const {
        const std::size_t per_token = 2 * n_layers_ * n_heads_ * head_dim_ * item_bytes(dtype_), most = std::numeric_limits<std::size_t>::max();
        if (per_token && capacity_ > most / per_token)
            throw ConfigError{"tokens", std::to_string(capacity_), "at most " + std::to_string(most / per_token) + " in a cache"};
        return capacity_ * per_token;
    }
    template <class T>
    View<T, typename B::space, dyn, dyn> rows(std::size_t block, std::size_t first, std::size_t n) const {
        auto* data = buffer_.template as<T>();
        return {data ? data + block * n_heads_ * head_stride() + first * head_dim_ : nullptr, {n, head_dim_}};
    }

    Buffer<typename B::space> buffer_;
    std::size_t               n_layers_ = 0, n_heads_ = 0, head_dim_ = 0, capacity_ = 0, length_ = 0;
    Dtype                     dtype_ = Dtype::f32;
};

}  // namespace prism
