"""One peer, ready to be timed: a process of its own, which computes only when it is told to.

    python worker.py PEER MODELS KIND WHAT WEIGHTS THREADS

prints {"ready": {...}} when its model is loaded, then for each line N on standard input does one run that is not timed
and N that are, and prints {"seconds": [...]}. Each function below loads one peer for one row and gives a Work.
"""
import json
import os
import sys
import time

import models
import rows


class Work:
    """`run` is timed; `prepare`, before the runs of a round, is not. `facts` go to the raw results."""

    def __init__(self, run, prepare=lambda: None, **facts):
        self.run, self.prepare, self.facts = run, prepare, facts


def difference(found, expected):
    """Root mean square of the error, relative to the expected values: that a peer computes the same at all."""
    import numpy as np
    found, expected = np.asarray(found, np.float64).ravel(), np.asarray(expected, np.float64).ravel()
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected ** 2)))


# ---- vision

def reference(row, path):
    """A picture and what torch computes of it in f32."""
    import numpy as np
    folder = f"{path}/{row.what}.f32.reference"
    return np.load(folder + "/pixels.npy"), np.load(folder + "/features.npy")


def torch_vision(row, path):
    import torch
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[row.weights]
    pixels, features = reference(row, path)
    tower, x = models.tower(row.what).to(dtype), torch.from_numpy(pixels).to(dtype)

    def run():
        with torch.inference_mode():
            return tower(x)
    return Work(run, difference=difference(run().float().numpy(), features))


def openvino_model(path, row, hint):
    import openvino as ov
    core = ov.Core()
    options = {"INFERENCE_NUM_THREADS": row.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if hint:
        options["INFERENCE_PRECISION_HINT"] = hint
    model = core.compile_model(f"{path}/{rows.model_of(rows.PEERS['openvino'], row)}/model.xml", "CPU", options)
    return model, str(model.get_property("INFERENCE_PRECISION_HINT"))


def openvino_vision(row, path):
    # q8: what is not int8 runs in the precision that OpenVINO chooses itself
    model, precision = openvino_model(path, row, {"f32": "f32", "bf16": "bf16"}.get(row.weights))
    request, (x, features) = model.create_infer_request(), reference(row, path)

    def run():
        return request.infer([x], share_inputs=True, share_outputs=True)[0]
    return Work(run, difference=difference(run(), features), precision=precision)


def onnxruntime_vision(row, path):
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = row.threads, 1
    session = ort.InferenceSession(f"{path}/{row.what}.f32.onnx/model.onnx", options, providers=["CPUExecutionProvider"])
    x, features = reference(row, path)
    feed = {session.get_inputs()[0].name: x}

    def run():
        return session.run(None, feed)[0]
    return Work(run, difference=difference(run(), features))


# ---- decoders: a prefill of PROMPT tokens with the scores of the last, or one more token after CONTEXT

def logits_work(row, path, run, prepare, **facts):
    import numpy as np
    prepare()
    return Work(run, prepare, difference=difference(run(), np.load(f"{path}/{row.what}.f32.reference/{row.kind}.npy")), **facts)


def torch_llm(row, path):
    import torch
    llm, cache = models.decoder(torch.bfloat16), [None]

    def forward(ids, cache):
        with torch.inference_mode():
            return llm(torch.tensor([ids]), cache)

    def prepare():
        if row.kind == "decode":
            cache[0] = forward(rows.TOKENS[:rows.CONTEXT], None)[1]

    def run():  # a decode step makes a longer cache and leaves its own as it was
        if row.kind == "prefill":
            return forward(rows.TOKENS[:rows.PROMPT], None)[0].float()
        return forward(rows.TOKENS[rows.CONTEXT:], cache[0])[0].float()
    return logits_work(row, path, run, prepare)


def openvino_llm(row, path):
    import numpy as np
    model, precision = openvino_model(path, row, "bf16" if row.weights == "bf16" else None)
    request, seen, beam = model.create_infer_request(), [0], np.array([0])

    def forward(ids):
        positions = np.arange(seen[0], seen[0] + len(ids))
        seen[0] += len(ids)
        return request.infer({"ids": np.array([ids]), "positions": positions, "beam_idx": beam}, share_outputs=True)[0]

    def reset():
        request.reset_state()
        seen[0] = 0

    def prepare():
        reset()
        if row.kind == "decode":
            forward(rows.TOKENS[:rows.CONTEXT])

    def run():  # decode: the cache grows by a token with every run of a round
        if row.kind == "prefill":
            reset()
            return forward(rows.TOKENS[:rows.PROMPT])
        return forward(rows.TOKENS[rows.CONTEXT:])
    return logits_work(row, path, run, prepare, precision=precision)


def llamacpp_llm(row, path):
    import ctypes
    import llama_cpp as ll
    ll.llama_backend_init()
    model_options, options = ll.llama_model_default_params(), ll.llama_context_default_params()
    model = ll.llama_model_load_from_file(f"{path}/{row.what}.{row.weights}.gguf/model.gguf".encode(), model_options)
    options.n_ctx = options.n_batch = options.n_ubatch = 512
    options.n_threads = options.n_threads_batch = row.threads
    context = ll.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError("llama.cpp does not take the model")
    memory = ll.llama_get_memory(context)

    def forward(ids):
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        if ll.llama_decode(context, ll.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        return ll.llama_get_logits_ith(context, -1)[0]  # waits

    def prepare():
        ll.llama_memory_clear(memory, True)
        if row.kind == "decode":
            forward(rows.TOKENS[:rows.CONTEXT])

    def run():
        before = 0 if row.kind == "prefill" else rows.CONTEXT
        ll.llama_memory_seq_rm(memory, 0, before, -1)
        return forward(rows.TOKENS[:rows.PROMPT] if row.kind == "prefill" else rows.TOKENS[rows.CONTEXT:])
    return Work(run, prepare, system=ll.llama_print_system_info().decode(), keep=(model, context))


def ctranslate2_llm(row, path):
    import ctranslate2
    llm = ctranslate2.Generator(f"{path}/{row.what}.q8.ct2", device="cpu", compute_type="int8", intra_threads=row.threads, inter_threads=1)
    prompt = [[f"t{i}" for i in rows.TOKENS[:rows.PROMPT]]]

    def run():  # a prompt of all but the last token, then a step with it
        return llm.generate_batch(prompt, max_length=1, min_length=1, include_prompt_in_result=False)
    return Work(run)


# ---- one product, weights [n, k] laid out beforehand where the peer can

def operands(row):
    import torch
    m, k, n = map(int, row.what.split("x"))
    torch.manual_seed(0)
    if row.weights == "q8":  # a peer's activations are int8 already; prism's are f32
        return torch.randint(-127, 128, (m, k), dtype=torch.int8), torch.randint(-127, 128, (n, k), dtype=torch.int8)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[row.weights]
    return torch.randn(m, k).to(dtype), torch.randn(n, k).mul_(0.02).to(dtype)


def product_of(x, w, multiply):
    import torch

    def run():
        with torch.inference_mode():
            return multiply()
    return Work(run, difference=difference(run().float().numpy(), x.float().numpy() @ w.float().numpy().T))


def torch_matmul(row, _):
    import torch
    x, w = operands(row)
    return product_of(x, w, (lambda: torch._int_mm(x, w.T)) if row.weights == "q8" else (lambda: torch.nn.functional.linear(x, w)))


def onednn_matmul(row, _):
    import torch
    x, w = operands(row)
    if row.weights == "q8":
        packed = torch.ops.onednn.qlinear_prepack(w, list(x.shape))
        scales, zeros = torch.ones(len(w)), torch.zeros(len(w), dtype=torch.int32)
        return product_of(x, w, lambda: torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""))
    packed = torch.ops.mkldnn._reorder_linear_weight(w, len(x))
    return product_of(x, w, lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))


