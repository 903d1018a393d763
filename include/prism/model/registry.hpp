// The 49 published Prismatic models by id: which towers, which resize, which language model, which projector, and how
// each was trained. A table of contents only: where a checkpoint's config.json says otherwise, that decides.
//
//     Prismatic<B> model{prism::composition_of("prism-dinosiglip-224px+7b")};
#pragma once

#include "prism/image/transform.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace prism {

/// One row of Prismatic's registry. Source: TRI-ML/prismatic-vlms, models/registry.py and conf/models.py.
struct RegisteredModel {
    std::string_view id;
    std::string_view names;  // of the paper, separated by "; "
    std::string_view vision_backbone_id;
    Resize           image_resize_strategy;
    std::string_view llm_backbone_id, arch_specifier;
    std::string_view stages, dataset_id;
    std::size_t      finetune_epochs, finetune_max_steps;  // max_steps 0: none
};

// prism-siglip+13b: its configuration class names the CLIP tower, its description SigLIP at 384 px. The class is given.
inline constexpr std::array<RegisteredModel, 49> registry{{
    {"reproduction-llava-v15+7b", "LLaVa v1.5 7B (Reproduction)",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "gelu-mlp", "align, finetune", "llava-v15", 1, 0},
    {"reproduction-llava-v15+13b", "LLaVa v1.5 13B (Reproduction)",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-13b", "gelu-mlp", "align, finetune", "llava-v15", 1, 0},
    {"one-stage+7b", "One-Stage 7B; Single-Stage 7B; Frozen ViT (Single-Stage); CLIP ViT-L 336px (Letterbox); CLIP ViT-L 336px; Vicu\u00f1a v1.5 7B; 1 Epoch; Base",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"one-stage+13b", "One-Stage 13B; Single-Stage 13B; Vicu\u00f1a v1.5 13B",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-13b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"full-ft-multi-stage+7b", "Finetune ViT (Multi-Stage)",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "gelu-mlp", "align, full-finetune", "llava-v15", 1, 0},
    {"full-ft-one-stage+7b", "Finetune ViT (Single-Stage)",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "full-finetune", "llava-v15", 1, 0},
    {"in1k-224px+7b", "IN1K ViT-L 224px",
     "in1k-vit-l", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"dinov2-224px+7b", "DINOv2 ViT-L 224px",
     "dinov2-vit-l", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"clip-224px+7b", "CLIP ViT-L 224px",
     "clip-vit-l", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"siglip-224px+7b", "SigLIP ViT-SO 224px",
     "siglip-vit-so400m", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"clip-336px-resize-crop+7b", "CLIP ViT-L 336px (Resize Crop)",
     "clip-vit-l-336px", Resize::crop, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"clip-336px-resize-naive+7b", "CLIP ViT-L 336px (Naive Resize); CLIP 336px (Naive Resize)",
     "clip-vit-l-336px", Resize::naive, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"siglip-384px-letterbox+7b", "SigLIP ViT-SO 384px (Letterbox); SigLIP ViT-SO 384px",
     "siglip-vit-so400m-384px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"siglip-384px-resize-crop+7b", "SigLIP ViT-SO 384px (Resize Crop)",
     "siglip-vit-so400m-384px", Resize::crop, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"siglip-384px-resize-naive+7b", "SigLIP ViT-SO 384px (Naive Resize); SigLIP 384px (Naive Resize)",
     "siglip-vit-so400m-384px", Resize::naive, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"dinoclip-336px-letterbox+7b", "DINOv2 + CLIP 336px (Letterbox)",
     "dinoclip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+fused-gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"dinoclip-336px-resize-naive+7b", "DINOv2 + CLIP 336px (Naive Resize)",
     "dinoclip-vit-l-336px", Resize::naive, "vicuna-v15-7b", "no-align+fused-gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"dinosiglip-384px-letterbox+7b", "DINOv2 + SigLIP 384px (Letterbox)",
     "dinosiglip-vit-so-384px", Resize::letterbox, "vicuna-v15-7b", "no-align+fused-gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"dinosiglip-384px-resize-naive+7b", "DINOv2 + SigLIP 384px (Naive Resize)",
     "dinosiglip-vit-so-384px", Resize::naive, "vicuna-v15-7b", "no-align+fused-gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"llama2+7b", "Llama-2 7B",
     "clip-vit-l-336px", Resize::letterbox, "llama2-7b-pure", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"llama2+13b", "Llama-2 13B",
     "clip-vit-l-336px", Resize::letterbox, "llama2-13b-pure", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"vicuna-no-cotraining+7b", "Vicu\u00f1a v1.5 7B (No Co-training)",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-multimodal", 1, 0},
    {"llama2-no-cotraining+7b", "Llama-2 7B (No Co-training)",
     "clip-vit-l-336px", Resize::letterbox, "llama2-7b-pure", "no-align+gelu-mlp", "finetune", "llava-multimodal", 1, 0},
    {"llama2-chat+7b", "Llama-2 Chat 7B",
     "clip-vit-l-336px", Resize::letterbox, "llama2-7b-chat", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"llama2-chat+13b", "Llama-2 Chat 13B",
     "clip-vit-l-336px", Resize::letterbox, "llama2-13b-chat", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"mistral-v0.1+7b", "Mistral v0.1 7B",
     "clip-vit-l-336px", Resize::letterbox, "mistral-v0.1-7b-pure", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"mistral-instruct-v0.1+7b", "Mistral Instruct v0.1 7B",
     "clip-vit-l-336px", Resize::letterbox, "mistral-v0.1-7b-instruct", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"phi-2+3b", "Phi-2 3B",
     "clip-vit-l-336px", Resize::letterbox, "phi-2-3b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"train-1.25-epochs+7b", "1.25 Epochs",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 6500},
    {"train-1.5-epochs+7b", "1.5 Epochs",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 7800},
    {"train-2-epochs+7b", "2 Epochs",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 2, 0},
    {"train-3-epochs+7b", "3 Epochs",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-v15", 3, 0},
    {"llava-lvis4v+7b", "Base + LVIS-4V",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-lvis4v", 1, 0},
    {"llava-lrv+7b", "Base + LRV",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-lrv", 1, 0},
    {"llava-lvis4v-lrv+7b", "Base + LVIS-4V + LRV",
     "clip-vit-l-336px", Resize::letterbox, "vicuna-v15-7b", "no-align+gelu-mlp", "finetune", "llava-lvis4v-lrv", 1, 0},
    {"prism-clip-controlled+7b", "Prism-CLIP 7B (Controlled)",
     "clip-vit-l-336px", Resize::naive, "llama2-7b-pure", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"prism-clip-controlled+13b", "Prism-CLIP 13B (Controlled)",
     "clip-vit-l-336px", Resize::naive, "llama2-13b-pure", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"prism-clip+7b", "Prism-CLIP 7B",
     "clip-vit-l-336px", Resize::naive, "llama2-7b-pure", "no-align+gelu-mlp", "finetune", "llava-lvis4v-lrv", 2, 0},
    {"prism-clip+13b", "Prism-CLIP 13B",
     "clip-vit-l-336px", Resize::naive, "llama2-13b-pure", "no-align+gelu-mlp", "finetune", "llava-lvis4v-lrv", 2, 0},
    {"prism-siglip-controlled+7b", "Prism-SigLIP 7B (Controlled)",
     "siglip-vit-so400m-384px", Resize::naive, "llama2-7b-pure", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"prism-siglip-controlled+13b", "Prism-SigLIP 13B (Controlled)",
     "siglip-vit-so400m-384px", Resize::naive, "llama2-13b-pure", "no-align+gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"prism-siglip+7b", "Prism-SigLIP 7B",
     "siglip-vit-so400m-384px", Resize::naive, "llama2-7b-pure", "no-align+gelu-mlp", "finetune", "llava-lvis4v-lrv", 2, 0},
    {"prism-siglip+13b", "Prism-SigLIP 13B",
     "clip-vit-l-336px", Resize::naive, "llama2-13b-pure", "no-align+gelu-mlp", "finetune", "llava-lvis4v-lrv", 2, 0},
    {"prism-dinosiglip-controlled+7b", "Prism-DINOSigLIP 7B (Controlled); Prism 7B (Controlled)",
     "dinosiglip-vit-so-384px", Resize::naive, "llama2-7b-pure", "no-align+fused-gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"prism-dinosiglip-controlled+13b", "Prism-DINOSigLIP 13B (Controlled); Prism 13B (Controlled)",
     "dinosiglip-vit-so-384px", Resize::naive, "llama2-13b-pure", "no-align+fused-gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"prism-dinosiglip+7b", "Prism-DINOSigLIP 7B",
     "dinosiglip-vit-so-384px", Resize::naive, "llama2-7b-pure", "no-align+fused-gelu-mlp", "finetune", "llava-lvis4v-lrv", 2, 0},
    {"prism-dinosiglip+13b", "Prism-DINOSigLIP 13B",
     "dinosiglip-vit-so-384px", Resize::naive, "llama2-13b-pure", "no-align+fused-gelu-mlp", "finetune", "llava-lvis4v-lrv", 2, 0},
    {"prism-dinosiglip-224px-controlled+7b", "Prism-DINOSigLIP 224px 7B (Controlled)",
     "dinosiglip-vit-so-224px", Resize::naive, "llama2-7b-pure", "no-align+fused-gelu-mlp", "finetune", "llava-v15", 1, 0},
    {"prism-dinosiglip-224px+7b", "Prism-DINOSigLIP 224px 7B",
     "dinosiglip-vit-so-224px", Resize::naive, "llama2-7b-pure", "no-align+fused-gelu-mlp", "finetune", "llava-lvis4v-lrv", 2, 0},
}};

/// The model of that id or paper name. Throws ConfigError that lists the ids.
inline const RegisteredModel& registered_model(std::string_view id_or_name) {
    std::string allowed;
    for (const auto& m : registry) {
        if (m.id == id_or_name) return m;
        for (std::string_view rest = m.names; !rest.empty();) {
            const std::size_t end = std::min(rest.find("; "), rest.size());
            if (rest.substr(0, end) == id_or_name) return m;
            rest.remove_prefix(std::min(end + 2, rest.size()));
        }
        allowed += (allowed.empty() ? "" : ", ") + std::string(m.id);
    }
    throw ConfigError{"model", std::string(id_or_name), allowed};
}

}  // namespace prism
