// Dry: a backend without numbers. The same modules run on it and it says what they would cost: workspace bytes,
// floating-point operations, bytes moved. Workspaces of real backends are sized from it.
//
//     const Cost cost = dry_run([&](Dry& be, Workspace<Dry>& ws) { vit.forward(be, ws, pixels, out); });
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/core/workspace.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace prism {

/// Memory that is nowhere: views of it have shapes only.
struct nowhere {};

/// What a run costs. A product of [m, k] and [k, n] counts 2 m n k; only products and attention are counted as work.
/// Bytes are those of operands read and results written, each once per operation.
struct Cost {
    std::uint64_t flops = 0, bytes = 0, weight_bytes = 0;  // weight_bytes: the part of bytes that is weights
    std::size_t   workspace_bytes = 0;
};

class Dry {
public:
    using space = nowhere;
    static constexpr bool has_numbers = false;
    template <class T> using Matrix = View<T, nowhere, dyn, dyn>;
    template <class T> using Vector = View<T, nowhere, dyn>;

    /// `weights` is the type that matrices are taken to be stored in.
    explicit Dry(Dtype weights = Dtype::f32) : weights_(weights) {}

    const Cost& cost() const { return cost_; }

    Buffer<nowhere> allocate(std::size_t) { return {}; }
    Placed          place(const TensorInfo&, Dtype) { return {}; }
    Placed          place_matrix(const TensorInfo&, Dtype, std::size_t) { return {}; }
    void            upload(std::span<const float>, Vector<float>) {}
    void            download(Vector<const float>, std::span<float>) {}
    void            wait() {}

    template <Format F>
    void gemm(Matrix<const float> x, const Packed<F, nowhere>& w, const Epilogue<nowhere>&, Matrix<float> y) {
        product(x, w);
        moved(x, y);
    }
    void gemm_each(Matrix<const float> x, std::span<const ProductPart<nowhere>> parts) {
        moved(x);
        for (const auto& part : parts) product(x, part.w), moved(part.y);
    }
    void gemm_gated(Matrix<const float> x, const AnyPacked<nowhere>& gate, const AnyPacked<nowhere>& up, Matrix<float> y) {
        product(x, gate), product(x, up);
        moved(x, y);
    }
    template <Format F>
    void gather(const Packed<F, nowhere>& w, std::span<const std::int32_t> ids, Matrix<float> y) {
        weights(std::uint64_t{ids.size()} * w.cols), moved(y);
    }
    void layer_norm(Matrix<const float> x, Vector<const float>, Vector<const float>, float, Matrix<float> y) { moved(x, y); }
    void rms_norm(Matrix<const float> x, Vector<const float>, float, Matrix<float> y) { moved(x, y); }
    void activate(Activation, Matrix<float> x) { moved(x, x); }
    void silu_mul(Matrix<const float> gate, Matrix<const float> up, Matrix<float> y) { moved(gate, up, y); }
    void add_scaled(Matrix<const float> h, Vector<const float>, Matrix<float> x) { moved(h, x, x); }
    void add_table(Matrix<const float> table, Matrix<float> x) { moved(table, x, x); }
    void copy(Matrix<const float> x, Matrix<float> y) { moved(x, y); }
    void rope_table(std::size_t, float, Vector<float>, Matrix<float> cos, Matrix<float> sin) { moved(cos, sin); }
    void rope(Matrix<const float>, Matrix<const float>, std::size_t, Matrix<float> x) { moved(x, x); }
    template <class T>
    void attention(Matrix<const float> q, Matrix<const T> k, Matrix<const T>, const AttentionShape& s, Matrix<float> y) {
        cost_.flops += s.flops(q.rows(), k.rows());
        cost_.bytes += 2 * std::uint64_t{k.rows()} * s.n_kv_heads * s.head_dim * sizeof(T);
        moved(q, y);
    }
    template <class T>
    void split_heads(Matrix<const float> x, std::size_t, std::size_t, Matrix<T>) {
        cost_.bytes += std::uint64_t{x.size()} * sizeof(T);
        moved(x);
    }
    void patchify(View<const float, nowhere, dyn, dyn, dyn, dyn> pixels, std::size_t, Matrix<float> patches) { moved(pixels, patches); }

    void used(std::size_t workspace_bytes) { cost_.workspace_bytes = workspace_bytes; }

    // What operations are made of; Training<Dry> counts with them too.
    void worked(std::uint64_t flops) { cost_.flops += flops; }
    void product(Matrix<const float> x, const AnyPacked<nowhere>& w) {
        cost_.flops += 2 * std::uint64_t{x.rows()} * w.rows * w.cols;
        weights(std::uint64_t{w.rows} * w.cols);
    }
    template <class... V>
    void moved(const V&... views) {
        cost_.bytes += ((std::uint64_t{views.size()} * sizeof(float)) + ...);
    }

private:
    void weights(std::uint64_t n) {
        cost_.weight_bytes += stored_bytes(weights_, n);
        cost_.bytes += stored_bytes(weights_, n);
    }

    Cost  cost_;
    Dtype weights_;
};

static_assert(Backend<Dry>);

/// Runs `body(Dry&, Workspace<Dry>&)` and returns what it would cost.
template <class Body>
Cost dry_run(Body&& body, Dtype weights = Dtype::f32) {
    Dry            be{weights};
    Workspace<Dry> ws{be};
    body(be, ws);
    be.used(ws.peak_bytes());
    return be.cost();
}

}  // namespace prism