LOADERS = {
    ("torch", "vision"): torch_vision, ("torch", "prefill"): torch_llm, ("torch", "decode"): torch_llm, ("torch", "matmul"): torch_matmul,
    ("onednn", "matmul"): onednn_matmul, ("onnxruntime", "vision"): onnxruntime_vision,
    ("openvino", "vision"): openvino_vision, ("openvino", "prefill"): openvino_llm, ("openvino", "decode"): openvino_llm,
    ("llamacpp", "prefill"): llamacpp_llm, ("llamacpp", "decode"): llamacpp_llm, ("ctranslate2", "prefill"): ctranslate2_llm,
}


def main():
    peer, path, kind, what, weights, threads = sys.argv[1:]
    row = rows.Row(kind, what, weights, int(threads))
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    try:
        if peer in ("torch", "onednn"):
            import torch
            torch.set_num_threads(row.threads)
            torch.set_num_interop_threads(1)
        work = LOADERS[peer, kind](row, path)
    except Exception as error:
        say.write(json.dumps({"failed": f"{type(error).__name__}: {error}".splitlines()[0]}) + "\n")
        raise
    say.write(json.dumps({"ready": {k: v for k, v in work.facts.items() if k != "keep"}}) + "\n")
    say.flush()
    for line in sys.stdin:
        work.prepare()
        seconds = []
        for _ in range(1 + int(line)):
            start = time.perf_counter()
            work.run()
            seconds.append(time.perf_counter() - start)
        say.write(json.dumps({"seconds": seconds[1:]}) + "\n")
        say.flush()


if __name__ == "__main__":
    main()
