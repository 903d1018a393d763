// Run: openvla_loop tests/data/reference/vlm/openvla-hf tabletop
// OpenVLA in a control loop: five times a second a picture goes in, and an action for the robot comes out in time.
#include <prism/prism.hpp>

#include <chrono>
#include <cstdio>
#include <thread>

using namespace std::chrono_literals;

/// What the camera sees at that step: here, a red square that slides over a picture.
prism::Image camera(prism::Image frame, std::size_t step) {
    const std::size_t side = frame.height() / 4;
    for (std::size_t y = 0; y < side; ++y)
        for (std::size_t x = 0; x < side; ++x) {
            std::uint8_t* pixel = frame.row(y + side) + 3 * ((x + step * side) % frame.width());
            pixel[0] = 255, pixel[1] = pixel[2] = 0;
        }
    return frame;
}

/// What the robot does: here, it says so.
void send(const prism::Action& action) {
    for (double value : action.values) std::printf("%8.4f", value);
    std::printf("\n");
}

int main(int argc, char** argv) {
    if (argc != 3) return 2;  // an OpenVLA folder with a picture in it, and a key of its statistics
    constexpr auto period = 200ms;
    constexpr int  n_steps = 6;

    prism::Cpu         cpu;
    const auto         vla = prism::from_pretrained(cpu, argv[1]);
    const prism::Image scene = prism::read_image(std::string(argv[1]) + "/image.png");
    // Scoring only the head's rows that are actions saves time, and no step can come out with anything but an action.
    prism::Policy policy{cpu, vla, argv[2], {.action_rows_only = true}};

    int  n_met = 0;
    auto deadline = std::chrono::steady_clock::now();
    for (int step = 0; step < n_steps; ++step) {
        deadline += period;
        send(policy.act(camera(scene, static_cast<std::size_t>(step)), "pick up the red square"));
        const auto now = std::chrono::steady_clock::now();
        if (now <= deadline) {
            ++n_met;
            std::this_thread::sleep_until(deadline);
        } else {
            deadline = now;  // late: the next step begins at once, and does not have to make up for this one
        }
    }
    std::fprintf(stderr, "%d of %d steps met the deadline of %d ms\n", n_met, n_steps, static_cast<int>(period / 1ms));
}
