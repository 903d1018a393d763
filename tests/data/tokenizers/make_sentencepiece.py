#!/usr/bin/env python3
"""Trains small SentencePiece models with what published ones lack, and records the library's ids: writes
sentencepiece.json beside itself. Needs sentencepiece 0.2, protobuf and transformers.

    python3 make_sentencepiece.py
"""
import base64
import io
import json
import pathlib
import random

import sentencepiece
from transformers.convert_slow_tokenizer import import_protobuf

import make_tokenizers

proto = import_protobuf()  # the copy in transformers asks for no particular protobuf
HERE = pathlib.Path(__file__).parent
NORMAL, UNUSED = 1, 5


def train(rng, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_tokenizers.corpus(rng, 400)), model_writer=model, model_type="bpe", hard_vocab_limit=False,
        normalization_rule_name="identity", minloglevel=2, **options)
    parsed = proto.ModelProto()
    parsed.ParseFromString(model.getvalue())
    parsed.normalizer_spec.ClearField("normalization_rule_tsv")
    parsed.trainer_spec.ClearField("input")
    return parsed


def build(rng):
    plain = {"vocab_size": 400, "byte_fallback": True, "remove_extra_whitespaces": False}
    yield "user-defined", train(rng, user_defined_symbols=["<img>", "\u2581\u2581", "ob", "obo", "\u732b"], **plain)
    yield "no-byte-fallback", train(rng, vocab_size=150, character_coverage=0.98, remove_extra_whitespaces=True)
    yield "no-prefix", train(rng, add_dummy_prefix=False, **plain)
    yield "words-run-together", train(rng, split_by_whitespace=False, **plain)

    unused = train(rng, **plain)
    for piece in unused.pieces:
        if piece.type == NORMAL and len(piece.piece) > 1 and rng.random() < 0.4:
            piece.type = UNUSED
    yield "unused", unused

    for fallback in (True, False):
        gaps = train(rng, **(plain if fallback else {"vocab_size": 150, "remove_extra_whitespaces": False}))
        kept = [p for p in gaps.pieces if not (p.type == NORMAL and len(p.piece) == 1 and rng.random() < 0.4)]
        del gaps.pieces[:]
        gaps.pieces.extend(kept)
        yield f"missing-characters-{'bytes' if fallback else 'unknown'}", gaps

    ties = train(rng, **plain)
    for piece in ties.pieces:
        if piece.type == NORMAL and len(piece.piece) > 1:
            piece.score = -float(rng.randrange(0, 4))
    yield "equal-scores", ties


def main():
    rng = random.Random(5)
    out = {"made_with": "sentencepiece " + sentencepiece.__version__, "models": []}
    for name, parsed in build(rng):
        data = parsed.SerializeToString()
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        # Neither library nor files give U+0000 a meaning: SentencePiece's C strings end there.
        texts = ["", " ", "  ", " \u2581 ", "x\u2581\u2581 ", "the robot  picks up", "aaaaaaaa", "ob obo oboob"] + [
            make_tokenizers.random_text(rng, ["<img>", "ob", "obo", "rob", "\u03a9\u03a9"]).replace("\u0000", "x") for _ in range(60)]
        out["models"].append({"name": name, "model": base64.b64encode(data).decode(), "encode": [[t, processor.encode(t)] for t in texts]})
    path = HERE / "sentencepiece.json"
    path.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(path.stat().st_size, "bytes,", len(out["models"]), "models")


if __name__ == "__main__":
    main()
