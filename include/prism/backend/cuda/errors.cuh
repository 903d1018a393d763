// CUDA's errors as DeviceError, and its handles as owners.
#pragma once

#include "prism/core/error.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>

namespace prism::cuda {

/// What to do about an error, in a few words.
inline const char* advice_on(cudaError_t code) {
    switch (code) {
        case cudaErrorNoDevice:
        case cudaErrorInsufficientDriver:
        case cudaErrorSystemDriverMismatch:
        case cudaErrorCompatNotSupportedOnDevice:
        case cudaErrorDevicesUnavailable:
        case cudaErrorSystemNotReady: return "look at what nvidia-smi says, or run on the CPU";
        case cudaErrorInvalidDevice: return "choose one of the devices that nvidia-smi lists";
        case cudaErrorMemoryAllocation: return "take weights in fewer bits, a smaller model, or shorter texts";
        case cudaErrorNoKernelImageForDevice:
        case cudaErrorUnsupportedPtxVersion:
        case cudaErrorInvalidDeviceFunction: return "compile with the architecture of this GPU among CMAKE_CUDA_ARCHITECTURES";
        case cudaErrorIllegalAddress:
        case cudaErrorMisalignedAddress:
        case cudaErrorLaunchFailure:
        case cudaErrorIllegalInstruction: return "a kernel went wrong, and this process can use the device no more: run it under compute-sanitizer";
        case cudaErrorLaunchTimeout: return "a display's watchdog stopped a kernel: use a GPU without a display";
        default: return "see the CUDA runtime's documentation of this code";
    }
}

[[noreturn]] inline void fail(const std::string& call, cudaError_t code, const std::string& more = {}) {
    static_cast<void>(cudaGetLastError());  // so that a later call does not report it again
    const char* const kind = code == cudaErrorNoDevice || code == cudaErrorInsufficientDriver ? "no CUDA device can be used: " : "";
    throw DeviceError{call, static_cast<int>(code), kind + std::string(cudaGetErrorString(code)) + (more.empty() ? "" : " (" + more + ")") + "; " + advice_on(code)};
}
inline void check(cudaError_t code, const char* call) {
    if (code != cudaSuccess) fail(call, code);
}

template <auto destroy>
struct Destroy {
    template <class T>
    void operator()(T* handle) const noexcept {
        static_cast<void>(destroy(handle));
    }
};
template <class Handle, auto destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<destroy>>;

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;
using Graph = Owned<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;
/// Memory of the host that a device reads and writes on its own.
using Pinned = std::unique_ptr<std::byte, Destroy<cudaFreeHost>>;

/// While it lives, this thread may do what counts as unsafe while it records a stream, such as taking memory.
class RelaxedCapture {
public:
    explicit RelaxedCapture(bool wanted = true) : wanted_(wanted) {
        if (wanted_) check(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode");
    }
    ~RelaxedCapture() {
        if (wanted_) static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_));
    }
    RelaxedCapture(const RelaxedCapture&) = delete;
    RelaxedCapture& operator=(const RelaxedCapture&) = delete;

private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
    const bool            wanted_;
};

inline Stream make_stream() {
    cudaStream_t s = nullptr;
    check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return Stream(s);
}
inline Event make_event(bool timed = false) {
    cudaEvent_t e = nullptr;
    check(cudaEventCreateWithFlags(&e, timed ? cudaEventDefault : cudaEventDisableTiming), "cudaEventCreateWithFlags");
    return Event(e);
}
inline Pinned make_pinned(std::size_t bytes) {
    const RelaxedCapture relaxed;
    void*                p = nullptr;
    if (const cudaError_t code = cudaHostAlloc(&p, bytes, cudaHostAllocDefault); code != cudaSuccess)
        fail("cudaHostAlloc", code, std::to_string(bytes) + " bytes of the host were asked for");
    return Pinned(static_cast<std::byte*>(p));
}

}  // namespace prism::cuda
