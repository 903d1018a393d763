// Runtime: the driver of CUDA. One stream, memory in a pool, pinned staging, cuBLASLt, recordings as CUDA graphs.
//
//     prism::cuda::Runtime gpu{{.device = 0}};
//     auto x = gpu.allocate(n * sizeof(float));
//     gpu.launch({blocks, 1, 1}, 256, 0, Kernel{...});
//     gpu.wait();
#pragma once

#include "prism/backend/cuda/cublaslt.cuh"
#include "prism/backend/cuda/device_block.cuh"
#include "prism/backend/cuda/driver.hpp"
#include "prism/backend/cuda/errors.cuh"
#include "prism/backend/cuda/pool.hpp"
#include "prism/backend/cuda/staging.cuh"

#include <array>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace prism::cuda {

struct RuntimeOptions {
    int         device = 0;                                   // as CUDA counts those that CUDA_VISIBLE_DEVICES leaves; by nvidia-smi's numbers where CUDA_DEVICE_ORDER=PCI_BUS_ID
    std::size_t workspace_bytes = std::size_t{32} << 20;      // of cuBLASLt, for each branch of a fork
    bool        time_products = true;  // the fastest of what cuBLASLt offers; without: what it recommends, the same in every process, and on every rank
    bool        library = true;        // cuBLASLt takes products of many rows; without: our own kernels take them all
    bool        whole_chunks = false;  // every buffer is an allocation of its own: compute-sanitizer then sees what goes past its end
    int         n_processors = 0;      // kernels are chosen as for a device of so many; 0: as many as it has
    Collective<cudaStream_t> ranks{};  // nccl.cuh
};

/// What is in the machine, for reports.
struct DeviceInfo {
    std::string name;                                // "NVIDIA H200"
    int         index = 0, major = 0, minor = 0;     // compute capability
    int         n_processors = 0;
    std::size_t memory_bytes = 0, cache_bytes = 0;   // cache: the second level
    std::size_t shared_bytes = 0;                    // that a block can have
    int         driver_version = 0, runtime_version = 0;  // 13000 is 13.0
    std::size_t cublaslt_version = 0;
};

/// A thread that calls it stays on its device: code that uses others besides chooses its own before it goes on. (Going back
/// would make a context on device 0 for every thread that had chosen none.)
class Runtime {
    struct Made {
        static constexpr std::size_t block_bytes = std::size_t{64} << 10;
        struct Input {
            std::byte*  data;
            std::size_t bytes;
        };

        Made() = default;
        Made(const Made&) = delete;
        Made& operator=(const Made&) = delete;
        ~Made() {
            if (replayed) static_cast<void>(cudaEventSynchronize(replayed.get()));
        }
        std::byte* keep(const void* from, std::size_t bytes) {
            const std::size_t n = (bytes + MemoryPool::alignment - 1) / MemoryPool::alignment * MemoryPool::alignment;
            if (n > free) {
                free = n > block_bytes ? n : block_bytes;
                blocks.push_back(make_pinned(free));
                next = blocks.back().get();
            }
            std::byte* const to = std::exchange(next, next + n);
            free -= n;
            std::memcpy(to, from, bytes);
            inputs.push_back({to, bytes});
            return to;
        }

        // In this order: the graph goes first, then what it uses.
        Collective<cudaStream_t> ranks;
        MemoryPool::Held    held;
        std::vector<Pinned> blocks;
        std::byte*          next = nullptr;
        std::size_t         free = 0, n_steps = 0;
        std::vector<Input>  inputs;
        Event               replayed;
        GraphExec           graph;
    };

public:
    using Options = RuntimeOptions;

    /// A CUDA graph, the memory that its copies come from, and what was released while it was made. May outlive its runtime.
    class Recording {
    public:
        Recording() = default;

