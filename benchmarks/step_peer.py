#!/usr/bin/env python3
"""The step of step_bench with PyTorch, eager, in f32: the same model, batch, clipping and AdamW.

    python3 benchmarks/step_peer.py [--rows 4] [--tokens 256] [--threads 2] [--steps 5]
"""
import argparse
import time

import torch
import transformers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, value in (("rows", 4), ("tokens", 256), ("threads", 2), ("steps", 5)):
    parser.add_argument("--" + name, type=int, default=value)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)
config = transformers.LlamaConfig(vocab_size=8192, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
                                  max_position_embeddings=4096, use_cache=False, attn_implementation="sdpa")
model = transformers.LlamaForCausalLM(config).train()
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
ids = torch.randint(0, 8192, (args.rows, args.tokens + 1))
seconds, computing = [], []
for i in range(args.steps + 1):
    start, cpu = time.perf_counter(), time.process_time()
    model(input_ids=ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=False)
    seconds.append(time.perf_counter() - start)
    computing.append(time.process_time() - cpu)
print(f"{sum(p.numel() for p in model.parameters())} parameters, {args.rows} rows of {args.tokens} tokens, {args.threads} threads, PyTorch {torch.__version__}")
print(f"step {min(seconds[1:]):.3f} s; threads computed for {min(computing[1:]):.3f} s")
