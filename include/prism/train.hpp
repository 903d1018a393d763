// Training in one include, beside prism.hpp: running models costs nothing for its sake.
//
//     prism::Cpu cpu;
//     auto vlm = prism::from_pretrained(cpu, "prism-dinosiglip+7b");
//     prism::Trainer trainer{cpu, vlm.model, prism::Stage::align, {.optimizer = {.lr = 1e-3, .total_steps = 2180}}};
#pragma once

#include "prism/backend/cpu/training.hpp"
#include "prism/backend/dry/training.hpp"
#include "prism/prism.hpp"
#include "prism/train/trainer.hpp"
