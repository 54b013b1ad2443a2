"""The run's page: one static HTML file without scripts, for people. Crawled text in it is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from cluster import storage
from cluster.page import document, table

_STYLE = """
table { width: 100% } td.bar { width: 34%; min-width: 7em; padding-right: 0; white-space: nowrap; font-size: 0 }
.kept, .gone, .bad { display: inline-block; height: 13px; margin-top: 5px }
.kept { background: var(--c0) } .gone { background: var(--gone) } .bad { background: var(--c1) }
.key { width: 1em; margin: 0 .2em 0 .6em; vertical-align: -1px } pre { border-left: 3px solid var(--c0) }
"""


def write_report(out: str, record: dict[str, Any], outputs: dict[str, str]) -> None:
    """OUT/report.html from the run's record and its published ledger and documents."""
    storage.write_bytes(storage.join(out, "report.html"), page(record, outputs).encode())


def rewrite_report(run: str) -> str:
    """Write OUT/report.html anew from what a run's folder holds, wherever it was moved to. Its path."""
    record = json.loads(storage.read_bytes(storage.join(run, "run.json")))
    write_report(run, record, {name: storage.join(run, name) for name in record["outputs"]})
    return storage.join(run, "report.html")


def page(record: dict[str, Any], outputs: dict[str, str]) -> str:
    """The report of a run: funnel, stages, reasons with examples, samples of what was kept."""
    stages = record["stages"]
    title = html.escape(record.get("recipe") or "corpusmill run")
    about = f"{html.escape(record['started'])} · {record.get('seconds', 0):,.0f} s"
    parts = [
        f"<h1>{title}</h1><p class=dim>{about} · fingerprint {html.escape(record['fingerprint'][:12])}</p>",
        _funnel(stages),
        _stages(stages),
        _reasons(stages, outputs.get("ledger")),
        _mixture(stages),
        _samples(outputs.get("documents")),
        "<h2>Outputs</h2>",
        table("", [f"<tr><td>{html.escape(n)}<td><code>{html.escape(p)}</code>" for n, p in outputs.items()]),
    ]
    return document(f"{record.get('recipe') or 'corpus'} · corpusmill", "\n".join(parts), _STYLE)


def _funnel(stages: Sequence[dict[str, Any]]) -> str:
    """A bar per step: what it kept, removed and failed, as shares of what came in at the start."""
    start = max(1, stages[0]["documents_in"]) if stages else 1
    rows = []
    for stage in stages:
        for step in stage["steps"]:
            removed, failed = sum(step["removed"].values()), step["failed"]
            kept = step["in"] - removed - failed
            widths = [100 * value / start for value in (kept, removed, failed)]
            bars = "".join(
                f'<span class="{name}" style="width:{width:.2f}%"></span>'
                for name, width in zip(("kept", "gone", "bad"), widths, strict=True)
                if width
            )
            rows.append(
                f"<tr><td>{html.escape(step['name'])}<td class=n>{step['in']:,}<td class=n>{kept:,}"
                f"<td class=n>{removed:,}<td class=n>{failed:,}<td class=bar>{bars}"
            )
    legend = "".join(
        f'<span class="key {name}"></span>{text}'
        for name, text in (("kept", "kept"), ("gone", "removed"), ("bad", "failed"))
    )
    head = "<th>step<th class=n>in<th class=n>kept<th class=n>removed<th class=n>failed<th>of what came in first"
    last = stages[-1]["kept"] if stages else 0
    gone = sum(sum(stage["removed"].values()) for stage in stages)
    bad = sum(stage["failed"] for stage in stages)
    first = stages[0]["documents_in"] if stages else 0
    total = f"<p>{first:,} in = {last:,} kept + {gone:,} removed + {bad:,} failed {legend}</p>"
    return f"<h2>Funnel</h2>{total}{table(head, rows)}"


def _stages(stages: Sequence[dict[str, Any]]) -> str:
    rows = [
        f"<tr><td>{html.escape(s['folder'])}<td class=n>{s['documents_in']:,}<td class=n>{s['seconds']:,.1f}"
        f"<td class=n>{s['documents_per_s'] or 0:,.0f}<td class=n>{s['peak_memory_bytes'] / 1e6:,.0f}"
        f"<td>{'found finished' if s.get('resumed') else ''}"
        for s in stages
    ]
    head = "<th>stage<th class=n>documents<th class=n>seconds<th class=n>documents/s<th class=n>peak MB per worker<th>"
    return f"<h2>Stages</h2>{table(head, rows)}"


def _reasons(stages: Sequence[dict[str, Any]], ledger: str | None) -> str:
    """Every reason with its count and some documents that it removed."""
    examples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in storage.list_files(ledger) if ledger else ():
        with storage.open_read(item.path) as source:
            file = pq.ParquetFile(source)
            if file.num_row_groups == 0:
                continue
            for row in file.read_row_group(0).slice(0, 5000).to_pylist():
                found = examples.setdefault((row["step"], row["reason"]), [])
                if len(found) < 3:
                    found.append(row)
    counts: dict[tuple[str, str], int] = {}
    for stage in stages:
        for step in stage["steps"]:
            for reason, count in step["removed"].items():
                key = (step["name"], reason)
                counts[key] = counts.get(key, 0) + count
    rows = []
    for (step, reason), count in sorted(counts.items(), key=lambda item: -item[1]):
        shown = "<br>".join(_example(row) for row in examples.get((step, reason), []))
        rows.append(f"<tr><td>{html.escape(step)}<td>{html.escape(reason)}<td class=n>{count:,}<td>{shown}")
    if not rows:
        return ""
    head = "<th>step<th>reason<th class=n>documents<th>examples <small>score, limit</small>"
    return f"<h2>Reasons</h2>{table(head, rows)}"


def _mixture(stages: Sequence[dict[str, Any]]) -> str:
    """What pack.mix took of each source, and how often each is seen."""
    for report in (stage["decided"].get("report", {}) for stage in stages):
        if sources := report.get("sources"):
            rows = [
                f"<tr><td>{html.escape(name)}<td class=n>{one['tokens']:,}<td class=n>{one['gives']:,}"
                f"<td class=n>{one['share']:.1%}<td class=n>{one['epochs']:.2f}"
                for name, one in sources.items()
            ]
            head = "<th>source<th class=n>its tokens<th class=n>tokens given<th class=n>share<th class=n>epochs"
            warned = "".join(f"<p>{html.escape(warning)}</p>" for warning in report["warnings"])
            return f"<h2>Mixture</h2>{table(head, rows)}{warned}"
    return ""


def _example(row: dict[str, Any]) -> str:
    text = html.escape((row["url"] or row["doc_id"].hex())[:100])
    if row["score"] is not None:
        limit = f", limit {row['threshold']:g}" if row["threshold"] is not None else ""
        text += f" <small>{row['score']:.4g}{limit}</small>"
    return text


def _samples(documents: str | None, count: int = 5, characters: int = 600) -> str:
    """The beginnings of some documents that were kept, the first of as many shards."""
    if documents is None:
        return ""
    parts = []
    for item in list(storage.list_files(documents))[:count]:
        with storage.open_read(item.path) as source:
            batch = next(pq.ParquetFile(source).iter_batches(2, columns=["url", "text"]), None)
        for row in batch.to_pylist() if batch is not None else []:
            title = html.escape(row["url"] or "")
            parts.append(f"<p class=dim>{title}</p><pre>{html.escape(row['text'][:characters])}</pre>")
    return "<h2>Some documents that were kept</h2>" + "".join(parts[:count]) if parts else ""
