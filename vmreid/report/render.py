"""A comparison as markdown, terminal table and one self-contained page."""

from __future__ import annotations

import html
import io
import itertools
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from vmreid.evaluation.uncertainty import CONFIDENCE, RESAMPLES
from vmreid.report.pairs import Pair
from vmreid.report.protocols import Protocol, marked
from vmreid.report.rows import Comparison, Row
from vmreid.text_table import aligned, markdown

matplotlib.use("svg")
import matplotlib.pyplot as plt

HEADINGS = ("model", "parameters", "complexity", "mAP", "Rank-1", "stability", "memory a picture", "images/s")
PAIR_HEADINGS = ("pair", "mAP difference", f"{CONFIDENCE:.0%} interval", "p", "identities")
COLOURS = ("#2a6fbb", "#c8553d", "#4f8f4f", "#8a5aa8", "#b8860b")
SMOOTHING = 0.8


def cells(row: Row, protocols: Sequence[Protocol]) -> tuple[str, ...]:
    """One line of the table, as text."""
    return (
        marked(row.name, row.protocol, protocols),
        f"{row.parameters / 1e6:.1f} M",
        f"O(n^{row.exponent:.2f})",
        _with_interval(row, "mAP"),
        _with_interval(row, "rank1"),
        f"{row.nonfinite_steps} non-finite, p99/median |g| {row.gradient_tail:.1f}",
        f"{row.bytes_per_picture / 2**20:.1f} MiB",
        f"{row.images_per_s:.1f}",
    )


def _with_interval(row: Row, key: str) -> str:
    score = f"{getattr(row, key):.3f}"
    limits = row.intervals and row.intervals[key]
    return f"{score} [{limits[0]:.3f}, {limits[1]:.3f}]" if limits else score


def pair_cells(pair: Pair) -> tuple[str, ...]:
    """One line of the table of pairs."""
    found = pair.mAP
    interval = f"{found.interval[0]:+.3f} to {found.interval[1]:+.3f}" if found.interval else "none of so few"
    p = "" if found.p is None else f"{found.p:.4f}"
    return (f"{pair.first} − {pair.second}", f"{found.difference:+.3f}", interval, p, f"{found.identities}")


def pair_lines(comparison: Comparison) -> list[tuple[str, ...]]:
    """All lines of the table of pairs; none where no two runs share a protocol."""
    return [pair_cells(pair) for pair in comparison.pairs]


def floor_cells(name: str, scores: dict[str, float]) -> tuple[str, ...]:
    """A floor's line: it has scores alone."""
    return (name, "", "", f"{scores['mAP']:.3f}", f"{scores['rank1']:.3f}", "", "", "")


def lines(comparison: Comparison) -> list[tuple[str, ...]]:
    """All lines of the table below its headings."""
    floors = sorted(comparison.floors.items())
    return [cells(row, comparison.protocols) for row in comparison.rows] + [floor_cells(name, scores) for name, scores in floors]


def legend(comparison: Comparison) -> list[str]:
    """What the columns are, one sentence each."""
    tokens = ", ".join(str(count) for count in comparison.rows[0].seconds_by_tokens)
    return [
        f"Complexity: exponent fitted to forward + backward time over {tokens} patch tokens on {comparison.setting['device']}; "
        "1 is linear, 2 quadratic. Few tokens are bound by overhead and matrix products, which pulls it below its limit.",
        "mAP, Rank-1: fractions on query against gallery. "
        + " ".join(f"Protocol {each.number}: {_in_words(each)}." for each in comparison.protocols),
        f"[low, high]: {CONFIDENCE:.0%} bootstrap interval over query identities; it knows nothing of another training.",
        *_legend_of_pairs(comparison),
        "Stability: stops at a non-finite value, over all resumes; 99th percentile over median of the gradient norm.",
        "Memory: growth of the peak of one forward + backward pass with each further picture, at the run's image size.",
        "images/s: median over the training steps, all ranks together.",
        "chance: expectation of a random order. untrained: the same backbone with random weights. "
        "histogram: colours in HSV, six stripes. rgb_histogram: colours in RGB, whole picture.",
    ]


def _legend_of_pairs(comparison: Comparison) -> list[str]:
    pairs = len(comparison.pairs)
    if not pairs:
        return []
    return [
        f"Pairs: mean difference of AP over the same queries, its {CONFIDENCE:.0%} bootstrap interval over query identities, and "
        f"p by {RESAMPLES} sign flips over identities, two-sided. Only runs of one protocol are paired.",
        f"Each p answers its own question; to ask {pairs} at once, hold it against {0.05 / pairs:.2g} for 0.05 (Bonferroni).",
    ]


def as_text(comparison: Comparison) -> str:
    """Aligned columns for a terminal."""
    pairs = ["", aligned(PAIR_HEADINGS, pair_lines(comparison))] if comparison.pairs else []
    return "\n".join([aligned(HEADINGS, lines(comparison)), *pairs, *(f"warning: {text}" for text in comparison.warnings)])


def as_markdown(comparison: Comparison) -> str:
    """Headings, table, legend."""
    notes = [f"- {text}" for text in legend(comparison)]
    warnings = [f"**Warning:** {text}\n" for text in comparison.warnings]
    pairs = ["## Pairs", "", markdown(PAIR_HEADINGS, pair_lines(comparison)), ""] if comparison.pairs else []
    return "\n".join(["# Comparison", "", *warnings, markdown(HEADINGS, lines(comparison)), "", *pairs, *notes, ""])


