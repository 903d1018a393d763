// CudnnAttention: attention without a mask by cuDNN, 9.13.1 or later, through its backend interface. Nothing else includes
// this header; sources that do link prism::cudnn.
//
//     prism::cuda::CudnnAttention sdpa;
//     if (sdpa.supported(shape)) sdpa.run(shape, q, k, v, o, workspace, stream);   // workspace_bytes(shape) bytes
#pragma once

#include "prism/backend/cuda/errors.cuh"

#include <cudnn.h>

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace prism::cuda {

/// Queries [n_sequences * n_q, n_heads * head_dim] over keys and values [n_sequences * n_kv, n_kv_heads * head_dim], all bf16.
/// Each row of q sees every key of its sequence. Leading dimensions count elements between two rows.
struct SdpaShape {
    std::int64_t n_sequences = 1, n_heads = 1, n_kv_heads = 1, head_dim = 64, n_q = 1, n_kv = 1;
    std::int64_t ldq = 0, ldk = 0, ldv = 0, ldo = 0;
    float        scale = 1;  // of the scores, before softmax

    auto operator<=>(const SdpaShape&) const = default;
};

/// Keeps a plan for each shape. Building one takes about a second and must not happen while a stream is recorded: ask
/// supported() before. For one thread at a time, on the device that is current when it is first used.
class CudnnAttention {
public:
    CudnnAttention() = default;
    /// For a device that need not be there, by what cuDNN says of it (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION): only supported()
    /// has an answer, whether cuDNN makes a kernel for that device. It looks for libcuda.so.1, for which the toolkit's stub
    /// will do. Throws DeviceError where cuDNN does not understand the description.
    explicit CudnnAttention(std::string_view device_json) : device_(make(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)) {
        if (!device_ || !set(device_, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, device_json.data(), device_json.size()) || !finish(device_))
            throw DeviceError{"cudnnBackendFinalize", CUDNN_STATUS_BAD_PARAM, "cuDNN does not understand this description of a device"};
    }

    /// Whether cuDNN has an engine for this shape on this device. Builds its plan at the first time. Never throws.
    bool supported(const SdpaShape& s) noexcept {
        try {
            return plan_of(s) != nullptr;
        } catch (...) {
            return false;
        }
    }
    /// Bytes of device memory that run() needs beside its arguments; 0 where the shape is not supported.
    std::size_t workspace_bytes(const SdpaShape& s) {
        const Plan* const plan = plan_of(s);
        return plan ? static_cast<std::size_t>(plan->workspace_bytes) : 0;
    }

    /// o = softmax(scale q k^T) v. Pointers are multiples of 16 bytes. Throws DeviceError, also where the shape is not supported.
    void run(const SdpaShape& s, const void* q, const void* k, const void* v, void* o, void* workspace, cudaStream_t stream) {
        const Plan* const plan = plan_of(s);
        if (!plan || !handle_) throw DeviceError{"cuDNN", CUDNN_STATUS_NOT_SUPPORTED, "it has no engine for attention of this shape; ask supported() first"};
        check(cudnnSetStream(handle_.get(), stream), "cudnnSetStream");

        // cuDNN's pointers are not const, even where it only reads.
        float                             scale = s.scale;
        std::array<void*, 5>              data{const_cast<void*>(q), const_cast<void*>(k), const_cast<void*>(v), o, &scale};
        const std::array<std::int64_t, 5> ids{id_q, id_k, id_v, id_o, id_scale};
        const Descriptor                  pack = make(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
        if (!pack || !set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, data.data(), data.size()) ||
            !set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, ids.data(), ids.size()) ||
            !set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, &workspace) || !finish(pack))
            throw DeviceError{"cudnnBackendFinalize", CUDNN_STATUS_BAD_PARAM, "cuDNN takes none of the arguments of an attention"};
        check(cudnnBackendExecute(handle_.get(), plan->plan.get(), pack.get()), "cudnnBackendExecute");
    }

