"""Image-text retrieval with aligned self-attentions: python -m vision_language.iais COMMAND."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import writing_to
from fairseq_ext.training.options import at_least, subcommands
from vision_language.iais import convert as conversion
from vision_language.iais.alignment import mirrored_maps
from vision_language.iais.data import SPLITS, Collator
from vision_language.iais.encoder import load
from vision_language.iais.evaluate import first_images, metrics
from vision_language.iais.options import MIRRORS, Options
from vision_language.iais.plot import distinct_names, draw_alignment, draw_history, draw_self_attention, read_history
from vision_language.iais.search import caption_of, find_image, maps_of, read_split, region_names, search
from vision_language.iais.synthetic import synthesize
from vision_language.iais.train import run

SHOWN = ("ir_r1", "ir_r5", "ir_r10", "tr_r1", "tr_r5", "tr_r10", "rsum", "isd")


def _train(arguments: argparse.Namespace) -> None:
    options = Options.of(arguments)
    accelerator = make_accelerator(options.mixed_precision, "cpu" if arguments.cpu else "auto")
    experiment = run(options, arguments.out, arguments.seed, arguments.runs, accelerator)
    if not accelerator.is_main_process:
        return
    summary = experiment.summary()
    for name in SHOWN:
        print(f"test {name} {summary[name]['mean']:.4f} +- {summary[name]['std']:.4f}")
    print(f"{len(experiment.runs)} runs, IAIS {options.iais}: {experiment.file}")


def _evaluate(arguments: argparse.Namespace) -> None:
    accelerator = make_accelerator(device="cpu" if arguments.cpu else "auto")
    model, tokenizer = load(arguments.model, accelerator.device)
    data = first_images(read_split(arguments.data, arguments.split, model.config.max_regions), arguments.images)
    if not len(data):
        raise OptionError(f"--data: no caption in {arguments.data}")
    found = metrics(model, data, Collator(tokenizer, None), arguments.score_batch, accelerator, arguments.released)
    if accelerator.is_main_process:
        print(json.dumps({**found, "captions": len(data), "images": len(data.images)}, indent=2))


def _search(arguments: argparse.Namespace) -> None:
    accelerator = make_accelerator(device="cpu" if arguments.cpu else "auto")
    model, tokenizer = load(arguments.model, accelerator.device)
    data = read_split(arguments.data, arguments.split, model.config.max_regions)
    found = search(model, data, Collator(tokenizer, None), arguments.query, arguments.top, arguments.score_batch)
    for rank, (score, image) in enumerate(found, 1):
        about = image.captions[0] if image.captions else ", ".join(region_names(data, image))
        print(f"{rank}\t{score:.3f}\t{image.image_id}\t{about}")


def _plot(arguments: argparse.Namespace) -> None:
    accelerator = make_accelerator(device="cpu" if arguments.cpu else "auto")
    folder = Path(arguments.model)
    model, tokenizer = load(folder, accelerator.device)
    before, _ = load(arguments.before or folder.parent / "initial", accelerator.device)
    data = read_split(arguments.data, arguments.split, model.config.max_regions)
    data.check_model(model.config)
    image = find_image(data, arguments.image)
    caption, history = caption_of(image, arguments.query), folder.parent / "history.json"
    records = read_history(history) if history.is_file() else []
    out = Path(arguments.out or folder.parent)
    collator, names = Collator(tokenizer, None), region_names(data, image)
    words, blocks = maps_of(model, tokenizer, collator, caption, image)
    _, untrained = maps_of(before, tokenizer, collator, caption, image)
    mirror = arguments.mirror
    sides = [
        [(own[0], other[0]) for own, other in zip((maps.ll, maps.vv), mirrored_maps(maps, mirror), strict=True)]
        for maps in (untrained, blocks)
    ]
    drawn = [out / f"{name}.png" for name in ("alignment", "words", "regions", *(["history"] if records else []))]
    with writing_to(out):
        size = (image.width, image.height)
        draw_alignment(words, names, blocks.lv[0], drawn[0], size=size, boxes=image.boxes, title=caption)
        for side, (labels, path) in enumerate(((words, drawn[1]), (distinct_names(names), drawn[2]))):
            draw_self_attention(sides[0][side], sides[1][side], labels, path, title=caption)
        if records:
            draw_history(records, drawn[3], metric_label="sum of recalls")
    print("\n".join(map(str, drawn)))


def _convert(arguments: argparse.Namespace) -> None:
    names = ("captions", "instances", "features", "splits", "valid", "test", "seed")
    counts = conversion.convert(arguments.out, **{name: getattr(arguments, name) for name in names})
    print(f"{arguments.out}: {', '.join(f'{name} {count}' for name, count in counts.items())}")


def _synthesize(arguments: argparse.Namespace) -> None:
    synthesize(arguments.out, arguments.images, arguments.captions, arguments.seed)
    print(f"{arguments.images} images in {arguments.out}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m vision_language.iais", description=__doc__)
    command = subcommands(top)

    train = command("train", _train, "train with one or more seeds, choose the step by validation, score on test")
    train.add_argument("--out", default="runs/iais", help="folder of results and models [%(default)s]")
    train.add_argument("--seed", type=int, default=1, help="first seed [%(default)s] (paper's code: 42)")
    train.add_argument("--runs", type=int, default=1, help="number of seeds [%(default)s]")
    Options.add_to(train)

    evaluate = command("evaluate", _evaluate, "recall both ways, mean ranks and ISD of a trained model, as JSON")
    evaluate.add_argument("--images", type=int, default=0, help="only the first so many images; 0: all [%(default)s]")
    evaluate.add_argument("--released", action="store_true", help="also image recall as the released code counts it")
    find = command("search", _search, "the images that fit a text best: rank, score, image id, caption or classes")
    find.add_argument("--query", required=True, help="the text")
    find.add_argument("--top", type=int, default=5, help="number of images [%(default)s]")
    plot = command("plot", _plot, "pictures: words by regions, self-attention beside its mirror, ISD over training")
    plot.add_argument("--image", help="its id [the first]")
    plot.add_argument("--query", help="the text of the pair [the image's first caption]")
    plot.add_argument("--before", help="folder of the model to compare with [initial, beside that of the model]")
    plot.add_argument("--mirror", choices=MIRRORS, default="singular", help="how the mirror is made [%(default)s]")
    plot.add_argument("--out", help="folder of the pictures [that above the model's]")
    for made in (evaluate, find, plot):
        made.add_argument("--model", default="runs/iais/seed1/model", help="folder of the model [%(default)s]")
        made.add_argument("--data", required=True, help="folder that train reads, or one file of it")
        made.add_argument("--split", choices=SPLITS, help="of the folder [test]")
    for made in (evaluate, find):
        made.add_argument("--score-batch", type=int, default=64, help="pairs in a forward pass [%(default)s]")
    for made in (train, evaluate, find, plot):
        made.add_argument("--cpu", action="store_true", help="leave the GPU alone")

    change = command("convert", _convert, "COCO, Flickr30k or bottom-up-attention files to the region format")
    conversion.add_options(change)
    make = command("synthesize", _synthesize, "write made-up scenes with captions, for a try without data")
    make.add_argument("--out", default="runs/iais_data", help="folder [%(default)s]")
    make.add_argument("--images", type=int, default=1000, help="images of all splits together [%(default)s]")
    make.add_argument("--captions", type=int, default=3, help="captions of an image [%(default)s]")
    make.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    logging.disable_progress_bar()
    at_least(options, top=1, score_batch=1, runs=1, seed=0, images=0)
    options.function(options)


if __name__ == "__main__":
    main(sys.argv[1:])
