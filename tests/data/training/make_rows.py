#!/usr/bin/env python3
"""What the reference makes of conversations: ids, labels, padded batches, orders of its samplers.

    python3 tests/data/training/make_rows.py CHECKOUT_OF_PRISMATIC_VLMS

Writes rows.json beside this file, with the tokenizers of tests/data/reference. Needs torch, transformers and what the
checkout imports; made with TRI-ML/prismatic-vlms 874c5bb, torch 2.2.0 and transformers 4.40.1.
"""
import importlib.util
import json
import random
import sys
import tempfile
import types
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoTokenizer

here = Path(__file__).resolve().parent
root = Path(sys.argv[1])


def module(name, file):
    """One file of the checkout, without the packages around it."""
    spec = importlib.util.spec_from_file_location(name, root / "prismatic" / file)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


for package in ("prismatic", "prismatic.models", "prismatic.models.backbones", "prismatic.models.backbones.llm", "prismatic.models.backbones.llm.prompting"):
    sys.modules[package] = types.ModuleType(package)
sys.modules["prismatic.models.backbones.vision"] = types.ModuleType("vision")
sys.modules["prismatic.models.backbones.vision"].ImageTransform = object
prompting = {}
for file, name in [("base_prompter", "PromptBuilder"), ("phi_prompter", "PhiPromptBuilder"), ("vicuna_v15_prompter", "VicunaV15ChatPromptBuilder"),
                   ("mistral_instruct_prompter", "MistralInstructPromptBuilder"), ("llama2_chat_prompter", "LLaMa2ChatPromptBuilder")]:
    m = module(f"prismatic.models.backbones.llm.prompting.{file}", f"models/backbones/llm/prompting/{file}.py")
    for key in dir(m):
        if key.endswith("PromptBuilder"):
            prompting[key] = getattr(m, key)
sys.modules["prismatic.models.backbones.llm.prompting"].PromptBuilder = prompting["PromptBuilder"]
datasets = module("prismatic.datasets", "preprocessing/datasets/datasets.py")
collator = module("prismatic.data_utils", "util/data_utils.py")
batching = module("prismatic.batching_utils", "util/batching_utils.py")

H, G = "human", "gpt"
conversations = [
    [(H, "<image>\nWhat animal is this?"), (G, "A cat on a mat.")],
    [(H, "What is it?\n<image>"), (G, "  a red ball \n"), (H, " Why? "), (G, "")],
    [(H, "caf\u00e9 \u6f22\u5b57 \U0001f600 </s> end"), (G, "tabs\tand  two spaces\n\nlines")],
    [(H, ""), (G, "yes"), (H, "<image><image>"), (G, "<s>no</s>"), (H, "one more"), (G, "and the last of them goes on for quite a while, so that it is cut")],
    [(H, "only a question")],
]
rows = [{"id": str(i), "conversations": [{"from": r, "value": v} for r, v in c], **({"image": "x.png"} if i % 2 == 0 else {})} for i, c in enumerate(conversations)]
captions = [{"id": str(i), "image": "x.png", "conversations": [{"from": H, "value": "<image>"}, {"from": G, "value": v}]}
            for i, v in enumerate(["select luxury furniture 3 - inch gel memory foam mattress topper\n", "", " a caf\u00e9 at night, with people who sit and talk and drink and do not leave "])]

builders = {"llama2-7b-pure": ("llama", prompting["PurePromptBuilder"]), "vicuna-v15-7b": ("llama", prompting["VicunaV15ChatPromptBuilder"]),
            "llama2-7b-chat": ("llama", prompting["LLaMa2ChatPromptBuilder"]), "mistral-v0.1-7b-instruct": ("llama", prompting["MistralInstructPromptBuilder"]),
            "phi-2-3b": ("phi", prompting["PhiPromptBuilder"])}
out = {"conversations": rows, "captions": captions, "max_tokens": {}, "rows": {}, "caption_rows": {}, "padded": {}, "orders": []}
with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    Image.new("RGB", (2, 2)).save(folder / "x.png")
    (folder / "chat.json").write_text(json.dumps(rows))
    (folder / "captions.json").write_text(json.dumps(captions))
    for backbone, (tokenizer_name, builder) in builders.items():
        limit = 130 if backbone in ("vicuna-v15-7b", "llama2-7b-chat") else 40
        tokenizer = AutoTokenizer.from_pretrained(here.parent / "reference/tokenizers" / tokenizer_name, model_max_length=limit)
        tokenizer.add_special_tokens({"pad_token": "<|pad|>" if tokenizer_name == "phi" else "<PAD>"})
        pixels = lambda image: torch.zeros(3, 2, 2)
        finetune = datasets.FinetuneDataset(folder / "chat.json", folder, pixels, tokenizer, builder)
        align = datasets.AlignDataset(folder / "captions.json", folder, pixels, tokenizer)
        listed = lambda data: [{"ids": data[i]["input_ids"].tolist(), "labels": data[i]["labels"].tolist()} for i in range(len(data))]
        out["max_tokens"][backbone], out["rows"][backbone], out["caption_rows"][backbone] = limit, listed(finetune), listed(align)
        if backbone not in ("llama2-7b-pure", "phi-2-3b"):
            continue
        batch = collator.PaddedCollatorForLanguageModeling(limit, tokenizer.pad_token_id, (3, 2, 2))([finetune[i] for i in range(len(finetune))])
        out["padded"][backbone] = {"pad_id": tokenizer.pad_token_id, "ids": batch["input_ids"].flatten().tolist(), "labels": batch["labels"].flatten().tolist(),
                                   "mask": batch["attention_mask"].int().flatten().tolist(), "pictures": batch["multimodal_indices"].tolist()}
    out["words"] = [n for _, n in finetune.get_modality_lengths()]

draw = random.Random(5)
for n, g, ranks, p in [(37, 8, 2, 0.7), (60, 16, 4, 0.5), (24, 8, 1, 1.0), (41, 6, 3, 0.9)]:
    lengths = [(draw.random() < p, draw.randrange(1, 60)) for _ in range(n)]
    for epoch in (0, 3):
        samplers = [batching.SplitModalitySampler(range(n), lengths, g, ranks, r, seed=7) for r in range(ranks)]
        for s in samplers:
            s.set_epoch(epoch)
        plain = [torch.utils.data.DistributedSampler(range(n), ranks, r, shuffle=True, seed=7, drop_last=False) for r in range(ranks)]
        for s in plain:
            s.set_epoch(epoch)
        out["orders"].append({"pictures": [m for m, _ in lengths], "words": [w for _, w in lengths], "global_batch": g, "epoch": epoch,
                              "split": [[int(i) for i in s] for s in samplers], "shuffled": [[int(i) for i in s] for s in plain]})
(here / "rows.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
