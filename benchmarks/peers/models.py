"""Random-weight models of the compared shapes, as torch modules and as the files that peers read.

    python models.py FOLDER dinov2-vit-l.f32.onnx tinyllama-1.1b.q4.gguf ...

makes each of them that is not there yet, in a folder of its name. Speed does not depend on the values: they are normal
with deviation 0.02, so nothing is denormal. Packages are imported where they are used, because peers are optional.
"""
import os
import pathlib
import shutil
import sys

import rows

TIMM = {"dinov2-vit-l": "vit_large_patch14_reg4_dinov2", "siglip-vit-so400m": "vit_so400m_patch14_siglip_224",
        "clip-vit-l-336px": "vit_large_patch14_clip_quickgelu_336"}
SIZE = {"dinov2-vit-l": 224, "siglip-vit-so400m": 224, "clip-vit-l-336px": 336}


class LlmShape:
    """prism's llama_1b(): the shape of TinyLlama 1.1B."""
    vocab, d, d_ff, layers, heads, kv_heads, head_dim, eps, theta = 32000, 2048, 5632, 22, 32, 4, 64, 1e-5, 10000.0


def tower(what):
    """What prism's Vit::forward computes: patch features of the second-to-last block, without the last norm."""
    import timm
    import torch

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = timm.create_model(TIMM[what], pretrained=False, img_size=SIZE[what], num_classes=0, global_pool="")
            del self.vit.blocks[-1]
            self.vit.norm = torch.nn.Identity()
            self.vit.attn_pool = None

        def forward(self, pixels):
            return self.vit.forward_features(pixels)[:, self.vit.num_prefix_tokens:]

    torch.manual_seed(0)
    return randomise(Tower()).eval()


def randomise(module):
    """Matrices and tables normal; norms and layer scales one, biases zero."""
    import torch
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.dim() > 1:
                p.normal_(0, 0.02)
            else:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
    return module


def picture(what):
    import torch
    return torch.randn(1, 3, SIZE[what], SIZE[what], generator=torch.Generator().manual_seed(1))


