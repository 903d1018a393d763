// prism: compose, run and measure Prismatic-style vision-language models. CPU inference in one include.
//
//     prism::Cpu cpu;
//     auto vlm = prism::from_pretrained(cpu, "prism-dinosiglip+7b");
//     prism::Chat chat{cpu, vlm};
//     chat.show(prism::read_image("cat.jpg"));
//     std::cout << chat.ask("What is in it?").text << '\n';
#pragma once

#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/fusion/projector.hpp"
#include "prism/fusion/splice.hpp"
#include "prism/generate/ask_batch.hpp"
#include "prism/generate/batch.hpp"
#include "prism/generate/chat.hpp"
#include "prism/generate/policy.hpp"
#include "prism/generate/session.hpp"
#include "prism/image/read.hpp"
#include "prism/image/write.hpp"
#include "prism/io/checkpoint.hpp"
#include "prism/io/numpy.hpp"
#include "prism/io/safetensors.hpp"
#include "prism/lm/known.hpp"
#include "prism/model/feature_picture.hpp"
#include "prism/model/load.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/model/registry.hpp"
#include "prism/model/store_as.hpp"
#include "prism/text/prompt.hpp"
#include "prism/text/tokenizer.hpp"
#include "prism/version.hpp"
#include "prism/vision/pca.hpp"
#include "prism/vision/towers.hpp"

#if defined(PRISM_COMPILED)  // by the target prism::compiled
#include "prism/compiled.hpp"
#else
#include "prism/model/pack.hpp"
#endif