def as_page(comparison: Comparison) -> str:
    """One HTML file without outside parts."""
    classes = [*("model other" if row.protocol > 1 else "model" for row in comparison.rows), *["floor"] * len(comparison.floors)]
    table = html_table(HEADINGS, lines(comparison), classes)
    if comparison.pairs:
        pairs = pair_lines(comparison)
        table += f"<h2>Pairs</h2>{html_table(PAIR_HEADINGS, pairs, ['model'] * len(pairs))}"
    warnings = "".join(f"<p class=warning>{html.escape(text)}</p>" for text in comparison.warnings)
    notes = "".join(f"<li>{html.escape(text)}</li>" for text in legend(comparison))
    figures = "".join(
        f"<figure>{svg}</figure>" for svg in (_loss_curves(comparison), _gradient_curves(comparison), _growth(comparison))
    )
    title = "ViT or Vision Mamba: " + ", ".join(row.name for row in comparison.rows)
    return html_page(title, f"{warnings}{table}<section class=figures>{figures}</section><h2>How to read it</h2><ul>{notes}</ul>")


def html_page(title: str, body: str) -> str:
    """A whole page in this project's looks; ``title`` is text, ``body`` HTML."""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><main><h1>{html.escape(title)}</h1>{body}</main></html>\n"
    )


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str]) -> str:
    """A table whose rows become cards on a narrow page; ``classes``: one a row."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    body = "".join(
        f"<tr class='{kind}'>"
        + "".join(
            f"<td data-label='{html.escape(label)}'>{html.escape(cell)}</td>" for label, cell in zip(headings, line, strict=True)
        )
        + "</tr>"
        for kind, line in zip(classes, rows, strict=True)
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _in_words(protocol: Protocol) -> str:
    ledger = protocol.ledger
    size = "x".join(map(str, ledger["image_size"]))
    return f"{ledger['metric']} distance, {size} pixels, data {ledger['data_digest'][:12]}"


def _loss_curves(comparison: Comparison) -> str:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for colour, (name, curve) in zip(itertools.cycle(COLOURS), comparison.curves.items(), strict=False):
        axes.plot(curve["step"], curve["loss"], color=colour, alpha=0.25, linewidth=1)
        axes.plot(curve["step"], _smoothed(curve["loss"]), color=colour, linewidth=1.8, label=plain(name))
    axes.set(xlabel="step", ylabel="loss", title="Convergence: training loss, smoothed")
    return as_svg(figure, axes)


def _gradient_curves(comparison: Comparison) -> str:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for colour, (name, curve) in zip(itertools.cycle(COLOURS), comparison.curves.items(), strict=False):
        axes.plot(curve["step"], curve["grad_norm"], color=colour, linewidth=1.2, label=plain(name))
    axes.set(xlabel="step", ylabel="gradient norm before clipping", yscale="log", title="Stability: gradient norm")
    return as_svg(figure, axes)


def _growth(comparison: Comparison) -> str:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axes.set(xscale="log", yscale="log")
    for colour, row in zip(itertools.cycle(COLOURS), comparison.rows, strict=False):
        tokens, seconds = list(row.seconds_by_tokens), list(row.seconds_by_tokens.values())
        axes.plot(tokens, seconds, "o-", color=colour, label=f"{plain(row.name)}: n^{row.exponent:.2f}")
    axes.set(xlabel="patch tokens", ylabel="seconds, forward + backward", title="Complexity: time over tokens")
    axes.set_xticks(tokens, [str(count) for count in tokens])
    axes.xaxis.set_minor_locator(NullLocator())
    return as_svg(figure, axes)


def plain(name: str) -> str:
    """matplotlib would read what stands between two dollars as a formula."""
    return name.replace("$", r"\$")


def _smoothed(values: list[float]) -> list[float]:
    """Exponential mean with the bias of its start taken out."""
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append(mean / weight)
    return smooth


def as_svg(figure: Figure, axes: Axes) -> str:
    """The figure with its legend, to stand in a page."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:0;color:#1c2733;background:#fbfbfa}
main{max-width:1200px;margin:0 auto;padding:1.5rem}
h1{font-size:1.5rem;font-weight:650}h2{font-size:1.1rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.45rem .7rem;border-bottom:1px solid #dfe3e6}
th{font-size:.8rem;color:#5b6874;font-weight:600;white-space:nowrap}
td:first-child,td:nth-child(3){white-space:nowrap}tr.model td:first-child{font-weight:650}
tr.other{background:#fff1d6}tr.floor{color:#5b6874}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:1rem;margin:1.5rem 0}
figure{margin:0;background:#fff;border:1px solid #e4e7ea;border-radius:8px;padding:.5rem}svg{width:100%;height:auto}
.warning{background:#fff1d6;border-left:4px solid #c98a00;padding:.6rem .9rem}li{margin:.3rem 0}
@media(max-width:640px){thead{display:none}tr{display:block;border-bottom:2px solid #dfe3e6;padding:.4rem 0}
td{display:flex;gap:1rem;justify-content:space-between;border:0;padding:.15rem 0}td:empty{display:none}
td::before{content:attr(data-label);color:#5b6874;font-size:.85rem;font-weight:400}}
@media(prefers-color-scheme:dark){body{color:#e3e7ea;background:#14191e}a{color:#8fc1f0}th,td{border-color:#333c44}
th,tr.floor,td::before{color:#9aa6b0}tr{border-color:#333c44}figure{border-color:#333c44;background:#f4f5f5}
tr.other,.warning{background:#453512}}
code{overflow-wrap:anywhere}
"""
