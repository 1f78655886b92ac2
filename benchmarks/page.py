"""From the key to the painted results: the page in a real Chromium over a served store.

    python benchmarks/page.py STORE [--cores 0,1] [--queries 60] [--columns dense,bm25] [--json FILE]

Server and browser share the cores. Queries are words of random titles, each asked once, so that no cache of
queries helps. The time counts from the press of Enter until the frame after the results were drawn.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from load import server
from playwright.sync_api import Page, sync_playwright

LIMIT_MS = 300
WATCH = """
window.painted = [];
let pressed = 0;
addEventListener("keydown", (event) => { if (event.key === "Enter") pressed = performance.now(); }, true);
addEventListener("DOMContentLoaded", () => {
  new MutationObserver(() => requestAnimationFrame(() => setTimeout(() => {
    const asked = Number(document.getElementById("summary").dataset.ms);
    window.painted.push([performance.now() - pressed, asked]);
  }))).observe(document.getElementById("summary"), { attributes: true, attributeFilter: ["data-ms"] });
});
"""


def queries_of(store: Path, bundle_id: str, count: int, seed: int = 0) -> list[str]:
    """Return queries of two to four words, each taken from one title."""
    titles = pd.read_parquet(store / "bundles" / bundle_id / "documents.parquet", columns=["title"])["title"]
    draw = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        words = re.findall(r"\w+", titles.iloc[draw.randrange(len(titles))])
        query = " ".join(draw.sample(words, min(len(words), draw.randint(2, 4))))
        if query and query not in found:
            found.append(query)
    return found


def measure(page: Page, queries: list[str]) -> list[tuple[float, float]]:
    """Ask each query by the keyboard; return (ms to the painted results, ms of the requests) of each."""
    for place, query in enumerate(queries):
        page.evaluate("document.getElementById('query').value = ''")
        page.focus("#query")
        page.evaluate("query => { document.getElementById('query').value = query; }", query)
        page.keyboard.press("Enter")
        page.wait_for_function("count => window.painted.length > count", arg=place, timeout=30_000)
    return [(float(total), float(asked)) for total, asked in page.evaluate("window.painted")]


def main() -> None:
    """Measure and print, and write where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--columns", default="dense,bm25")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    bundle_id = json.loads((options.store / "champion.json").read_text(encoding="utf-8"))["bundle_id"]
    queries = queries_of(options.store, bundle_id, options.queries + 5)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with server(options.store, cores=options.cores) as (_, port), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.add_init_script(WATCH)
        columns = "&".join(f"c={column}" for column in options.columns.split(","))
        page.goto(f"http://127.0.0.1:{port}/?{columns}")
        page.wait_for_selector("#query:enabled", timeout=600_000)
        times = np.array(measure(page, queries)[5:])  # the first ones warm both up
        documents = page.evaluate("fetch('v1/bundle').then(r => r.json()).then(b => b.documents)")
        browser.close()
    print(json.dumps(figures := described(times, documents, options), indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def described(times: np.ndarray, documents: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures with what they were measured on."""
    painted, asked = times[:, 0], times[:, 1]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, cores {options.cores} of {os.cpu_count()}",
        "documents": documents,
        "columns": options.columns.split(","),
        "queries": len(times),
        "painted_ms": {f"p{q}": round(float(np.percentile(painted, q)), 1) for q in (50, 95, 100)},
        "requests_ms": {f"p{q}": round(float(np.percentile(asked, q)), 1) for q in (50, 95, 100)},
        "limit_ms": LIMIT_MS,
        "met": bool(np.percentile(painted, 95) <= LIMIT_MS),
    }


if __name__ == "__main__":
    main()
