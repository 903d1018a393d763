// A program that opens a model and asks it, and leaves compiling that to prism::compiled.
// Its arguments are a model's folder and a picture.
#include <prism/prism.hpp>

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    prism::Cpu  cpu{{.threads = 1}};
    auto        vlm = prism::from_pretrained(cpu, argv[1]);
    prism::Chat chat{cpu, vlm};
    chat.show(prism::read_image(argv[2]));
    return chat.ask("What is in it?", {.max_new_tokens = 2}).output_ids.empty() ? 1 : 0;
}
