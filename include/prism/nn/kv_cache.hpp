// KvCache: the keys and values of the tokens that a decoder has read, layer by layer.
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/core/buffer.hpp"

#include <cstddef>
#include <limits>
#include <string>

namespace prism {

/// Room for `capacity` tokens of one sequence, in f32, taken once. Movable state, owned by the caller.
template <Backend B>
class KvCache {
public:
    /// Throws ConfigError for a capacity whose bytes cannot be counted.
    KvCache(B& be, std::size_t n_layers, std::size_t d_kv, std::size_t capacity)
        : buffer_(be.allocate(bytes(n_layers, d_kv, capacity))), n_layers_(n_layers), d_kv_(d_kv), capacity_(capacity) {}

    /// Tokens that are in it, which is the position of the next one.
    std::size_t length() const { return length_; }
    std::size_t capacity() const { return capacity_; }
    std::size_t n_layers() const { return n_layers_; }

    /// The first `n` rows of a layer, [n, d_kv].
    Mat<B> keys(std::size_t layer, std::size_t n) const { return rows(2 * layer, n); }
    Mat<B> values(std::size_t layer, std::size_t n) const { return rows(2 * layer + 1, n); }

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
    static std::size_t bytes(std::size_t n_layers, std::size_t d_kv, std::size_t capacity) {
        const std::size_t per_token = 2 * n_layers * d_kv * sizeof(float), most = std::numeric_limits<std::size_t>::max();
        if (per_token && capacity > most / per_token)
            throw ConfigError{"tokens", std::to_string(capacity), "at most " + std::to_string(most / per_token) + " in a cache"};
        return capacity * per_token;
    }
    Mat<B> rows(std::size_t block, std::size_t n) const {
        auto* data = buffer_.template as<float>();
        return {data ? data + block * capacity_ * d_kv_ : nullptr, {n, d_kv_}};
    }

    Buffer<typename B::space> buffer_;
    std::size_t               n_layers_ = 0, d_kv_ = 0, capacity_ = 0, length_ = 0;
};

}  // namespace prism
