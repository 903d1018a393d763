"""The Markdown table, and the facts below it."""
import datetime
import statistics

import rows

ALLOWED = {"f32": 1e-3, "bf16": 0.06, "q8": 0.15, "q4": 1.2}  # difference from torch's f32 that format and depth explain


def ms(seconds):
    value = 1000 * seconds
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def spread(values):
    return f"{ms(statistics.median(values))} [{ms(min(values))}-{ms(max(values))}]"


def prism_medians(row):
    return [s["seconds"]["median"] for s in row["prism"] if s]


def peer_medians(peer):
    return [statistics.median(s["seconds"]) for s in peer.get("samples", [])]


def table(results):
    """One line for each row; a peer's cell ends in its time divided by prism's, the last column names the best peer."""
    names = [n for n in rows.PEERS if any(n in r["peers"] for r in results["rows"])]
    lines = ["| work | weights | threads | prism ms | " + " | ".join(f"{rows.PEERS[n].column} ms (ratio)" for n in names) + " | best peer / prism |",
             "|---" * (5 + len(names)) + "|"]
    notes = []
    for row in results["rows"]:
        ours, cells, best = prism_medians(row), [], None
        where = f"{row['work']}, {row['weights']}, {row['threads']} threads"
        if row.get("prism_failed"):
            notes.append(f"prism, {where}: {row['prism_failed']}")
        for n in names:
            peer = row["peers"].get(n)
            theirs = peer_medians(peer) if peer else []
            if peer and peer.get("failed"):
                notes.append(f"{rows.PEERS[n].column}, {where}: {peer['failed']}")
            if not theirs:
                cells.append("failed" if peer else "-")
                continue
            error = peer["facts"].get("difference", 0)
            if error > ALLOWED[row["weights"]]:
                notes.append(f"{rows.PEERS[n].column}, {where}: differs from torch's f32 by {error:.2g} of its root mean square")
            ratio = statistics.median(theirs) / statistics.median(ours) if ours else None
            cells.append(spread(theirs) + (f" ({ratio:.2f})" if ours else ""))
            if ours and (best is None or ratio < best[0]):
                best = ratio, rows.PEERS[n].column
        lines.append(f"| {row['work']} | {row['weights']} | {row['threads']} | {spread(ours) if ours else 'failed'} | " + " | ".join(cells) +
                     f" | {f'{best[0]:.2f} {best[1]}' if best else '-'} |")
    return "\n".join(lines), notes


def facts(results):
    m, o = results["machine"], results["options"]
    samples = [s for r in results["rows"] for p in r["peers"].values() for s in p.get("samples", [])]
    busy = sum(s["busy"] > 0.05 for s in samples)
    dates = sorted({r["date"] for r in results["rows"]})
    lines = [
        f"Median [smallest-largest] of {o['rounds']} rounds, each the median of {o['runs']} runs after one that is not timed; prism runs "
        "directly before every peer, so it has a sample for each. A ratio over 1 means that prism is faster.",
        f"Machine: {m['model']}, {m['cores']} cores, {m['memory']}, caches {m['caches']}; {' '.join(m['flags'])}; {m['system']}.",
        f"{m['prism']}; this script at commit {m['commit']}.",
        "Peers: " + ", ".join(f"{k} {v}" for k, v in sorted(results["versions"].items())) + f"; Python {m['python']}.",
        f"Date: {' to '.join(sorted({dates[0], dates[-1]})) if dates else datetime.date.today()}.",
        f"Before {busy} of {len(samples)} pairs of samples something else used more than 5 % of the processors."
        + (" Measure again when the machine is quiet." if busy else ""),
    ]
    if any(r.get("compute") is None and r["weights"] == "bf16" for r in results["rows"]):
        lines.append("prism computed products with bf16 weights in f32 (its bench has no --compute); peers in bf16.")
    return lines


def markdown(results):
    text, notes = table(results)
    missing = [f"{rows.PEERS[n].column}: {why}" for n, why in results.get("failed", {}).items()]
    return "\n".join([text, ""] + ["- " + line for line in facts(results) + missing + list(dict.fromkeys(notes))])
