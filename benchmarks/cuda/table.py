"""Prints one Markdown table of what benchmarks/cuda/run has left in a folder, and writes results.json there."""
import json
import pathlib
import sys


def lines(path):
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith(("{", "[")):
            yield from (lambda v: v if isinstance(v, list) else [v])(json.loads(line))


def main(folder):
    ours = [r for path in sorted(folder.glob("prism-*.log")) for r in lines(path)]
    peers = {r["case"]: r for r in lines(folder / "torch.log")}
    (folder / "results.json").write_text(json.dumps({"prism": ours, "torch": peers, "gpu": (folder / "gpu.csv").read_text()}, indent=1))
    print((folder / "gpu.csv").read_text())
    print("| case | weights | prism, median ms | share of the limit | PyTorch bf16, median ms (fastest way) | PyTorch / prism |\n|---|---|---|---|---|---|")
    for r in ours:
        ms, ways = 1e3 * r["seconds"]["median"], peers.get(r["case"], {})
        times = {w: v["median"] * 1e3 for w, v in ways.items() if isinstance(v, dict) and "median" in v}
        way = min(times, key=times.get) if times else None
        peer = f"{times[way]:.2f} ({way}) | {times[way] / ms:.2f}" if way else " | "
        print(f"| {r['case']} | {r['weights']} | {ms:.2f} | {100 * r['fraction_of_peak']:.0f} % | {peer} |")


main(pathlib.Path(sys.argv[1]))
