#!/usr/bin/env python3
"""Copies a compact selection of a folder of reference cases, in the same layout:

    python3 tests/data/make_selection.py FOLDER tests/data/reference

Whole cases are kept, because their weights and answers belong together. A weight file that the selection holds already
(a tower stands in vision/ and in the vlm/ cases that use it) becomes a relative symbolic link. The pictures are the
exception: their one file of answers is rewritten to the entries that are kept.
"""
import argparse
import filecmp
import json
import os
import shutil
import struct
import sys
from pathlib import Path

LIMIT_BYTES = 12_000_000
LINKED_ABOVE_BYTES = 100_000

# First come, first kept; what comes later links to it. Together they run every loader, both dtypes of weights, sharded
# and single files, one and two towers, LayerScale, class and register tokens, and grouped heads with biases.
FOLDERS = [
    "formats",
    "tokenizers",
    "vision/dino",
    "vision/siglip",
    "vision/clip-gelu",
    "lm/llama-bf16-sharded",
    "lm/qwen2",
    "vlm/prism-dinosiglip+7b",
    "vlm/siglip-phi",
    "vlm/openvla-hf",
]

# The pictures have random sizes in their names, so they are chosen by what they are: (start of the name, end, how many
# of the six preprocessing cases stay). Palette, grey, plain, one pixel wide, JPEG; the RGBA picture is too large.
PICTURES = [("l-", ".png", 2), ("p-", ".png", 1), ("rgb-1x", ".png", 3), ("rgb-", ".png", 5), ("photo-", ".jpg", 3)]


def read_safetensors(path):
    """{name: (dtype, shape, bytes)}"""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    body = data[8 + size :]
    header.pop("__metadata__", None)
    return {n: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for n, t in header.items()}


def write_safetensors(path, tensors):
    header, at = {}, 0
    # Wide items first, so that every tensor starts at a multiple of its item size.
    ordered = sorted(tensors.items(), key=lambda item: (item[1][0] == "U8", item[0]))
    for name, (dtype, shape, data) in ordered:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, (_, _, data) in ordered))


def copy_folder(source, target, kept):
    """Copies every file below `source`; a large one whose bytes lie in `kept` already becomes a link to it."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        there = target / file.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        large = file.stat().st_size > LINKED_ABOVE_BYTES
        twin = next((k for k in kept if filecmp.cmp(k, file, shallow=False)), None) if large else None
        if twin:
            there.symlink_to(os.path.relpath(twin, there.parent))
            continue
        shutil.copyfile(file, there)
        if large:
            kept.append(there)


def select_pictures(source, target):
    """Keeps the smallest picture of each kind, with its pixels and its cheapest preprocessing cases."""
    target.mkdir(parents=True)
    tensors = read_safetensors(source / "expected.safetensors")
    cases = json.loads((source / "cases.json").read_text())
    kept_cases, kept_tensors, names = [], {}, []
    for start, end, count in PICTURES:
        found = [p for p in source.iterdir() if p.name.startswith(start) and p.name.endswith(end) and p.name not in names]
        if not found:
            continue
        name = min(found, key=lambda p: len(tensors[p.name + "/rgb"][2])).name
        names.append(name)
        shutil.copyfile(source / name, target / name)
        kept_tensors[name + "/rgb"] = tensors[name + "/rgb"]
        of_picture = sorted((c for c in cases if c["image"] == name), key=lambda c: c["size"])
        for case in of_picture[:count]:
            kept_cases.append(case)
            kept_tensors[case["tensor"]] = tensors[case["tensor"]]
    (target / "cases.json").write_text(json.dumps(kept_cases, indent=1) + "\n")
    write_safetensors(target / "expected.safetensors", kept_tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder that make_reference.py wrote")
    parser.add_argument("target", type=Path, help="written anew")
    args = parser.parse_args()
    if args.target.exists():
        shutil.rmtree(args.target)
    args.target.mkdir(parents=True)
    kept = []
    for folder in FOLDERS:
        copy_folder(args.source / folder, args.target / folder, kept)
    select_pictures(args.source / "images", args.target / "images")
    shutil.copyfile(args.source / "made-with.json", args.target / "made-with.json")
    total = sum(p.stat().st_size for p in args.target.rglob("*") if p.is_file() and not p.is_symlink())
    print(f"{args.target}: {total:,} bytes")
    if total > LIMIT_BYTES:
        sys.exit(f"more than {LIMIT_BYTES:,} bytes")


if __name__ == "__main__":
    main()
