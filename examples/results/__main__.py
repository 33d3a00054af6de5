"""``python -m examples.results``: measure what is not measured yet, then write docs/RESULTS.md and its picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.results.report import write_report
from examples.results.translation import ROOT, SIZES, SYSTEMS, prepare, train_and_score


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.results",
        description="Train every method on Multi30k under one budget and write docs/RESULTS.md.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = ROOT.parent / "shared" / "data" / "multi30k_de_en"
    parser.add_argument("--data", type=Path, default=data, help="folder of {train,val,test_2016_flickr}.{de,en}.gz")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/results"), help="folder of the runs; finished ones are kept"
    )
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="small", help="small for two CPU cores, iwslt for a GPU"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of every system for each seed")
    parser.add_argument("--systems", nargs="+", choices=sorted(SYSTEMS), default=list(SYSTEMS), help="rows to run")
    parser.add_argument("--updates", type=int, help="training updates, instead of the size's own")
    parser.add_argument("--report-only", action="store_true", help="write the report from what is already measured")
    options = parser.parse_args()
    if not options.report_only:
        if not options.data.is_dir():
            parser.error(f"--data: {options.data} is not a folder")
        options.out.mkdir(parents=True, exist_ok=True)
        data_bin = prepare(options.data, options.out)
        for seed in options.seeds:
            for name in options.systems:
                row = train_and_score(name, options.size, seed, data_bin, options.out, options.updates)
                print(f"{name}, seed {seed}: BLEU {row['sacrebleu']:.2f}, {row['seconds']} s", flush=True)
    write_report(options.out)


if __name__ == "__main__":
    main()
