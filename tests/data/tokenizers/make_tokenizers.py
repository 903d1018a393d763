#!/usr/bin/env python3
"""Trains small vocabularies of the kinds that no published file in the tests covers, and records what the reference
answers: writes cases.json beside itself. Needs tokenizers 0.19.1 and transformers 4.40.1.

    python3 make_tokenizers.py
"""
import json
import pathlib
import random
import tempfile

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

assert tokenizers.__version__ == "0.19.1" and transformers.__version__ == "4.40.1"
HERE = pathlib.Path(__file__).parent

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

SUBJECTS = ["the robot", "a small cat", "The picture", "she", "We", "it", "the user's hand", "stra\u00dfe", "\u043a\u043e\u0448\u043a\u0430"]
VERBS = ["isn't", "picks up", "looks at", "they're under", "I'll move", "has 12", "sees 345", "won't drop", "\u0444\u044b\u0432"]
OBJECTS = ["the red block.", "two cups, 1024 plates", "nothing!", "caf\u00e9 (left)", "\u732b\u3068\u72ac", "x = y + 1;", "  spaces", "it's"]


def corpus(rng, n):
    return [" ".join(rng.choice(part) for part in (SUBJECTS, VERBS, OBJECTS)) + rng.choice(["", "\n", " \n\n", "\t"]) for _ in range(n)]


# Characters that the rules treat apart: kinds of white space, letters, numbers, marks, and what looks like them.
ALPHABET = [" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "'", "'s", "'S", "'ll", "'RE", "'\u017f", "n't", "a", "b", "the", "robot", "Z", "1",
            "23", "4567", "\u2581", ".", ",", "!", "?", "-", "_", "(", "\u00e9", "e\u0301", "\u00df", "\u1e9e", "\u212b", "\u0344", "\uac00",
            "\u1100\u1161", "\u732b", "\u0e01\u0e33", "\u00bd", "\u0663", "\u216b", "\u2460", "\U0001f601", "\U0001f468\u200d\U0001f469",
            "\u00a0", "\u1680", "\u2003", "\u2028", "\u3000", "\u200b", "\ufeff", "\u0085", "\u0000", "\u001c", "\u093f", "\u0903", "\u24b6"]


def random_text(rng, extra=()):
    return "".join(rng.choice(ALPHABET + list(extra)) for _ in range(rng.randrange(0, 14)))


def train(model, rng, size, alphabet=None, pre_tokenizer=None, normalizer=None, special=()):
    tokenizer = Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    options = {"initial_alphabet": alphabet} if alphabet else {}
    tokenizer.train_from_iterator(corpus(rng, 400), trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False, **options))
    return tokenizer


