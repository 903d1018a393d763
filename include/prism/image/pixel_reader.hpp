// PixelReader: from a file to what vision towers read, one thread decoding while another resizes what is there.
//
//     PixelReader reader;                            // keep it: it owns a thread
//     std::vector<float> pixels(3 * 384 * 384);
//     const TowerPixels tower{{.stats = statistics::half, .size = 384}, {pixels.data(), {3, 384, 384}}};
//     Image image = reader.read("cat.jpg", {&tower, 1});
#pragma once

#include "prism/core/view.hpp"
#include "prism/image/image.hpp"
#include "prism/image/read.hpp"
#include "prism/image/transform.hpp"
#include "prism/io/file.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <list>
#include <mutex>
#include <span>
#include <string>
#include <system_error>
#include <thread>

namespace prism {

/// A transform and where its result [3, size, size] goes.
struct TowerPixels {
    ImageTransform                   transform;
    View<float, host, dyn, dyn, dyn> out;
};

struct PixelReaderOptions {
    /// 1: all is done by the caller's thread. More: a second one helps, and nothing waits for it that the caller's
    /// could do. The bits are the same.
    std::size_t threads = 2;
};

/// Reads pictures and makes every tower's pixels of them. For one caller at a time.
class PixelReader {
public:
    explicit PixelReader(const PixelReaderOptions& options = {}) {
        if (options.threads < 2) return;
        try {
            helper_ = std::thread([this] { help(); });
        } catch (const std::system_error&) {}  // no thread to be had: the caller's does it all
    }
    PixelReader(const PixelReader&) = delete;
    PixelReader& operator=(const PixelReader&) = delete;
    ~PixelReader() {
        if (!helper_.joinable()) return;
        stop_ = true;
        wake_helper();
        helper_.join();
    }

    /// decode_image, and ImageTransform::apply for every tower. Throws what these throw; then the outputs are
    /// undefined.
    Image decode(std::span<const std::byte> bytes, const std::string& name, std::span<const TowerPixels> towers,
                 const ReadOptions& options = {}) {
        Image          image;
        const Cleaning cleaning{*this};  // before the picture goes
        image_detail::decode_into(bytes, name, options, image,
                                  [&](std::size_t n_rows) { arrive(image, towers, n_rows); });
        return image;
    }

    /// The same from a file. Throws LoadError when it cannot be read.
    Image read(const std::filesystem::path& path, std::span<const TowerPixels> towers,
               const ReadOptions& options = {}) {
        const std::string bytes = read_file(path);
        return decode(std::as_bytes(std::span{bytes}), path.string(), towers, options);
    }

private:
    struct Cleaning {
        PixelReader& reader;
        ~Cleaning() {
            const std::lock_guard lock{reader.mutex_};
            reader.streams_.clear();
            reader.n_rows_ = 0;
            reader.problem_ = nullptr;
        }
    };

    /// `n_rows` rows of the picture are decoded. The last of them are this thread's: the helper may be asleep.
    void arrive(const Image& image, std::span<const TowerPixels> towers, std::size_t n_rows) {
        if (streams_.empty()) {  // only this thread changes the list
            const std::lock_guard lock{mutex_};
            for (const TowerPixels& tower : towers) streams_.emplace_back(tower.transform, image, tower.out);
        }
        if (n_rows < image.height()) {
            // On one thread the passes are quicker in a piece: alternating costs the decoder its caches.
            if (!helper_.joinable()) return;
            n_rows_.store(n_rows, std::memory_order_release);
            wake_helper();
        } else {
            const std::lock_guard lock{mutex_};
            if (problem_) std::rethrow_exception(problem_);
            for (TransformStream& stream : streams_) stream.advance(n_rows);
        }
    }

    void wake_helper() {
        ++bell_;
        bell_.notify_one();
    }

    void help() {
        for (std::uint32_t heard = 0; !stop_;) {
            bell_.wait(heard);
            heard = bell_;
            const std::lock_guard lock{mutex_};
            if (problem_) continue;
            try {
                const std::size_t n_rows = n_rows_.load(std::memory_order_acquire);
                for (TransformStream& stream : streams_) stream.advance(n_rows);
            } catch (...) { problem_ = std::current_exception(); }
        }
    }

    std::mutex                 mutex_;    // of the next two
    std::list<TransformStream> streams_;  // of the picture that is being decoded
    std::exception_ptr         problem_;
    std::atomic<std::size_t>   n_rows_ = 0;
    std::atomic<std::uint32_t> bell_ = 0;
    std::atomic<bool>          stop_ = false;
    std::thread                helper_;
};

}  // namespace prism
