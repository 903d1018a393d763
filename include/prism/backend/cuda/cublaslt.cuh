// CublasLt: products of matrices by NVIDIA's library, the fastest of what it offers for a shape. All sums are f32, without TF32.
#pragma once

#include "prism/backend/cuda/driver.hpp"
#include "prism/backend/cuda/errors.cuh"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>

namespace prism::cuda {

inline void check(cublasStatus_t code, const char* call) {
    if (code != CUBLAS_STATUS_SUCCESS)
        throw DeviceError{call, static_cast<int>(code), std::string(cublasLtGetStatusString(code)) + "; see cuBLASLt's documentation of this call"};
}

/// Keeps one plan for each kind of product it has met, and stays with it: a product has the same bits whenever it is done.
/// What was fastest for a number of rows is taken for those near it, too: each length of a text is a number of its own.
class CublasLt {
public:
    static constexpr int          n_candidates = 16, n_timings = 5;
    static constexpr std::int64_t rows_alike = 64;  // numbers of rows up to the same multiple of it are near each other

    /// What a product needs besides its arguments.
    struct Place {
        cudaStream_t  stream = nullptr;
        void*         workspace = nullptr;  // aligned to 256 bytes, used by nobody else meanwhile
        std::size_t   workspace_bytes = 0;
        int           n_processors = 0;
        /// Memory to try the candidates of a new kind of product in; null: they are not tried, and the one that the library
        /// recommends is taken. Writing `flush` puts the operands out of the caches.
        void*         trial_y = nullptr;
        void*         flush = nullptr;
        std::size_t   flush_bytes = 0;
    };

    /// Whether a product of this kind needs no trying any more, and bytes of `trial_y` to try one.
    bool knows(const LibraryProduct& p, const Place& at) const {
        const Key key = key_of(p, at);
        return plans_.contains(key) || fastest_.contains(near(key));
    }
    static std::size_t trial_bytes(const LibraryProduct& p) { return static_cast<std::size_t>((p.m - 1) * p.ldy + p.n) * sizeof(float); }

    /// False where the library takes no such product, and nothing is done. Throws DeviceError.
    bool multiply(const LibraryProduct& p, const Place& at) {
        if (p.m == 0 || p.n == 0) return true;
        if (p.k == 0) return false;
        const Key key = key_of(p, at);
        auto      it = plans_.find(key);
        if (it == plans_.end()) it = plans_.emplace(key, plan(p, at)).first;
        Plan& plan = it->second;
        if (!plan.algorithm) return false;
        if (p.bias) set_bias(plan, p.bias);
        const cublasStatus_t code = run(plan, *plan.algorithm, p, p.y, at);
        if (refused(code)) plan.algorithm = Algorithm(), fastest_.erase(near(key));  // from now on, too; reset() makes nvcc 13.0 crash
        else check(code, "cublasLtMatmul");
        return !refused(code);
    }

private:
    using Handle = Owned<cublasLtHandle_t, cublasLtDestroy>;
    using Operation = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
    using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
    using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

    struct Key {
        Dtype                        type;
        std::int64_t                 m, n, k, ldx, ldw, ldy;
        std::array<std::uint32_t, 4> alignments;  // of w, x, y and the bias
        bool                         bias, add;
        std::size_t                  workspace_bytes;
        int                          n_processors;

        auto operator<=>(const Key&) const = default;
    };
    using Algorithm = std::optional<cublasLtMatmulAlgo_t>;
    using Found = std::array<cublasLtMatmulHeuristicResult_t, n_candidates>;
    struct Plan {
        Operation operation;
        Layout    w, x, y;
        Algorithm algorithm;  // none: the library does not take it
    };

    /// The power of two that an address is a multiple of, as far as the library cares.
    static std::uint32_t alignment_of(const void* p) {
        const auto a = reinterpret_cast<std::uintptr_t>(p) | 256U;
        return static_cast<std::uint32_t>(a & (~a + 1));
    }
    // Leading dimensions count in full: the library reads them from the layouts and chooses by their alignment as well.
    static Key key_of(const LibraryProduct& p, const Place& at) {
        return {p.type, p.m, p.n, p.k, p.ldx, p.ldw, p.ldy, {alignment_of(p.w), alignment_of(p.x), alignment_of(p.y), alignment_of(p.bias)},
                p.bias != nullptr, p.add, at.workspace_bytes, at.n_processors};
    }
    static Key near(Key key) {
        key.m = (key.m + rows_alike - 1) / rows_alike * rows_alike;
        return key;
    }
    /// Nothing was done, because the library has no kernel for it. Some versions find out only when it is to run.
    static bool refused(cublasStatus_t code) { return code == CUBLAS_STATUS_NOT_SUPPORTED || code == CUBLAS_STATUS_INVALID_VALUE; }
    static cudaDataType_t type_of(Dtype t) { return t == Dtype::bf16 ? CUDA_R_16BF : t == Dtype::f16 ? CUDA_R_16F : CUDA_R_32F; }

