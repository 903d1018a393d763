"""PyTorch on the shapes of prism's GPU cases: random weights in bf16, SDPA, torch.compile and CUDA graphs.

Only torch is needed: towers and decoders are written out here, as timm and transformers compute them. Every way of every case
prints a JSON line as soon as it is timed, with what was timed of the case before; those that take long to compile come last:
    eager    as it is written
    graph    the same as a CUDA graph
    blocks   each kind of block compiled, in a CUDA graph
    whole    the case compiled in one piece with the longest search for kernels, in a CUDA graph
"""
import contextlib
import json
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

DEVICE, DTYPE, RUNS, LEAST_S = "cuda", torch.bfloat16, 20, 0.02


class Block(nn.Module):
    """A pre-norm block of a vision transformer; DINOv2's scales what it adds."""

    def __init__(self, d, heads, d_ff, scaled):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc1, self.fc2 = nn.Linear(d, d_ff), nn.Linear(d_ff, d)
        self.ls1, self.ls2 = (nn.Parameter(torch.ones(d)) if scaled else None for _ in range(2))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        x = x + (y if self.ls1 is None else y * self.ls1)
        y = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + (y if self.ls2 is None else y * self.ls2)


class Tower(nn.Module):
    """Up to the second-to-last block, patch rows only."""

    def __init__(self, size, patch, d, heads, d_ff, blocks, prefix, scaled):
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Conv2d(3, d, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, prefix + (size // patch) ** 2, d))
        self.tokens = nn.Parameter(torch.zeros(1, prefix, d))
        self.blocks = nn.ModuleList(Block(d, heads, d_ff, scaled) for _ in range(blocks - 1))

    def forward(self, pixels):
        x = self.embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return x[:, self.prefix:]


class Towers(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.dino = Tower(size, 14, 1024, 16, 4096, 24, 5, True)
        self.siglip = Tower(size, 14, 1152, 16, 4304, 27, 0, False)

    def forward(self, pixels):
        return torch.cat([self.dino(pixels), self.siglip(pixels)], -1)


class RmsNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * self.weight


class Layer(nn.Module):
    def __init__(self, d, heads, d_ff, capacity):
        super().__init__()
        self.heads, self.dim = heads, d // heads
        self.norm1, self.norm2 = RmsNorm(d), RmsNorm(d)
        self.qkv, self.o = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.gate_up, self.down = nn.Linear(d, 2 * d_ff, bias=False), nn.Linear(d_ff, d, bias=False)
        self.register_buffer("keys", torch.zeros(1, heads, capacity, self.dim))
        self.register_buffer("values", torch.zeros(1, heads, capacity, self.dim))

    def forward(self, x, cos, sin, positions, mask):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)

        def turn(z):
            low, high = z.chunk(2, -1)
            return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

        q, k = turn(q), turn(k)
        self.keys.index_copy_(2, positions, k)
        self.values.index_copy_(2, positions, v)
        if n > 1:  # a prompt begins the cache; without a mask the fastest kernels are taken
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, d))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, d=4096, layers=32, heads=32, d_ff=11008, vocab=32064, capacity=320):
        super().__init__()
        self.capacity = capacity
        self.embed = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList(Layer(d, heads, d_ff, capacity) for _ in range(layers))
        self.norm, self.head = RmsNorm(d), nn.Linear(d, vocab, bias=False)
        angles = torch.outer(torch.arange(capacity).float(), 1e4 ** (-torch.arange(0, d // heads, 2).float() / (d // heads)))
        self.register_buffer("cos", angles.cos().to(DTYPE))
        self.register_buffer("sin", angles.sin().to(DTYPE))

    def forward(self, x, positions):
        mask = torch.arange(self.capacity, device=x.device)[None, :] <= positions[:, None]
        cos, sin = self.cos[positions], self.sin[positions]
        for layer in self.layers:
            x = layer(x, cos, sin, positions, mask)
        return self.head(self.norm(x[:, -1:]))


def made(build):
    """On the device and in bf16 from the start: a processor takes minutes to make 7e9 weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)
    try:
        with torch.device(DEVICE):
            return build()
    finally:
        torch.set_default_dtype(before)


def timed(step, graph):
    """Median and least seconds of a step, or of its CUDA graph."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    if graph:
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            step()
        step = recorded.replay
    def waited_for(n):  # as prism's bench does: many short steps share one wait
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(n):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / n

    repeats = min(100, max(1, int(LEAST_S / waited_for(1))))
    seconds = [waited_for(repeats) for _ in range(RUNS)]
    seconds.sort()
    return {"min": seconds[0], "median": seconds[len(seconds) // 2]}


@contextlib.contextmanager
def compiled_blocks():
    """Blocks of the same kind share what is compiled; in one piece they would be compiled as often as they are there."""
    kinds = {kind: kind.forward for kind in (Block, Layer)}
    for kind, forward in kinds.items():
        kind.forward = torch.compile(forward, dynamic=False)
    try:
        yield
    finally:
        for kind, forward in kinds.items():
            kind.forward = forward


def time_way(way, step):
    with torch.inference_mode():
        if way == "blocks":
            with compiled_blocks():
                return timed(step, True)
        if way == "whole":
            return timed(torch.compile(step, mode="max-autotune-no-cudagraphs", dynamic=False), True)
        return timed(step, way != "eager")


def main():
    torch.backends.cuda.matmul.allow_tf32 = False
    cases, sizes = {}, (224, 384)
    towers = {size: made(lambda: Towers(size)) for size in sizes}
    pixels = {size: made(lambda: torch.randn(1, 3, size, size)) for size in sizes}
    llm = made(Llama)
    projector = made(lambda: nn.Sequential(nn.Linear(2176, 8704), nn.GELU(), nn.Linear(8704, 4096), nn.GELU(), nn.Linear(4096, 4096)))
    prompt, text = made(lambda: torch.randn(1, 288, 4096)), made(lambda: torch.randn(1, 24, 4096))
    token, later = torch.tensor([[7]], device=DEVICE), torch.tensor([300], device=DEVICE)
    start, prompt_at, steps = torch.arange(288, device=DEVICE), torch.arange(280, device=DEVICE), [torch.tensor([280 + i], device=DEVICE) for i in range(6)]

    def action():
        logits = llm(torch.cat([text[:, :1], projector(towers[224](pixels[224])), text[:, 1:]], 1), prompt_at)
        for position in steps:
            logits = llm(llm.embed(logits.argmax(-1)), position)
        return logits.argmax(-1)

    cases["vision/dinosiglip-vit-so-224px"] = lambda: towers[224](pixels[224])
    cases["prefill/llama2-7b"] = lambda: llm(prompt, start)
    cases["decode/llama2-7b"] = lambda: llm(llm.embed(token), later).argmax(-1)
    cases["action/openvla-7b"] = action
    cases["vision/dinosiglip-vit-so-384px"] = lambda: towers[384](pixels[384])

    results = {case: {"case": case, "torch": torch.__version__, "gpu": torch.cuda.get_device_name()} for case in cases}
    for way in ("eager", "graph", "blocks", "whole"):
        for case, step in cases.items():
            if way == "whole" and case.startswith("action/"):
                continue  # 7 times 32 layers and 49 blocks in one piece
            torch._dynamo.reset()
            try:
                results[case][way] = time_way(way, step)
            except Exception as error:  # a way that does not work here is left out
                results[case][way] = {"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
            print(json.dumps(results[case]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
