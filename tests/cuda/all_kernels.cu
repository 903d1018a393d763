// Every kernel of the CUDA backend, as BasicCuda launches them: what scripts/cuda-check compiles for each GPU. Never run.
#include "prism/backend/cuda/cuda.hpp"
#include "prism/backend/cuda/runtime.cuh"

namespace prism {

template class BasicCuda<cuda::Runtime>;

namespace {

using Device = BasicCuda<cuda::Runtime>;

template <class... Formats>
void gather_each(Device& be, format_list<Formats...>) {
    (be.gather(Packed<Formats, device>{}, {}, {}), ...);
}
template <class T>
void over_cache(Device& be) {
    be.attention(In<Device>{}, View<const T, device, dyn, dyn>{}, View<const T, device, dyn, dyn>{}, {}, {});
    be.split_heads(In<Device>{}, 0, 0, View<T, device, dyn, dyn>{});
    be.append_and_attend(In<Device>{}, In<Device>{}, In<Device>{}, In<Device>{}, In<Device>{}, {}, View<T, device, dyn, dyn>{}, View<T, device, dyn, dyn>{}, Mat<Device>{});
    be.rope_and_append(In<Device>{}, In<Device>{}, Mat<Device>{}, In<Device>{}, In<Device>{}, 0, View<T, device, dyn, dyn>{}, View<T, device, dyn, dyn>{});
}

}  // namespace

void instantiate_all(Device& be) {
    gather_each(be, all_formats{});
    over_cache<float>(be);
    over_cache<bf16_t>(be);
}

}  // namespace prism
