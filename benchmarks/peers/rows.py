"""What is compared: works, weight types, threads, and who takes part in which row. Plain data, no packages needed."""
from dataclasses import dataclass

TOWERS = ("dinov2-vit-l", "siglip-vit-so400m", "clip-vit-l-336px")  # prism's ids
LLM = "tinyllama-1.1b"
MATMUL = "288x4096x11008"
PROMPT = 288   # tokens of a prefill: 256 of a picture and 32 of text
CONTEXT = 300  # tokens in the cache when a decode step begins
TOKENS = [i * 7919 % 32000 for i in range(CONTEXT + 1)]


@dataclass(frozen=True)
class Row:
    kind: str     # vision, prefill, decode, matmul
    what: str     # a tower, a language model, m x k x n
    weights: str  # f32, bf16, q8, q4: prism's names
    threads: int

    @property
    def work(self):
        return f"{self.kind}/{self.what}"  # prism's name of the case


@dataclass(frozen=True)
class Peer:
    name: str
    column: str
    packages: tuple
    takes: dict  # kind -> weight types


PEERS = {p.name: p for p in (
    Peer("openvino", "OpenVINO", ("openvino", "nncf", "torch", "timm"),
         {"vision": "f32 bf16 q8", "prefill": "bf16 q8 q4", "decode": "bf16 q8 q4"}),
    Peer("onnxruntime", "onnxruntime", ("onnxruntime", "onnx", "onnxscript", "torch", "timm"), {"vision": "f32"}),
    Peer("torch", "torch eager", ("torch", "timm"),
         {"vision": "f32 bf16", "prefill": "bf16", "decode": "bf16", "matmul": "f32 bf16 q8"}),
    Peer("onednn", "oneDNN packed", ("torch",), {"matmul": "f32 bf16 q8"}),
    Peer("llamacpp", "llama.cpp", ("llama-cpp-python", "gguf"), {"prefill": "bf16 q8 q4", "decode": "bf16 q8 q4"}),
    Peer("ctranslate2", "CTranslate2", ("ctranslate2",), {"prefill": "q8"}),
)}


def rows(works, weights, threads):
    """All rows, those chosen: works are prefixes of a case's name; an empty choice is everything."""
    kinds = [("vision", t, "f32 bf16 q8") for t in TOWERS]
    kinds += [("prefill", LLM, "bf16 q8 q4"), ("decode", LLM, "bf16 q8 q4"), ("matmul", MATMUL, "f32 bf16 q8")]
    every = [Row(kind, what, w, t) for kind, what, types in kinds for w in types.split() for t in threads]
    return [r for r in every if (not works or any(r.work.startswith(w) for w in works)) and (not weights or r.weights in weights)]


def takes_part(peer, row):
    return row.weights in peer.takes.get(row.kind, "").split()


def model_of(peer, row):
    """The model on disk that a peer reads for a row (see models.py), or nothing where it is made in memory."""
    form = {"onnxruntime": "onnx", "openvino": "ir", "llamacpp": "gguf", "ctranslate2": "ct2"}.get(peer.name)
    stored = "f32" if row.kind == "vision" and row.weights == "bf16" else row.weights  # bf16 is a setting there
    return form and f"{row.what}.{stored}.{form}"


def files_of(peer, row):
    """All that must be made before a row."""
    found = [model_of(peer, row), f"{row.what}.f32.reference" if row.kind != "matmul" and "torch" in peer.packages else None]
    return [f for f in found if f]
