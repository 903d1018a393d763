// The device that these tests run on. Compiled by nvcc it is a GPU; compiled by any other compiler, the processor plays
// one: the same sources, the same launches, the same kernels.
#pragma once

#if defined(__CUDACC__)
#include "prism/backend/cuda/cuda.hpp"
#include "prism/backend/cuda/runtime.cuh"
#else
#include "prism/backend/cuda/emulated.hpp"
#endif
#include "prism/backend/cuda/emulator.hpp"
#include "support/arrays.hpp"

#include <cstring>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace prism::test {

#if defined(__CUDACC__)
using Device = BasicCuda<cuda::Runtime>;  // Cuda, without all that prism/cuda.cuh brings
inline constexpr bool emulated = false;
#else
using Device = EmulatedCuda;
inline constexpr bool emulated = true;
#endif

using TestDriver = std::remove_reference_t<decltype(std::declval<Device&>().driver())>;

/// For how many multiprocessors kernels are chosen, and whether a library takes products; on the processor also in which order
/// threads take their turns, and how they run.
struct Wishes {
    cuda::Order   order = cuda::Order::forward;
    int           n_processors = 4;
    cuda::Threads threads = cuda::Threads::phases;
    bool          library = false, library_adds = true;

    operator TestDriver::Options() const {
        TestDriver::Options o;
        o.n_processors = n_processors, o.library = library;
#if defined(__CUDACC__)
        o.time_products = false, o.whole_chunks = true;  // the same plan each time; what goes past the end of a buffer shows
#else
        o.order = order, o.threads = threads, o.library_adds = library_adds;
#endif
        return o;
    }
};

/// By how much the tensor cores of a device may miss f32 sums of k products of 16-bit numbers, relative to their size: they
/// cut off instead of rounding, after every eight products on older ones.
inline double cut_off(std::size_t k) { return emulated ? 0 : 4e-8 * static_cast<double>(k) / 8; }

/// A matrix on the device, with the rows, the room between them and the poison of an Array.
class OnDevice {
public:
    OnDevice(Device& be, const Array& a) : be_(&be), like_(a), buffer_(be.allocate(a.values().size() * sizeof(float))) {
        be.driver().to_device(buffer_.data(), a.values().data(), a.values().size() * sizeof(float));
    }

    Mat<Device>              mat() const { return {buffer_.template as<float>(), {like_.rows(), like_.cols()}, {like_.in().ld(), 1}}; }
    In<Device>               in() const { return mat(); }
    Vec<Device, const float> row(std::size_t i = 0) const { return {buffer_.template as<float>() + i * like_.in().ld(), {like_.cols()}}; }
    /// What is there now, between the rows too.
    Array back() const {
        Array a = like_;
        be_->driver().to_host(a.mat().data(), buffer_.data(), a.values().size() * sizeof(float));
        return a;
    }

private:
    Device*        be_;
    Array          like_;
    Buffer<device> buffer_;
};

/// The values of a matrix of the device, row after row.
inline std::vector<float> downloaded(Device& be, In<Device> x) {
    std::vector<float> values(x.size());
    for (std::size_t i = 0; i < x.rows(); ++i) be.download(x.row(i), std::span(values).subspan(i * x.cols(), x.cols()));
    be.wait();
    return values;
}

}  // namespace prism::test