    // The library's matrices are stored by columns: rows of ours are its columns, so it computes y^T = w x^T.
    static Layout layout(Dtype t, std::int64_t rows, std::int64_t cols, std::int64_t ld) {
        cublasLtMatrixLayout_t l = nullptr;
        check(cublasLtMatrixLayoutCreate(&l, type_of(t), static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(cols), ld), "cublasLtMatrixLayoutCreate");
        return Layout(l);
    }
    template <class T>
    static void set(const Operation& o, cublasLtMatmulDescAttributes_t what, const T& value) {
        check(cublasLtMatmulDescSetAttribute(o.get(), what, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
    }
    template <class T>
    static void set(const Preference& o, cublasLtMatmulPreferenceAttributes_t what, const T& value) {
        check(cublasLtMatmulPreferenceSetAttribute(o.get(), what, &value, sizeof value), "cublasLtMatmulPreferenceSetAttribute");
    }
    static void set_bias(Plan& plan, const float* bias) { set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias); }

    cublasStatus_t run(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const LibraryProduct& p, void* y, const Place& at) {
        const float alpha = 1, beta = p.add ? 1.0f : 0.0f;
        return cublasLtMatmul(handle(), plan.operation.get(), &alpha, p.w, plan.w.get(), p.x, plan.x.get(), &beta, y, plan.y.get(), y, plan.y.get(), &algorithm,
                              at.workspace, at.workspace_bytes, at.stream);
    }

    Plan plan(const LibraryProduct& p, const Place& at) {
        Plan plan;
        if (p.ldw < p.k || p.ldx < p.k || p.ldy < p.n) return plan;  // rows that overlap: some versions refuse them only when they run
        plan.w = layout(p.type, p.k, p.n, p.ldw);
        plan.x = layout(p.type, p.k, p.m, p.ldx);
        plan.y = layout(Dtype::f32, p.n, p.m, p.ldy);
        cublasLtMatmulDesc_t operation = nullptr;
        check(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
        plan.operation.reset(operation);
        set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
        if (p.bias) {
            set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
            set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F);
            set_bias(plan, p.bias);
        }

        const Key key = key_of(p, at);
        if (const auto it = fastest_.find(near(key)); it != fastest_.end() && runs(plan, it->second, at)) {
            plan.algorithm = it->second;
            return plan;
        }
        cublasLtMatmulPreference_t preference = nullptr;
        check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
        const Preference prefer(preference);
        set(prefer, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, at.workspace_bytes);
        set(prefer, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.alignments[0]);
        set(prefer, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.alignments[1]);
        set(prefer, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.alignments[2]);
        set(prefer, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.alignments[2]);

        Found                found{};
        int                  n = 0;
        const cublasStatus_t code = cublasLtMatmulAlgoGetHeuristic(handle(), plan.operation.get(), plan.w.get(), plan.x.get(), plan.y.get(), plan.y.get(),
                                                                   prefer.get(), n_candidates, found.data(), &n);
        if (refused(code)) return plan;
        check(code, "cublasLtMatmulAlgoGetHeuristic");
        const auto last = std::remove_if(found.begin(), found.begin() + n, [](const auto& f) { return f.state != CUBLAS_STATUS_SUCCESS; });
        n = static_cast<int>(last - found.begin());
        if (n > 0 && at.trial_y) {
            plan.algorithm = fastest(plan, found, n, p, at);
            if (plan.algorithm) fastest_.emplace(near(key), *plan.algorithm);
        } else if (n > 0) {
            plan.algorithm = found[0].algo;
        }
        return plan;
    }

    /// Whether an algorithm that was chosen for almost this product takes it, too.
    bool runs(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const Place& at) {
        cublasLtMatmulHeuristicResult_t r{};
        const cublasStatus_t            code =
            cublasLtMatmulAlgoCheck(handle(), plan.operation.get(), plan.w.get(), plan.x.get(), plan.y.get(), plan.y.get(), &algorithm, &r);
        return code == CUBLAS_STATUS_SUCCESS && r.workspaceSize <= at.workspace_bytes;
    }

    /// Times each candidate a few times, with nothing of its operands in the caches, and returns the one with the best time;
    /// none where none of them runs.
    Algorithm fastest(const Plan& plan, const Found& found, int n, const LibraryProduct& p, const Place& at) {
        const Event begin = make_event(true), end = make_event(true);
        check(cudaMemsetAsync(at.trial_y, 0, trial_bytes(p), at.stream), "cudaMemsetAsync");
        Algorithm best;
        float     best_ms = std::numeric_limits<float>::infinity();
        for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i)
            for (int turn = 0; turn <= n_timings; ++turn) {  // the first loads its kernel
                if (at.flush) check(cudaMemsetAsync(at.flush, 0, at.flush_bytes, at.stream), "cudaMemsetAsync");
                check(cudaEventRecord(begin.get(), at.stream), "cudaEventRecord");
                if (run(plan, found[i].algo, p, at.trial_y, at) != CUBLAS_STATUS_SUCCESS) break;
                check(cudaEventRecord(end.get(), at.stream), "cudaEventRecord");
                check(cudaEventSynchronize(end.get()), "cudaEventSynchronize");
                float ms = 0;
                check(cudaEventElapsedTime(&ms, begin.get(), end.get()), "cudaEventElapsedTime");
                if (turn > 0 && ms < best_ms) best_ms = ms, best = found[i].algo;
                if (turn > 0 && ms > 1.5f * best_ms) break;  // a new length of text waits for this
            }
        return best;
    }

    cublasLtHandle_t handle() {
        if (!handle_) {
            const RelaxedCapture relaxed;
            cublasLtHandle_t     h = nullptr;
            check(cublasLtCreate(&h), "cublasLtCreate");
            handle_.reset(h);
        }
        return handle_.get();
    }

    Handle                              handle_;
    std::map<Key, Plan>                 plans_;
    std::map<Key, cublasLtMatmulAlgo_t> fastest_;  // of those that were timed, by near(key)
};

}  // namespace prism::cuda
