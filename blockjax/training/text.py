"""What a run on text says at its end: bits per byte of every block beside what compressors need, and a picture."""

from typing import Any

import jax

from blockjax.data.sources.text import TextSource
from blockjax.data.text_baselines import bits_per_byte_of_compressors
from blockjax.probes.bits import bits_of_blocks
from blockjax.report import figures
from blockjax.report.progress import Progress
from blockjax.report.table import render_table
from blockjax.strategies import TrainState
from blockjax.training.setup import Setup
from blockjax.workdir.files import write_bytes_atomic, write_json_atomic

_TITLES = {
    "gzip": "gzip -9",
    "lzma": "lzma, preset 9 extreme",
    "unigram": "byte frequencies, its own",
    "train_unigram": "byte frequencies of the training text",
}


def report_text(
    run: Setup, state: TrainState, summary: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Tests what was trained on held-out text, draws it, and writes summary.json.

    Args:
      run: at its end.
      state: trained; programs on the run's mesh can read its parameters.
      summary: what is known already.
      rows: of metrics.jsonl.

    Returns:
      The summary: with "blocks", see `bits_of_blocks`, and where every token is predicted "bits_per_byte" of each block
      and "baselines", see `bits_per_byte_of_compressors`.
    """
    config, source = run.config, run.test_source
    count = min(len(source), config.probe.test_examples)
    with Progress(count, unit="sequences read", enabled=run.is_first_process) as progress:
        blocks = bits_of_blocks(
            run.learner,
            state,
            source,
            run.key("figure"),
            limit=count,
            on_sequences=lambda done: progress.update(done, []),
        )
    causal = run.learner.objective.causal
    summary = {**summary, "blocks": blocks, "probes": []}
    if causal:
        summary["bits_per_byte"] = {row["features"]: row["bits_per_byte"] for row in blocks}
        train = run.train_source.text_bytes() if isinstance(run.train_source, TextSource) else b""
        tested = source.text_bytes()[: int(source.lengths[:count].sum())]
        summary["baselines"] = bits_per_byte_of_compressors(train, tested)
        if not train:
            del summary["baselines"]["train_unigram"]
    if not run.is_first_process or jax.process_index():
        return summary
    folder = run.workdir / "figures"
    folder.mkdir(exist_ok=True)
    write_bytes_atomic(folder / "losses.png", figures.losses(rows, config.strategy))
    drawn = "losses.png"
    if causal:
        picture = figures.bits_per_byte(summary["bits_per_byte"], summary["baselines"])
        write_bytes_atomic(folder / "bits_per_byte.png", picture)
        drawn = "bits_per_byte.png, losses.png"
    write_json_atomic(run.workdir / "summary.json", summary)
    title = f"{config.data.source} [{config.data.test_split}], {count:,} sequences"
    if causal:
        baselines = [[_TITLES[name], bits, None] for name, bits in summary["baselines"].items()]
        table = baselines + [
            [row["features"], row["bits_per_byte"], row["perplexity"]] for row in blocks
        ]
        render_table(title, ["by", "bits per byte", "perplexity of a token"], table)
        for line in _verdict(summary, config):
            run.print(line)
    else:
        table = [[row["features"], row["bits_per_token"], row["perplexity"]] for row in blocks]
        render_table(title, ["by", "bits per masked token", "perplexity"], table)
    run.print(f"figures     {folder}/{drawn}")
    return summary


def _verdict(summary, config):
    """Returns sentences for a run whose best block needs more bits than a compressor that learned nothing before."""
    best, gzip = min(summary["bits_per_byte"].values()), summary["baselines"]["gzip"]
    if best < gzip:
        return []
    return [
        f"warning: no block codes the text in fewer bits than gzip ({best:.3f} against {gzip:.3f} a byte); train "
        f"longer, --config.steps={4 * summary['steps']}, or with more --config.model.context={2 * config.model.context}"
    ]
