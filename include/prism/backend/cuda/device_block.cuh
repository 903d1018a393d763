// DeviceBlock: a block of threads on a device, behind the interface of block.hpp. Each call is an instruction or two.
#pragma once

#if !defined(__CUDACC__)
#error "prism/backend/cuda/device_block.cuh is for nvcc"
#endif

#include "prism/backend/cuda/block.hpp"

namespace prism::cuda {

class DeviceBlock {
public:
    template <class T>
    class Reg {
    public:
        __device__ explicit Reg(const DeviceBlock&) {}
        __device__ T&       operator[](int) { return value_; }
        __device__ const T& operator[](int) const { return value_; }

    private:
        T value_;
    };

    __device__ DeviceBlock()
        : x(static_cast<int>(blockIdx.x)), y(static_cast<int>(blockIdx.y)), z(static_cast<int>(blockIdx.z)), grid_x(static_cast<int>(gridDim.x)) {}

    const int      x, y, z, grid_x;
    __device__ int n_threads() const { return static_cast<int>(blockDim.x); }

    template <class Phase>
    __device__ void each(Phase&& phase) {
        phase(static_cast<int>(threadIdx.x));
        __syncthreads();
    }
    template <class Phase>
    __device__ void each_warp(Phase&& phase) {
        phase(static_cast<int>(threadIdx.x));
        __syncwarp();
    }
    template <class Phase>
    __device__ void each_alone(Phase&& phase) {
        phase(static_cast<int>(threadIdx.x));
    }
    __device__ void barrier() { __syncthreads(); }

    template <class T>
    __device__ T* shared(std::size_t offset) {
        extern __shared__ __align__(16) unsigned char memory[];
        return reinterpret_cast<T*>(memory + offset);
    }

    template <class T>
    __device__ Reg<T> shuffle_xor(const Reg<T>& r, int mask) const {
        Reg<T> other(*this);
        if constexpr (sizeof(T) == 8 && !std::is_arithmetic_v<T>) {  // a pair of registers, such as a number and where it was
            std::uint64_t u;
            memcpy(&u, &r[0], sizeof u);
            u = __shfl_xor_sync(0xffffffffU, u, mask);
            memcpy(&other[0], &u, sizeof u);
        } else {
            other[0] = __shfl_xor_sync(0xffffffffU, r[0], mask);
        }
        return other;
    }

    template <class D, class A, class B>
    __device__ void mma_bf16(D&& d, A&& a, B&& b) {
        float* const               c = d(thread());
        const std::uint32_t* const p = a(thread());
        const std::uint32_t* const q = b(thread());
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(q[0]), "r"(q[1]));
    }
    template <class D, class A, class B>
    __device__ void mma_f16(D&& d, A&& a, B&& b) {
        float* const               c = d(thread());
        const std::uint32_t* const p = a(thread());
        const std::uint32_t* const q = b(thread());
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(q[0]), "r"(q[1]));
    }

    template <class To, class From>
    __device__ void load_matrix_4(To&& to, From&& from) {
        std::uint32_t* const r = to(thread());
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address(from(thread())))
                     : "memory");
    }
    template <class To, class From>
    __device__ void load_matrix_4_transposed(To&& to, From&& from) {
        std::uint32_t* const r = to(thread());
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address(from(thread())))
                     : "memory");
    }

    __device__ void copy_16(void* to, const void* from, bool valid) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
    }
    __device__ void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
    template <int n>
    __device__ void copies_wait() {
        asm volatile("cp.async.wait_group %0;\n" ::"n"(n) : "memory");
    }

    __device__ std::uint32_t take_ticket(std::uint32_t* counter) {
        __shared__ std::uint32_t drawn;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) drawn = atomicAdd(counter, 1U);
        __syncthreads();
        __threadfence();
        return drawn;
    }

private:
    __device__ static int           thread() { return static_cast<int>(threadIdx.x); }
    __device__ static std::uint32_t address(const void* shared) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared)); }
};

/// How many blocks of a kernel are to fit a multiprocessor: its `min_blocks`, where the compiler's guess at what registers
/// are worth costs spills or neighbours; 0 leaves it to the compiler.
template <class Kernel>
constexpr int min_blocks_of() {
    if constexpr (requires { Kernel::min_blocks; }) return Kernel::min_blocks;
    else return 0;
}

/// Every kernel's entry point.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::max_threads, min_blocks_of<Kernel>()) run_on_device(const Kernel kernel) {
    DeviceBlock b;
    kernel(b);
}

}  // namespace prism::cuda