def byte_level(rng, pattern, normalizer=None, add_prefix_space=False, digits=None, **kwargs):
    steps = []
    if digits is not None:
        steps.append(pre_tokenizers.Digits(individual_digits=digits))
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=not pattern))
    tokenizer = train(models.BPE(**kwargs), rng, 330, pre_tokenizers.ByteLevel.alphabet(), pre_tokenizers.Sequence(steps), normalizer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def build(rng):
    """Name -> tokenizer, and texts to mix into the random ones."""
    qwen2 = byte_level(rng, QWEN2, normalizers.NFC())
    qwen2.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    yield "qwen2", qwen2, ["<|im_start|>", "<|im_end|>"]

    llama3 = byte_level(rng, LLAMA3)
    state = json.loads(llama3.to_str())
    state["model"]["ignore_merges"] = True
    whole = "".join(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(" robots")[0][0])
    state["model"]["vocab"][whole] = len(state["model"]["vocab"])  # reached only when merges are ignored
    llama3 = Tokenizer.from_str(json.dumps(state))
    llama3.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B",
                                      special_tokens=[("<|begin_of_text|>", llama3.token_to_id("<|begin_of_text|>"))])])
    yield "llama3", llama3, [" robots", "<|eot_id|>"]

    gpt2 = byte_level(rng, None, add_prefix_space=True)
    gpt2.add_special_tokens(["<|endoftext|>"])
    gpt2.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, 6)] + [AddedToken("\t\t", normalized=True)])
    yield "gpt2-prefix-and-spaces", gpt2, ["     ", "\t\t", "<|endoftext|>"]

    yield "digits-one-by-one", byte_level(rng, None, digits=True), ["123"]
    yield "digits-in-runs", byte_level(rng, GPT2, digits=False), ["123", " 45"]
    yield "nfkc", byte_level(rng, GPT2, normalizers.NFKC()), ["\ufb01", "\u2075", "\uff21"]

    for scheme in ("always", "first", "never"):
        for split in (True, False):
            metaspace = train(models.BPE(unk_token="<unk>", fuse_unk=split, byte_fallback=not split), rng, 300, None,
                              pre_tokenizers.Metaspace("\u2581", prepend_scheme=scheme, split=split), None,
                              ["<unk>", "<s>", "</s>"] + ([] if split else [f"<0x{b:02X}>" for b in range(256)]))
            if not split:  # the bytes are ordinary tokens of the model
                state = json.loads(metaspace.to_str())
                state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
                metaspace = Tokenizer.from_str(json.dumps(state))
            metaspace.decoder = decoders.Metaspace("\u2581", prepend_scheme=scheme) if split else decoders.Sequence(
                [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
            metaspace.post_processor = processors.TemplateProcessing(
                single="<s> $A </s>", pair="<s> $A $B", special_tokens=[("<s>", 1), ("</s>", 2)])
            yield f"metaspace-{scheme}-{'split' if split else 'whole'}", metaspace, ["</s>", " </s> ", "\u03a9"]

    # Llama's oldest tokenizer.json, whose control tokens are looked for after normalisation; and every flag.
    flags = train(models.BPE(unk_token="<unk>"), rng, 260, None, None,
                  normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]), ["<unk>"])
    flags.add_special_tokens([AddedToken("</s>", normalized=True), AddedToken("<l>", lstrip=True, normalized=False),
                              AddedToken("<r>", rstrip=True, normalized=False)])
    flags.add_tokens([AddedToken("cat", single_word=True, normalized=False), AddedToken("<lr>", lstrip=True, rstrip=True, normalized=False),
                      AddedToken("a robot", normalized=True), AddedToken("<r>x", normalized=False)])
    flags.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 2)])
    yield "flags", flags, ["</s>", " </s>", "<l>", "<r>", "<lr>", "cat", " cat ", "a robot", " a robot", "<r>x", "cat\u0301", "cat\u24b6"]

    # Old files cannot write merges of tokens with a space in them, hence the underscore.
    bare = train(models.BPE(), rng, 200, None, pre_tokenizers.Split("the", behavior="isolated"), normalizers.Replace(" ", "_"))
    yield "no-decoder", bare, ["the", "thethe"]


def cases(tokenizer, rng, extra):
    n = tokenizer.get_vocab_size()
    texts = ["", " ", "Hello world", "the robot isn't here"] + [random_text(rng, extra) for _ in range(60)]
    rows = [[text, tokenizer.encode(text).ids, tokenizer.encode(text, add_special_tokens=False).ids] for text in texts]
    tokenizer.encode_special_tokens = True
    for row in rows:
        row.append(tokenizer.encode(row[0], add_special_tokens=False).ids)
        if row[3] == row[2]:
            row.pop()
    tokenizer.encode_special_tokens = False
    decode = []
    for _ in range(25):
        ids = [rng.randrange(0, n + 3) for _ in range(rng.randrange(0, 12))]
        decode.append([ids, tokenizer.decode(ids, skip_special_tokens=False), tokenizer.decode(ids)])
    return {"encode": rows, "decode": decode, "size": n}


def clean_up_cases(rng):
    parts = [" ", " ", "'", ".", "?", "!", ",", "n", "t", "m", "s", "v", "r", "e", "'s", " n't", " 've", "word", "\u00e9"]
    texts = ["".join(rng.choice(parts) for _ in range(rng.randrange(1, 16))) for _ in range(200)]
    clean = transformers.PreTrainedTokenizerBase.clean_up_tokenization
    return [[text, clean(text)] for text in texts]


def lower_cases():
    texts = ["Pick Up The MUG", "\u0130stanbul", "\u039f\u0394\u039f\u03a3 \u03a3\u0391\u03a3", "\u03a3", "a\u03a3.", "A\u03a3\u0301b", "\u1e9e",
             "\u00c9T\u00c9", "\u01c5", "\U00010400", "\u212a", "A.\u03a3", "a\u03a3'b", "\u24b6\u03a3"]
    return [[text, text.lower()] for text in texts]


def main():
    rng = random.Random(7)
    out = {"made_with": "tokenizers 0.19.1, transformers 4.40.1", "tokenizers": []}
    for name, tokenizer, extra in build(rng):
        row = {"name": name, "file": json.loads(tokenizer.to_str())}
        # As with every tokenizer that is used: written, and read again.
        row.update(cases(Tokenizer.from_str(tokenizer.to_str()), rng, extra))
        out["tokenizers"].append(row)
    out["clean_up"] = clean_up_cases(rng)
    out["lower"] = lower_cases()
    path = HERE / "cases.json"
    path.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(path.stat().st_size, "bytes,", len(out["tokenizers"]), "tokenizers")


if __name__ == "__main__":
    main()