        /// What copy `s` brings to the device from now on. Waits for the last replay. Throws DeviceError where the copy is not
        /// of this recording or smaller.
        void rewrite(Staged s, const void* from, std::size_t bytes) {
            if (!made_ || s.number >= made_->inputs.size() || bytes > made_->inputs[s.number].bytes)
                fail("rewrite", cudaErrorInvalidValue, "the copy is not one of this recording, or it copies fewer bytes");
            check(cudaEventSynchronize(made_->replayed.get()), "cudaEventSynchronize");
            std::memcpy(made_->inputs[s.number].data, from, bytes);
        }
        /// Launches, products and copies.
        std::size_t n_steps() const { return made_ ? made_->n_steps : 0; }

    private:
        friend class Runtime;
        explicit Recording(std::unique_ptr<Made> made) : made_(std::move(made)) {}

        std::unique_ptr<Made> made_;
    };

    /// Throws DeviceError where there is no such device.
    explicit Runtime(RuntimeOptions options = {}) : options_(options) {
        int n = 0;
        check(cudaGetDeviceCount(&n), "cudaGetDeviceCount");
        if (options.device < 0 || options.device >= n)
            fail("Runtime", cudaErrorInvalidDevice, "device " + std::to_string(options.device) + " of " + std::to_string(n));
        choose(options.device);
        check(cudaFree(nullptr), "cudaFree");  // what is wrong with the device comes out here
        info_ = describe(options.device);
        pool_ = MemoryPool::make({.take = take, .give = give, .device = options.device, .whole_chunks = options.whole_chunks});
        apart_ = MemoryPool::make({.take = take, .give = give, .device = options.device, .whole_chunks = true});
        for (Stream& s : streams_) s = make_stream();
        for (Event& e : joints_) e = make_event();
    }
    ~Runtime() {
        try {
            choose(options_.device);
            for (const Stream& s : streams_) static_cast<void>(cudaStreamSynchronize(s.get()));
            workspaces_ = {}, flush_ = {};
            pool_->close(), apart_->close();
        } catch (const DeviceError&) {}  // the process is ending, and CUDA went before
    }
    Runtime(const Runtime&) = delete;
    Runtime& operator=(const Runtime&) = delete;

    const DeviceInfo& info() const { return info_; }
    int               n_processors() const { return options_.n_processors > 0 ? options_.n_processors : info_.n_processors; }
    /// What other libraries enqueue their work on: the stream of this branch.
    cudaStream_t stream() const { return streams_[static_cast<std::size_t>(branch_)].get(); }
    /// Bytes of all buffers; bytes that the device gave for them.
    std::size_t bytes_in_use() const { return pool_->bytes_in_use(); }
    std::size_t bytes_taken() const { return pool_->bytes_taken(); }
    /// Kernels launched so far, also into recordings; products that cuBLASLt took.
    std::size_t launches() const { return launches_; }
    std::size_t products() const { return products_; }

    /// Any thread may call it. Throws DeviceError where memory is short; a smaller request may follow.
    Buffer<device> allocate(std::size_t bytes) {
        choose(options_.device);
        Buffer<device> b = pool_->allocate(bytes);
        if (bytes > 0 && !b.data()) refuse_memory(bytes);
        return b;
    }

    Buffer<device> allocate_cleared(std::size_t bytes, std::size_t zeros) {
        choose(options_.device);
        Buffer<device> b = apart_->allocate(bytes);
        if (bytes > 0 && !b.data()) refuse_memory(bytes);
        const RelaxedCapture relaxed;
        const Stream         now = make_stream();
        check(cudaMemsetAsync(b.data(), 0, zeros, now.get()), "cudaMemsetAsync");
        check(cudaStreamSynchronize(now.get()), "cudaStreamSynchronize");
        return b;
    }