private:
    using Handle = Owned<cudnnHandle_t, cudnnDestroy>;
    using Descriptor = Owned<cudnnBackendDescriptor_t, cudnnBackendDestroyDescriptor>;

    struct Plan {
        Descriptor   plan;
        std::int64_t workspace_bytes = 0;
    };
    static constexpr std::int64_t id_q = 1, id_k = 2, id_v = 3, id_o = 4, id_scale = 5;

    static void check(cudnnStatus_t code, const char* call) {
        if (code != CUDNN_STATUS_SUCCESS) throw DeviceError{call, static_cast<int>(code), std::string(cudnnGetErrorString(code)) + "; see cuDNN's documentation of this call"};
    }

    // What cuDNN refuses while a plan is built is an answer, not an error: it does not support the shape.
    static Descriptor make(cudnnBackendDescriptorType_t type) {
        cudnnBackendDescriptor_t d = nullptr;
        return Descriptor(cudnnBackendCreateDescriptor(type, &d) == CUDNN_STATUS_SUCCESS ? d : nullptr);
    }
    static bool set(const Descriptor& d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const void* values, std::size_t n = 1) {
        return cudnnBackendSetAttribute(d.get(), name, type, static_cast<std::int64_t>(n), values) == CUDNN_STATUS_SUCCESS;
    }
    static bool set(const Descriptor& d, cudnnBackendAttributeName_t name, const Descriptor& part) {
        const cudnnBackendDescriptor_t p = part.get();
        return p && set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, &p);
    }
    static bool finish(const Descriptor& d) { return cudnnBackendFinalize(d.get()) == CUDNN_STATUS_SUCCESS; }

    /// [sequences, heads, rows, width]; null where cuDNN refuses it.
    static Descriptor tensor(std::int64_t id, cudnnDataType_t type, const std::array<std::int64_t, 4>& extents, const std::array<std::int64_t, 4>& strides, bool by_value) {
        const std::int64_t alignment = 16;
        Descriptor         t = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
        if (t && set(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, &id) && set(t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, &type) &&
            set(t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, extents.data(), 4) && set(t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, strides.data(), 4) &&
            set(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, &alignment) && set(t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, &by_value) && finish(t))
            return t;
        return {};
    }

    const Plan* plan_of(const SdpaShape& s) {
        auto it = plans_.find(s);
        if (it == plans_.end()) {
            if (!handle_ && !device_) {
                cudnnHandle_t h = nullptr;
                check(cudnnCreate(&h), "cudnnCreate");
                handle_.reset(h);
            }
            it = plans_.emplace(s, build(s)).first;
        }
        return it->second ? &*it->second : nullptr;
    }

    std::optional<Plan> build(const SdpaShape& s) const {
        const auto rows = [&](std::int64_t id, std::int64_t heads, std::int64_t n, std::int64_t ld) {
            return tensor(id, CUDNN_DATA_BFLOAT16, {s.n_sequences, heads, n, s.head_dim}, {n * ld, s.head_dim, ld, 1}, false);
        };
        const Descriptor q = rows(id_q, s.n_heads, s.n_q, s.ldq), k = rows(id_k, s.n_kv_heads, s.n_kv, s.ldk), v = rows(id_v, s.n_kv_heads, s.n_kv, s.ldv),
                         o = rows(id_o, s.n_heads, s.n_q, s.ldo), scale = tensor(id_scale, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, true);

        const Descriptor attention = make(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
        if (!attention || !set(attention, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, q) || !set(attention, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, k) ||
            !set(attention, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, v) || !set(attention, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, o) ||
            !set(attention, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scale) || !finish(attention))
            return std::nullopt;

        const cudnnHandle_t handle = handle_.get();
        const Descriptor    graph = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
        if (!graph || (handle && !set(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, &handle)) || !set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, attention) || !finish(graph))
            return std::nullopt;

        const Descriptor             advice = make(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
        const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
        if (!advice || !set(advice, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph) || !set(advice, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, &mode) ||
            (device_ && !set(advice, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device_)) || !finish(advice))
            return std::nullopt;

        // The best first; one that cannot be built is no reason to stop.
        constexpr std::size_t                      most = 8;
        std::array<Descriptor, most>               choices;
        std::array<cudnnBackendDescriptor_t, most> raw{};
        for (std::size_t i = 0; i < most; ++i) {
            choices[i] = make(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
            if (!(raw[i] = choices[i].get())) return std::nullopt;
        }
        std::int64_t n = 0;
        if (cudnnBackendGetAttribute(advice.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<std::int64_t>(most), &n, raw.data()) !=
            CUDNN_STATUS_SUCCESS)
            return std::nullopt;
        for (std::size_t i = 0; i < most && static_cast<std::int64_t>(i) < n; ++i) {
            Plan plan{make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)};
            if (!plan.plan || (handle && !set(plan.plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, &handle)) ||
                (device_ && !set(plan.plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device_)) || !set(plan.plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, choices[i]))
                continue;
            const cudnnStatus_t code = cudnnBackendFinalize(plan.plan.get());
            if (device_ && (code == CUDNN_STATUS_SUCCESS || code == CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER)) return plan;  // a kernel is there, the driver to load it is not
            if (code != CUDNN_STATUS_SUCCESS) continue;
            std::int64_t count = 0;
            if (cudnnBackendGetAttribute(plan.plan.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &plan.workspace_bytes) == CUDNN_STATUS_SUCCESS)
                return plan;
        }
        return std::nullopt;
    }

    Descriptor                               device_;  // in place of a handle
    Handle                                   handle_;  // before the plans, which go first
    std::map<SdpaShape, std::optional<Plan>> plans_;
};

}  // namespace prism::cuda
