"""`limner check-data`: what is wrong with a data set, row by row, before it is trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.commands.common import Commands, Parent
from limner.console import inform_on_stderr, one_line, say
from limner.errors import LimnerError
from limner.messages import plural

if TYPE_CHECKING:
    from limner.config import Config


def add(commands: Commands, common: Parent) -> None:
    check = commands.add_parser(
        "check-data",
        parents=[common],
        help="check a data set and report every problem row and why; changes nothing",
        usage="limner check-data CONFIG_OR_DATA [section.key=value ...] [--output FOLDER] "
        "[--sample N] [--strict] [--json]",
        epilog="Exit code 0: nothing must be fixed; 1: there are warnings, with --strict; 2: some "
        "rows are unusable, or a held-out picture is also trained on.",
    )
    check.add_argument("where", nargs="?", metavar="CONFIG_OR_DATA",
                       help="YAML file, or the path of the data (data.dataset_path)")  # fmt: skip
    check.add_argument("--config", type=Path, help="YAML file, as a flag")
    check.add_argument("--output", type=Path, metavar="FOLDER",
                       help="folder for check.html, check.json, and problems.jsonl (default: "
                            "check in training.output_dir)")  # fmt: skip
    check.add_argument("--sample", type=int, metavar="N", help="check only N rows, chosen by hash")
    check.add_argument(
        "--strict", action="store_true", help="exit with code 1 if there are warnings"
    )
    check.add_argument("--json", action="store_true", help="print check.json to stdout")
    check.set_defaults(run=run, takes_overrides=True)


def run(options: argparse.Namespace) -> int:
    from limner.apps.check_data.check import check
    from limner.apps.check_data.findings import exit_code
    from limner.redaction import places_of
    from limner.reports.data_report import write_check_page

    if options.sample is not None and options.sample < 1:
        raise LimnerError(f"--sample {options.sample}: must be at least 1")
    inform_on_stderr()
    config = _config(options)
    output = options.output or Path(config.training.output_dir) / "check"
    told = check(config, output, options.sample)
    page = write_check_page(output, places_of(config.model_dump()))
    if options.json:
        say((output / "check.json").read_text(encoding="utf-8"))
    else:
        for line in lines(told):
            say(line)
        say(f"full list: {output / 'problems.jsonl'}; with pictures: {page}")
    return exit_code(told["findings"], options.strict)


def _config(options: argparse.Namespace) -> Config:
    from limner.checkpoint.inherit import load_run_config

    where, overrides = options.where, list(options.overrides)
    if where is not None and "=" in where and not Path(where).exists():
        overrides.insert(0, where)
        where = None
    if where is None or options.config is not None:
        if where is not None:
            raise LimnerError(f"both --config {options.config} and {where} are given; use only one")
        return load_run_config(options.config, overrides)
    if Path(where).suffix.lower() in (".yaml", ".yml"):
        return load_run_config(where, overrides)
    return _as_chosen(where, overrides) or load_run_config(
        {"data": {"dataset_path": where}}, overrides
    )


def _as_chosen(where: str, overrides: list[str]) -> Config | None:
    """For pictures without a configuration, the size and the length of captions that `limner train`
    would choose for them; None: it would choose nothing, and the check says what is wrong."""
    from limner.apps.own_pictures.request import Request
    from limner.apps.own_pictures.start import planned
    from limner.checkpoint.inherit import load_run_config

    try:
        config = planned(Request(where, None, None, None, None, overrides)).config
    except LimnerError:
        return None
    chosen = {
        "data": {"dataset_path": where, "image_size": config.data.image_size},
        "model": {"patch_size": config.model.patch_size},
        "text_encoder": {"max_length": config.text_encoder.max_length},
    }
    return load_run_config(chosen, overrides)


def lines(told: dict[str, Any]) -> list[str]:
    """For people: counts, then each kind of finding with its first rows."""
    rows, captions = told["rows"], told["captions"]
    of = f" of {rows['used']:,}" if rows["looked_at"] < rows["used"] else ""
    said = [
        f"{told['dataset']['name']}: {rows['looked_at']:,}{of} "
        f"{plural(rows['used'], 'row')} checked ({rows['trained']:,} trained, "
        f"{rows['held_out']:,} held out), {(n := captions['count']):,} {plural(n, 'caption')}"
    ]
    cut = told["pictures"].get("mean_share_cut")
    if cut is not None:
        size = told["settings"]["data.image_size"]
        to = (
            "the nearest size of data.buckets"
            if told["settings"]["data.buckets"]
            else f"{size} x {size}"
        )
        said.append(f"cropped to {to}, {cut:.0%} of a picture is cropped on average")
    if told["captions"]["scripts"]:
        total = max(1, captions["count"])
        scripts = (f"{name} {n / total:.0%}" for name, n in captions["scripts"].items())
        said.append(f"captions by script: {', '.join(scripts)}")
    if captions.get("cut_in_words"):
        said.append(captions["cut_in_words"])
    for finding in told["findings"]:
        if finding["severity"] == "note":
            said.append(f"note     {finding['kind']}: {finding['count']:,} ({finding['meaning']})")
            continue
        said.append(
            f"{finding['severity']:7}  {finding['kind']}: {finding['count']:,}, "
            f"{finding['meaning']}"
        )
        said += [f"{'':11}{_row(first)}" for first in finding["first"][:3]]
        if finding["count"] > 3:
            said.append(f"{'':11}... and {finding['count'] - 3:,} more")
        said.append(f"{'':9}-> {finding['todo']}")
    severities = [f["severity"] for f in told["findings"] for _ in range(f["count"])]
    said.append(
        f"{severities.count('error'):,} errors, {severities.count('warning'):,} warnings, "
        f"{severities.count('note'):,} notes"
    )
    return said


def _row(first: dict[str, Any]) -> str:
    said = first["said"].splitlines()[0]
    whole = said if said.startswith(first["key"]) else f"{first['key']}: {said}"
    whole = one_line(whole)
    return whole if len(whole) <= 160 else whole[:159] + "…"
