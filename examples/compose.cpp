// Run: compose tests/data/reference/vlm/prism-dinosiglip+7b
// A model of your own, from modules: two vision towers side by side, a projector and a language model. The sizes are
// those of the small model that comes with the sources; its weights are random, and so are its answers.
#include <prism/prism.hpp>

#include <filesystem>
#include <iostream>

using namespace prism;

constexpr std::size_t image_size = 42;  // px: 3 x 3 patches

VitConfig dino_config() {
    VitConfig c = vit::dinov2_l14_reg4(image_size);
    return c.d_model = 96, c.d_ff = 384, c.n_layers = 3, c.n_heads = 4, c;
}
VitConfig siglip_config() {
    VitConfig c = vit::siglip_so400m14(image_size);
    return c.d_model = 48, c.d_ff = 179, c.n_layers = 4, c.n_heads = 3, c;
}

template <Backend B>
struct TwoEyes {
    Vit<B>               dino{dino_config()}, siglip{siglip_config()};
    FusedMlpProjector<B> projector{{.d_vision = 96 + 48, .d_model = 64}};
    Llama<B>             llm{{.vocab_size = 640, .d_model = 64, .d_ff = 136, .n_layers = 3, .n_heads = 4, .n_kv_heads = 4, .head_dim = 16}};

    static constexpr auto params = fields(
        field("vision_backbone.dino_featurizer", &TwoEyes::dino), field("vision_backbone.siglip_featurizer", &TwoEyes::siglip),
        field("projector.projector", &TwoEyes::projector), field("llm_backbone.llm", &TwoEyes::llm));

    std::size_t n_soft_tokens() const { return dino.n_patches(); }

    void see(B& be, Workspace<B>& ws, std::span<const PixelView<B>> pixels, Mat<B> out) const {
        auto   scope = ws.scope();
        Mat<B> feats = ws.mat(dino.n_patches(), 96 + 48);
        dino.forward(be, ws, pixels[0], feats.cols(0, 96));     // each tower writes its own columns:
        siglip.forward(be, ws, pixels[1], feats.cols(96, 48));  // the concatenation costs nothing
        projector.forward(be, ws, feats, out);                  // [n_patches, d_model] soft tokens
    }
};

int main(int argc, char** argv) {
    if (argc != 2) return 2;  // a Prismatic run folder
    const std::filesystem::path folder = argv[1];
    Cpu                         cpu;
    TwoEyes<Cpu>                vlm;
    Checkpoint                  weights = Checkpoint::open(folder / "checkpoints/latest-checkpoint.pt").below("model");
    weights.add(Checkpoint::open(folder / "vision/dino"), "vision_backbone.dino_featurizer");
    weights.add(Checkpoint::open(folder / "vision/siglip"), "vision_backbone.siglip_featurizer");
    load(cpu, vlm, weights);  // every tensor finds its parameter and every parameter its tensor, or this throws

    Chat chat{cpu, vlm, ChatParts{.tokenizer = Tokenizer::open(folder / "llm"), .prompts = prompt_builder_for("llama2-7b-pure"),
                                  .transforms = {{.stats = statistics::imagenet, .size = image_size}, {.stats = statistics::half, .size = image_size}},
                                  .max_tokens = 512}};
    chat.show(read_image(folder / "image.png"));
    std::cout << chat.ask("How many green crosss are there?", {.max_new_tokens = 16}).text << '\n'
              << chat.ask("Are you sure?", {.max_new_tokens = 16}).text << '\n';
}