    Staged to_device(void* to, const void* from, std::size_t bytes) {
        if (bytes == 0) return {};
        choose(options_.device);
        if (!recording_) {
            staging_.copy(to, from, bytes, stream(), static_cast<std::size_t>(branch_));
            return {};
        }
        const std::byte* const kept = recording_->keep(from, bytes);
        check(cudaMemcpyAsync(to, kept, bytes, cudaMemcpyHostToDevice, stream()), "cudaMemcpyAsync to the device");
        ++recording_->n_steps;
        return {recording_->inputs.size() - 1};
    }
    void to_host(void* to, const void* from, std::size_t bytes) {
        if (recording_) refuse_while_recording("to_host");
        if (bytes == 0) return;
        choose(options_.device);
        const bool small = bytes <= landing_bytes;
        if (small && !landing_) landing_ = make_pinned(landing_bytes);
        check(cudaMemcpyAsync(small ? landing_.get() : to, from, bytes, cudaMemcpyDeviceToHost, stream()), "cudaMemcpyAsync to the host");
        check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
        if (small) std::memcpy(to, landing_.get(), bytes);
    }
    void clear(void* to, std::size_t bytes) {
        if (bytes == 0) return;
        choose(options_.device);
        check(cudaMemsetAsync(to, 0, bytes, stream()), "cudaMemsetAsync");
        count_step();
    }
    /// Throws DeviceError for anything that went wrong since the last time.
    void wait() {
        if (recording_) refuse_while_recording("wait");
        choose(options_.device);
        check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
    }

    void all_reduce(float* data, std::size_t n) {
        if (!options_.ranks.sum || n == 0) return;
        choose(options_.device);
        const RelaxedCapture relaxed(recording());  // connections are made the first time
        options_.ranks.sum(data, n, stream());
        count_step();
    }
    std::size_t rank() const { return options_.ranks.rank; }
    std::size_t n_ranks() const { return options_.ranks.n; }

    /// Throws DeviceError where the device takes no such grid or not so much shared memory.
    template <class Kernel>
    void launch(std::array<int, 3> grid, int threads, std::size_t shared_bytes, const Kernel& kernel) {
        static_assert(std::is_trivially_copyable_v<Kernel> && sizeof(Kernel) <= 4096, "a kernel travels as its bytes");
        if (grid[0] <= 0 || grid[1] <= 0 || grid[2] <= 0) return;
        constexpr int most = 65535;
        if (grid[1] > most || grid[2] > most)
            fail("launch", cudaErrorInvalidConfiguration, "a grid has at most 65535 blocks along y and z, this one " + std::to_string(grid[1]) + " and " + std::to_string(grid[2]));
        choose(options_.device);
        const RelaxedCapture relaxed(recording());  // the first launch of a kernel loads it
        const auto entry = &run_on_device<Kernel>;  // its address is another one in every source: what is allowed has to be what is launched
        if (shared_bytes > plain_shared_bytes) allow_shared(reinterpret_cast<const void*>(entry), shared_bytes);
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(static_cast<unsigned>(grid[0]), static_cast<unsigned>(grid[1]), static_cast<unsigned>(grid[2]));
        config.blockDim = dim3(static_cast<unsigned>(threads));
        config.dynamicSmemBytes = shared_bytes;
        config.stream = stream();
        check(cudaLaunchKernelEx(&config, entry, kernel), "cudaLaunchKernelEx");
        ++launches_;
        count_step();
    }

    bool multiply(const LibraryProduct& p) {
        if (!options_.library) return false;
        choose(options_.device);
        const RelaxedCapture relaxed(recording());
        auto&                workspace = workspaces_[static_cast<std::size_t>(branch_)];
        if (options_.workspace_bytes > 0 && !workspace.data()) workspace = allocate(options_.workspace_bytes);
        CublasLt::Place      at{.stream = stream(), .workspace = workspace.data(), .workspace_bytes = workspace.bytes(), .n_processors = info_.n_processors};
        Buffer<device>       trial;
        if (options_.time_products && options_.ranks.n == 1 && !recording_ && p.m > 0 && p.n > 0 && !library_.knows(p, at)) {
            trial = apart_->allocate(CublasLt::trial_bytes(p));  // where there is no more, nothing is tried
            if (trial.data() && !flush_.data()) flush_ = apart_->allocate(info_.cache_bytes);
            if (forked_) check(cudaStreamSynchronize(streams_[static_cast<std::size_t>(1 - branch_)].get()), "cudaStreamSynchronize");
            at.trial_y = trial.data(), at.flush = flush_.data(), at.flush_bytes = flush_.bytes();
        }
        const bool done = library_.multiply(p, at);
        if (done) ++products_, count_step();
        return done;
    }