def decoder(dtype=None):
    """A Llama decoder: forward(ids [1, n], cache) gives the logits of the last token and the longer cache."""
    import torch
    from torch.nn import functional as F
    s = LlmShape

    class Norm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(s.d))

        def forward(self, x):
            h = x.float()
            return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + s.eps)).to(x.dtype)

    def linear(n_in, n_out):
        return torch.nn.Linear(n_in, n_out, bias=False)

    def rotate(x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    def repeat(x):  # [1, kv_heads, n, head_dim] -> one for each query head
        b, h, n, d = x.shape
        return x[:, :, None].expand(b, h, s.heads // s.kv_heads, n, d).reshape(b, s.heads, n, d)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = Norm(), Norm()
            self.q, self.o = linear(s.d, s.heads * s.head_dim), linear(s.heads * s.head_dim, s.d)
            self.k, self.v = linear(s.d, s.kv_heads * s.head_dim), linear(s.d, s.kv_heads * s.head_dim)
            self.gate, self.up, self.down = linear(s.d, s.d_ff), linear(s.d, s.d_ff), linear(s.d_ff, s.d)

        def forward(self, x, cos, sin, past, mask, causal):
            h = self.norm1(x)
            q, k, v = (f(h).view(1, h.shape[1], -1, s.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if past is not None:
                k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
            y = F.scaled_dot_product_attention(q, repeat(k), repeat(v), attn_mask=mask, is_causal=causal)
            x = x + self.o(y.transpose(1, 2).reshape(1, x.shape[1], -1))
            h = self.norm2(x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h)), (k, v)

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(s.vocab, s.d)
            self.layers = torch.nn.ModuleList(Layer() for _ in range(s.layers))
            self.norm, self.head = Norm(), linear(s.d, s.vocab)
            angles = torch.outer(torch.arange(2048.0), s.theta ** (-torch.arange(0, s.head_dim, 2) / s.head_dim))
            angles = torch.cat((angles, angles), -1)
            self.cos, self.sin = angles.cos(), angles.sin()  # no buffers: they stay in f32, whatever the weights

        def forward(self, ids, cache=None, positions=None, mask=None):
            before = 0 if cache is None else cache[0][0].shape[2]
            if positions is None:
                positions = torch.arange(before, before + ids.shape[1])
            x, longer = self.embed(ids), []
            cos, sin = self.cos[positions].to(x.dtype), self.sin[positions].to(x.dtype)
            for i, layer in enumerate(self.layers):
                x, kv = layer(x, cos, sin, cache and cache[i], mask, mask is None and cache is None)
                longer.append(kv)
            return self.head(self.norm(x[:, -1:])), longer

    torch.manual_seed(0)
    return randomise(Decoder().to(dtype or torch.float32)).eval()


# ---- files

def make_reference(path, what, _):
    """What torch computes in f32, to hold the peers against."""
    import numpy as np
    import torch
    with torch.inference_mode():
        if what == rows.LLM:
            for kind, n in (("prefill", rows.PROMPT), ("decode", rows.CONTEXT + 1)):
                np.save(path / f"{kind}.npy", decoder()(torch.tensor([rows.TOKENS[:n]]))[0].numpy())
        else:
            np.save(path / "pixels.npy", picture(what).numpy())
            np.save(path / "features.npy", tower(what)(picture(what)).numpy())


def make_onnx(path, what, _):
    import torch
    with torch.no_grad():
        torch.onnx.export(tower(what), (picture(what),), str(path / "model.onnx"), dynamo=True, external_data=True, verbose=False)


def make_ir(path, what, weights):
    import openvino as ov
    if what == rows.LLM:
        model = stateful_decoder()
        if weights in ("q8", "q4"):  # of the weights only, all matrices; 4 bits in groups of 128 as its own tools do
            import nncf
            how = {"q8": dict(mode=nncf.CompressWeightsMode.INT8_SYM),
                   "q4": dict(mode=nncf.CompressWeightsMode.INT4_SYM, group_size=128, all_layers=True)}[weights]
            tables_of_rope = nncf.IgnoredScope(patterns=[".*aten::index/Gather.*"])
            model = nncf.compress_weights(model, ignored_scope=tables_of_rope, **how)
        ov.save_model(model, path / "model.xml", compress_to_fp16=True)
        return
    import torch
    x = picture(what)
    with torch.no_grad():
        model = ov.convert_model(tower(what), example_input=x, input=list(x.shape))
    if weights == "q8":  # weights and activations
        import nncf
        pictures = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).numpy() for i in range(4)]
        model = nncf.quantize(model, nncf.Dataset(pictures), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pictures))
    ov.save_model(model, path / "model.xml", compress_to_fp16=False)


def stateful_decoder():
    """The decoder in OpenVINO, its cache inside the model, as optimum-intel exports it."""
    import openvino as ov
    import torch
    from openvino._offline_transformations import apply_make_stateful_transformation
    s = LlmShape
    inner = decoder()

    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, ids, positions, beam_idx, *past):
            past = [p.index_select(0, beam_idx) for p in past]
            total = torch.arange(past[0].shape[2] + ids.shape[1])
            mask = (total[None, :] <= positions[:, None])[None, None]
            logits, cache = self.inner(ids, list(zip(past[::2], past[1::2])), positions, mask)
            return (logits, *(t for kv in cache for t in kv))

    past = [torch.zeros(1, s.kv_heads, 4, s.head_dim) for _ in range(2 * s.layers)]
    example = (torch.tensor([[5, 7, 9]]), torch.tensor([4, 5, 6]), torch.tensor([0]), *past)
    shapes = [(ov.PartialShape([1, -1]), ov.Type.i64), (ov.PartialShape([-1]), ov.Type.i64), (ov.PartialShape([-1]), ov.Type.i64)]
    shapes += [(ov.PartialShape([-1, s.kv_heads, -1, s.head_dim]), ov.Type.f32)] * len(past)
    with torch.no_grad():
        model = ov.convert_model(Flat(), example_input=example, input=shapes)
    pairs = {}
    for port, name in zip(model.inputs, ("ids", "positions", "beam_idx", *(f"past.{i}" for i in range(len(past))))):
        port.get_tensor().set_names({name})
    for i, port in enumerate(model.outputs):
        port.get_tensor().set_names({"logits" if i == 0 else f"present.{i - 1}"})
        if i > 0:
            pairs[f"past.{i - 1}"] = f"present.{i - 1}"
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, pairs)
    return model


