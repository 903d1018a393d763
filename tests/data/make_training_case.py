#!/usr/bin/env python3
"""Makes a training case that is small enough to keep, with the functions of the script that made the others:

    python3 tests/data/make_training_case.py make_reference.py tests/data/reference/training

The whole cases take 10 MB. Of finetune, whose gradients full-finetune has too, the losses and norms alone are kept.
"""
import argparse
import importlib.util
import random
import shutil
from pathlib import Path

import torch
import transformers


# With so few dimensions one seed in two makes a model whose eight steps magnify what f32 rounds; this one does not.
SEED = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path)
    parser.add_argument("target", type=Path, help="written anew")
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("make_reference", args.script)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    reference.lm_configs = lambda rng: {"llama": transformers.LlamaConfig(
        vocab_size=640, hidden_size=8, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=608)}
    sizes = {"dino": dict(embed_dim=12, depth=2, num_heads=2, img_size=28), "siglip": dict(embed_dim=6, depth=3, num_heads=1, img_size=28)}
    if args.target.exists():
        shutil.rmtree(args.target)
    made = args.target.parent / "made"
    reference.make_training_cases(made, sizes, random.Random(SEED), torch.Generator().manual_seed(SEED))
    shutil.move(made / "training", args.target)
    made.rmdir()
    shutil.rmtree(args.target / "finetune")


if __name__ == "__main__":
    main()