    /// Runs nothing. Throws what `work` throws; DeviceError where a recording is being made, or `work` did what waits.
    template <class Work>
    Recording record(Work&& work) {
        if (recording_ || forked_) refuse_while_recording("record");
        choose(options_.device);
        auto made = std::make_unique<Made>();
        made->replayed = make_event();
        made->ranks = options_.ranks;
        check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
        recording_ = made.get();
        pool_->hold();
        cudaGraph_t graph = nullptr;
        try {
            work();
        } catch (...) {
            end_recording(graph);
            static_cast<void>(Graph(graph));
            static_cast<void>(cudaGetLastError());
            pool_->let_go();
            throw;
        }
        const cudaError_t code = end_recording(graph);
        const Graph       captured(graph);
        made->held = pool_->let_go();
        check(code, "cudaStreamEndCapture");
        cudaGraphExec_t exec = nullptr;
        check(cudaGraphInstantiate(&exec, captured.get(), 0), "cudaGraphInstantiate");
        made->graph.reset(exec);
        check(cudaGraphUpload(exec, stream()), "cudaGraphUpload");
        return Recording(std::move(made));
    }
    void replay(const Recording& r) {
        if (recording_) refuse_while_recording("replay");
        if (!r.made_) return;
        if (options_.ranks.check) options_.ranks.check();
        choose(options_.device);
        check(cudaGraphLaunch(r.made_->graph.get(), stream()), "cudaGraphLaunch");
        check(cudaEventRecord(r.made_->replayed.get(), stream()), "cudaEventRecord");
    }
    bool recording() const { return recording_ != nullptr; }

    /// Throws what they throw, after everything is joined again.
    template <class A, class B>
    void fork(A&& a, B&& b) {
        if (forked_) {
            a();
            b();
            return;
        }
        choose(options_.device);
        check(cudaEventRecord(joints_[0].get(), streams_[0].get()), "cudaEventRecord");
        check(cudaStreamWaitEvent(streams_[1].get(), joints_[0].get()), "cudaStreamWaitEvent");
        forked_ = true;
        pool_->hold();  // a branch must not write what the other has released
        try {
            a();
            branch_ = 1;
            b();
        } catch (...) {
            static_cast<void>(join());
            throw;
        }
        check(join(), "cudaStreamWaitEvent");
    }
    int branch() const { return branch_; }

    /// Seconds on the device for what `work` enqueues. Waits.
    template <class Work>
    double seconds(Work&& work) {
        if (recording_) refuse_while_recording("seconds");
        choose(options_.device);
        const Event begin = make_event(true), end = make_event(true);
        check(cudaEventRecord(begin.get(), stream()), "cudaEventRecord");
        work();
        check(cudaEventRecord(end.get(), stream()), "cudaEventRecord");
        check(cudaEventSynchronize(end.get()), "cudaEventSynchronize");
        float ms = 0;
        check(cudaEventElapsedTime(&ms, begin.get(), end.get()), "cudaEventElapsedTime");
        return 1e-3 * static_cast<double>(ms);
    }

private:
    static constexpr std::size_t landing_bytes = std::size_t{1} << 20;
    static constexpr std::size_t plain_shared_bytes = std::size_t{40} << 10;  // more must be asked for: from 48 KiB on, in which a kernel's own variables count

    static void choose(int device) {
        int now = -1;
        check(cudaGetDevice(&now), "cudaGetDevice");
        if (now != device) check(cudaSetDevice(device), "cudaSetDevice");
    }

