"""Prints what the logs of benchmarks/cuda/run say, as Markdown, and writes results.json: table.py LOGS FOLDER"""
import json
import pathlib
import sys


def lines(path):
    """The JSON objects of cases, a line each. A log may hold anything else, and half a line where it was cut off."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            value = json.loads(line.lstrip("[,"))
        except ValueError:
            continue
        if isinstance(value, dict) and "case" in value:
            yield value


def rows(result):
    """(case, ms, share of the limit, whether PyTorch does the same)"""
    seconds, share = result["seconds"], result["fraction_of_peak"]
    if "from_pixels" not in seconds:
        return [(result["case"], 1e3 * seconds["median"], share, True)]
    # PyTorch starts where the pixels are on the device.
    whole, rest = seconds["median"], seconds["from_pixels"]
    return [(result["case"] + ", from pixels", 1e3 * rest, share * whole / rest, True),
            (result["case"] + ", from a picture of 640 x 480", 1e3 * whole, share, False)]


def main(logs, folder):
    gpu = (logs / "gpu.csv").read_text() if (logs / "gpu.csv").exists() else ""
    parts = [line.split("\t") for line in (logs / "parts.tsv").read_text().splitlines()] if (logs / "parts.tsv").exists() else []
    ours = [r for pattern in ("prism-*.log", "tiles-*.log") for path in sorted(logs.glob(pattern)) for r in lines(path) if "seconds" in r]
    peers = {r["case"]: r for r in lines(logs / "torch.log")}  # of several lines of a case the last has all ways so far
    (folder / "results.json").write_text(json.dumps({"gpu": gpu, "parts": parts, "prism": ours, "torch": peers}, indent=1))

    print(gpu)
    bad = [name for name, result, _ in parts if result != "ok" and not result.startswith("not here")]
    if bad:
        print(f"Not done, so figures are missing or may be of wrong results: {', '.join(bad)}.\n")
    print("| part | | s |\n|---|---|---|")
    for name, result, seconds in parts:
        print(f"| {name} | {result} | {seconds} |")
    for log in sorted(logs.glob("tests*.log")):
        print("".join(f"\n{log.stem}: {line}" for line in log.read_text(errors="replace").splitlines() if line.startswith("[doctest] test cases:")))
    print("\n| case | weights | prism, median ms | share of the limit | PyTorch bf16, median ms (fastest way) | PyTorch / prism |\n|---|---|---|---|---|---|")
    for r in ours:
        own = " without cuBLASLt" if r.get("gpu", {}).get("cublaslt") == "0.0.0" else ""
        ways = peers.get(r["case"], {})
        times = {w: v["median"] * 1e3 for w, v in ways.items() if isinstance(v, dict) and "median" in v}
        for case, ms, share, comparable in rows(r):
            way = min(times, key=times.get) if times and comparable else None
            peer = f"{times[way]:.2f} ({way}) | {times[way] / ms:.2f}" if way else " | "
            print(f"| {case} | {r['weights']}{own} | {ms:.2f} | {100 * share:.0f} % | {peer} |")
    failed = [f"{case}, {way}: {v['failed']}" for case, ways in peers.items() for way, v in ways.items() if isinstance(v, dict) and "failed" in v]
    if failed:
        print("\nPyTorch's ways that failed:\n" + "\n".join(f"- {line}" for line in failed))


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