def llm_matrices():
    s = LlmShape
    layer = {"attn_q": (s.d, s.d), "attn_k": (s.kv_heads * s.head_dim, s.d), "attn_v": (s.kv_heads * s.head_dim, s.d),
             "attn_output": (s.d, s.d), "ffn_gate": (s.d_ff, s.d), "ffn_up": (s.d_ff, s.d), "ffn_down": (s.d, s.d_ff)}
    return layer, {"token_embd": (s.vocab, s.d), "output": (s.vocab, s.d)}


def make_gguf(path, what, weights):
    """All matrices in one format, the head included. Layers repeat the values of the first."""
    import gguf
    import numpy as np
    s = LlmShape
    kind = {"bf16": gguf.GGMLQuantizationType.BF16, "q8": gguf.GGMLQuantizationType.Q8_0, "q4": gguf.GGMLQuantizationType.Q4_0}[weights]
    out = gguf.GGUFWriter(path / "model.gguf", "llama")
    out.add_context_length(2048)
    out.add_embedding_length(s.d)
    out.add_block_count(s.layers)
    out.add_feed_forward_length(s.d_ff)
    out.add_head_count(s.heads)
    out.add_head_count_kv(s.kv_heads)
    out.add_layer_norm_rms_eps(s.eps)
    out.add_rope_dimension_count(s.head_dim)
    out.add_rope_freq_base(s.theta)
    out.add_vocab_size(s.vocab)
    out.add_tokenizer_model("no_vocab")
    random = np.random.default_rng(0)

    def matrix(shape):
        return gguf.quants.quantize(random.normal(0, 0.02, shape).astype(np.float32), kind)

    layer, ends = llm_matrices()
    for name, shape in ends.items():
        out.add_tensor(f"{name}.weight", matrix(shape), raw_dtype=kind)
    out.add_tensor("output_norm.weight", np.ones(s.d, np.float32))
    values = {name: matrix(shape) for name, shape in layer.items()}
    for i in range(s.layers):
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{i}.{name}.weight", np.ones(s.d, np.float32))
        for name, value in values.items():
            out.add_tensor(f"blk.{i}.{name}.weight", value, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def make_ct2(path, what, weights):
    import numpy as np
    from ctranslate2.specs import Activation, TransformerDecoderModelSpec
    s = LlmShape
    spec = TransformerDecoderModelSpec.from_config(
        num_layers=s.layers, num_heads=s.heads, pre_norm=True, activation=Activation.SWISH, ffn_glu=True, rms_norm=True,
        rotary_dim=0, rotary_interleave=False, rotary_base=s.theta, num_heads_kv=s.kv_heads)
    random = np.random.default_rng(0)
    layer, ends = llm_matrices()
    value = {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in {**layer, **ends}.items()}
    ones = np.ones(s.d, np.float32)
    to = spec.decoder
    to.scale_embeddings = False
    to.embeddings.weight, to.projection.weight, to.layer_norm.gamma = value["token_embd"], value["output"], ones
    for block in to.layer:
        block.self_attention.layer_norm.gamma = block.ffn.layer_norm.gamma = ones
        block.self_attention.linear[0].weight = np.concatenate([value["attn_q"], value["attn_k"], value["attn_v"]])
        block.self_attention.linear[1].weight = value["attn_output"]
        block.ffn.linear_0.weight, block.ffn.linear_0_noact.weight = value["ffn_gate"], value["ffn_up"]
        block.ffn.linear_1.weight = value["ffn_down"]
    spec.register_vocabulary([f"t{i}" for i in range(s.vocab)])
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "t1", "t2", "t0"
    spec.validate()
    spec.optimize(quantization="int8")
    spec.save(str(path))


def make(folder, name):
    """Makes one of them in folder/name, unless it is there."""
    path = pathlib.Path(folder) / name
    if path.is_dir():
        return
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    what_weights, form = name.rsplit(".", 1)
    what, weights = what_weights.rsplit(".", 1)
    {"reference": make_reference, "onnx": make_onnx, "ir": make_ir, "gguf": make_gguf, "ct2": make_ct2}[form](part, what, weights)
    os.rename(part, path)


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        make(sys.argv[1], wanted)