    static void* take(int device, std::size_t bytes) {
        choose(device);
        const RelaxedCapture relaxed;
        void*                p = nullptr;
        const cudaError_t    code = cudaMalloc(&p, bytes);
        if (code == cudaErrorMemoryAllocation) {
            static_cast<void>(cudaGetLastError());
            return nullptr;
        }
        check(code, "cudaMalloc");
        return p;
    }
    // Waits for what still uses the memory, as cudaFree does. Errors have been reported where they arose, or will be.
    static void give(int device, void* p) noexcept {
        int now = -1;
        if (cudaGetDevice(&now) != cudaSuccess || now != device) static_cast<void>(cudaSetDevice(device));
        cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
        const bool            relaxed = cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess;
        static_cast<void>(cudaFree(p));
        if (relaxed) static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode));
    }

    [[noreturn]] void refuse_memory(std::size_t bytes) const {
        std::size_t free = 0, all = 0;
        static_cast<void>(cudaMemGetInfo(&free, &all));
        fail("cudaMalloc", cudaErrorMemoryAllocation,
             std::to_string(bytes) + " bytes were asked for, " + std::to_string(free) + " of " + std::to_string(all) + " are free on " + info_.name);
    }

    static DeviceInfo describe(int device) {
        cudaDeviceProp p{};
        check(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
        DeviceInfo info{.name = p.name, .index = device, .major = p.major, .minor = p.minor, .n_processors = p.multiProcessorCount, .memory_bytes = p.totalGlobalMem,
                        .cache_bytes = static_cast<std::size_t>(p.l2CacheSize), .shared_bytes = p.sharedMemPerBlockOptin};
        check(cudaDriverGetVersion(&info.driver_version), "cudaDriverGetVersion");
        check(cudaRuntimeGetVersion(&info.runtime_version), "cudaRuntimeGetVersion");
        info.cublaslt_version = cublasLtGetVersion();
        return info;
    }

    /// Lets a kernel have as much as there is: two runtimes of one device must not take it from each other.
    void allow_shared(const void* entry, std::size_t bytes) {
        static std::mutex                                         mutex;
        static std::map<std::pair<const void*, int>, std::size_t> allowed;  // of an entry, on a device
        const std::lock_guard                                     lock(mutex);
        std::size_t&                                              most = allowed[{entry, options_.device}];
        if (most == 0) {
            cudaFuncAttributes about{};
            check(cudaFuncGetAttributes(&about, entry), "cudaFuncGetAttributes");
            const std::size_t all = info_.shared_bytes - about.sharedSizeBytes;
            check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(all)), "cudaFuncSetAttribute");
            most = all;
        }
        if (bytes > most)
            fail("cudaFuncSetAttribute", cudaErrorInvalidValue, std::to_string(bytes) + " bytes of shared memory were asked for, a block on " + info_.name + " has " + std::to_string(most));
    }

    cudaError_t end_recording(cudaGraph_t& graph) {
        recording_ = nullptr;
        return cudaStreamEndCapture(stream(), &graph);
    }
    cudaError_t join() {
        forked_ = false, branch_ = 0;
        cudaError_t code = cudaEventRecord(joints_[1].get(), streams_[1].get());
        if (code == cudaSuccess) code = cudaStreamWaitEvent(streams_[0].get(), joints_[1].get());
        pool_->let_go();
        return code;
    }
    void count_step() {
        if (recording_) ++recording_->n_steps;
    }

    const RuntimeOptions          options_;
    DeviceInfo                    info_;
    std::shared_ptr<MemoryPool>   pool_;
    std::shared_ptr<MemoryPool>   apart_;  // hands out nothing that was released, and so nothing that is under way
    std::array<Stream, 2>         streams_;  // the second: of the second branch of a fork
    std::array<Event, 2>          joints_;
    Staging                       staging_;
    Pinned                        landing_;
    CublasLt                      library_;
    std::array<Buffer<device>, 2> workspaces_;
    Buffer<device>                flush_;  // as large as the caches, for timing products
    Made*                         recording_ = nullptr;
    int                           branch_ = 0;
    bool                          forked_ = false;
    std::size_t                   launches_ = 0, products_ = 0;
};
static_assert(Driver<Runtime>);

}  // namespace prism::cuda
