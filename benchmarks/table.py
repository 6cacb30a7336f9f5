"""Prints a file of results as a table in Markdown: python -m benchmarks.table benchmarks/results/training-cpu.json."""

import json
import sys
from pathlib import Path


def table(found: dict) -> str:
    named = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    lines = [
        f"{found['machine']}; {named}.",
        "",
        "| workload | contender | ratio (smallest, largest) | share of limit | bound |",
    ]
    lines.append("| --- | --- | --- | --- | --- |")
    for row in found["results"]:
        precision = "" if row["precision"] == "float32" else f", {row['precision']}"
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f}, {row['ratio_max']:.2f})"
        share = f"{row['share_of_limit']:.0%}" if "share_of_limit" in row else ""
        bounds = row.get("final_bounds") or []
        bound = f"{row['final_bound']:.2f}" if row.get("final_bound") is not None else ""
        if len(bounds) > 1:
            bound += f" ({min(bounds):.2f} to {max(bounds):.2f})"
        lines.append(f"| {row['workload']} | {row['contender']}{precision} | {ratio} | {share} | {bound} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(table(json.loads(Path(path).read_text())), end="\n\n")
