// Workspace: the scratch memory of forward passes. One arena, taken once, handed out and given back in scopes.
//
//     auto       scope = ws.scope();          // what is taken below is given back on return
//     Mat<B>     h     = ws.mat(n_tokens, d_model);
#pragma once

#include "prism/core/buffer.hpp"
#include "prism/core/error.hpp"
#include "prism/core/view.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>

namespace prism {

/// An arena of backend `B`. It never grows: its size comes from a dry run (see prism/backend/dry). With a backend that
/// holds no numbers it only counts, and `peak_bytes` is the size that a real one needs.
template <class B>
class Workspace {
public:
    static constexpr std::size_t alignment = 64;

    Workspace(B& be, std::size_t bytes) : buffer_(be.allocate(bytes)), capacity_(bytes) {}
    /// A counting workspace, for backends without numbers.
    explicit Workspace(B&) requires(!B::has_numbers) : capacity_(std::numeric_limits<std::size_t>::max()) {}

    class Scope {
    public:
        explicit Scope(Workspace& ws) : ws_(&ws), mark_(ws.used_) {}
        ~Scope() { ws_->used_ = mark_; }
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

    private:
        Workspace*  ws_;
        std::size_t mark_;
    };
    [[nodiscard]] Scope scope() { return Scope{*this}; }

    /// A matrix [rows, cols] with undefined contents, until the scope ends. Rows start on cache lines, and never at
    /// multiples of 2 KiB from each other: many of those would fall on the same few lines of a cache.
    /// Throws Error when the arena is too small.
    template <class T = float>
    Mat<B, T> mat(std::size_t rows, std::size_t cols) {
        constexpr std::size_t line = alignment / sizeof(T);
        std::size_t           ld = (cols + line - 1) / line * line;
        if (rows > 1 && ld % (2048 / sizeof(T)) == 0) ld += line;
        return {take<T>(rows * ld), {rows, cols}, {ld, 1}};
    }
    template <class T = float>
    Vec<B, T> vec(std::size_t n) {
        return {take<T>(n), {n}};
    }
    Mat<B> like(In<B> x) { return mat(x.rows(), x.cols()); }

    std::size_t capacity_bytes() const { return capacity_; }
    std::size_t peak_bytes() const { return peak_; }

private:
    template <class T>
    T* take(std::size_t n) {
        const std::size_t bytes = (n * sizeof(T) + alignment - 1) / alignment * alignment;
        if (bytes > capacity_ - used_)
            throw Error("workspace: " + std::to_string(used_ + bytes) + " bytes needed, " + std::to_string(capacity_) +
                        " there; size it with a dry run of the same shapes");
        auto* base = static_cast<std::byte*>(buffer_.data());
        T*    data = base ? reinterpret_cast<T*>(base + used_) : nullptr;
        used_ += bytes;
        peak_ = std::max(peak_, used_);
        return data;
    }

    Buffer<typename B::space> buffer_;
    std::size_t               capacity_ = 0, used_ = 0, peak_ = 0;
};

}  // namespace prism
