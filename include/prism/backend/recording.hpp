// RecordingBackend: what a backend with a device of its own offers beyond Backend. Work can be recorded, and done again
// with other tokens at other positions without the host taking part.
#pragma once

#include "prism/backend/concept.hpp"

#include <cstdint>
#include <span>

namespace prism {

/// Integers and numbers that recorded work reads lie on the device; pointers to them are of the device.
template <class B>
concept RecordingBackend = Backend<B> && requires(B& be, typename B::Recording& recording, void (*work)(), std::int32_t* at, Vec<B, const float> scores,
                                                  std::span<const std::int32_t> ids, std::span<std::int32_t> to, const double* uniform, std::span<const double> numbers,
                                                  double* number) {
    { be.record(work) } -> std::same_as<typename B::Recording>;  // work() enqueues; it was done once before, so that memory is there
    be.replay(recording);
    be.ids_from(at);                                             // embeddings take their ids from here on; null: from their caller
    be.shift_from(at);                                           // positions count from *at on; null: from their caller's
    be.upload(ids, at);
    be.upload(numbers, number);
    be.download(at, to);
    be.take_likeliest(scores, std::int32_t{}, at);               // *at = first id + the index of the largest score; -1: not finite
    be.take_drawn(scores, std::int32_t{}, 1.0f, std::int64_t{}, 1.0f, uniform, at);  // as Sampler draws
};

/// While it lives, embeddings take their ids from the device, from `ids` on, and with `shift` positions count from *shift on.
template <RecordingBackend B>
class FromDevice {
public:
    explicit FromDevice(B& be, const std::int32_t* ids, const std::int32_t* shift = nullptr) : be_(&be) { be.ids_from(ids), be.shift_from(shift); }
    ~FromDevice() { be_->ids_from(nullptr), be_->shift_from(nullptr); }
    FromDevice(const FromDevice&) = delete;
    FromDevice& operator=(const FromDevice&) = delete;

private:
    B* be_;
};

}  // namespace prism
