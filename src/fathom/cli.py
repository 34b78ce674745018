"""The verbs of the command line.

The answer goes to stdout (`--json` makes it one JSON value), progress and warnings to stderr. A mistake of the
user's is one line on stderr and exit code 2. Heavy modules are imported by the verb that needs them.
"""

from __future__ import annotations

import json as jsonlib
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import fathom
from fathom.core.device import leads
from fathom.core.errors import ConfigError, FathomError, TrainingError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="From raw data to a deep learning model that you understand, trust and ship.",
)

Source = Annotated[str, typer.Argument(help="A table, a folder of images or texts by class, or a bundled sample.")]
Folder = Annotated[Path, typer.Argument(help="The folder of a trained model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Own = Annotated[str | None, typer.Option("--model", help="Of a model of your own: the function, as path.py:build.")]
Targets = Annotated[list[str] | None, typer.Option("--target", help="A column to predict; may be repeated.")]


@app.command()
def fit(
    source: Annotated[str | None, typer.Argument(help="A table, a folder by class, or a bundled sample.")] = None,
    target: Targets = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the model. Default: runs/NAME.")] = None,
    model: Annotated[
        str | None, typer.Option(help="From `fathom models`, hf:NAME, timm:NAME or path.py:build; default: auto.")
    ] = None,
    weights: Annotated[str | None, typer.Option("--from", help="A trained network to learn on from.")] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Of that network nothing learns but heads.")] = False,
    objective: Annotated[str | None, typer.Option(help="What to train for, from `fathom objectives`.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to train for, at most.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    test: Annotated[str | None, typer.Option(help="Source to test on; otherwise rows are kept back.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="An option, as in model.depth=12.")] = None,
    config: Annotated[Path | None, typer.Option(help="Options from a TOML file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run into --out stopped.")] = False,
    json: AsJson = False,
) -> None:
    """Train a model on SOURCE and write it, with its report, into a folder."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        trained = fathom.fit(
            source,
            target,
            test=test,
            out=out if out is not None else _default_folder(source, config),
            model=model,
            weights=weights,
            freeze=True if freeze else None,
            objective=objective,
            minutes=minutes,
            epochs=epochs,
            seed=seed,
            config=config,
            sets=set_ or (),
            resume=resume,
            progress=True,
        )
    except KeyboardInterrupt as stopped:
        _note("stopped; the same command with --resume goes on from the last checkpoint")
        raise typer.Exit(143 if isinstance(stopped, _Terminated) else 130) from None
    _answer(trained.info() if json else trained.summary())


@app.command()
def predict(
    folder: Folder,
    source: Source,
    out: Annotated[Path | None, typer.Option(help="Write the table here: .csv, .parquet or .jsonl.")] = None,
    model: Own = None,
    json: AsJson = False,
) -> None:
    """Predict every row of SOURCE with the model in FOLDER; prints CSV, or writes a file."""
    from fathom.api.look import as_csv, write_table

    frame = fathom.load(folder, model=model).predict(source)
    if out is not None:
        write_table(frame, out)
        _note(f"{len(frame):,} predictions in {out}")
    if json:
        _answer(frame.to_dicts())
    elif out is None:
        sys.stdout.write(as_csv(frame))


@app.command()
def evaluate(folder: Folder, source: Source, model: Own = None, json: AsJson = False) -> None:
    """Score the model in FOLDER on the rows of SOURCE."""
    from fathom.api.summary import describe_scores

    scores = fathom.load(folder, model=model).evaluate(source)
    _answer(scores if json else describe_scores(scores))


@app.command()
def report(folder: Folder, model: Own = None) -> None:
    """Write report.html anew from the evidence in FOLDER, and print its path."""
    _answer(str(fathom.load(folder, model=model).report()))


@app.command()
def info(folder: Folder, model: Own = None, json: AsJson = False) -> None:
    """Tell what the model in FOLDER is, what it was trained on and how good it is."""
    found = fathom.load(folder, model=model)
    _answer(found.info() if json else found.summary())


@app.command()
def inspect(source: Source, target: Targets = None, json: AsJson = False) -> None:
    """Show the columns of SOURCE, what kind each was taken for, and why."""
    from fathom.api.look import describe_table

    found = fathom.inspect(source, target)
    _answer(found if json else describe_table(found))


@app.command()
def generate(
    source: Annotated[str, typer.Argument(help="A trained model, or published weights: folder, .gguf, hf:NAME.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to go on from; may be repeated; - is stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="A prompt on each line.")] = None,
    tokens: Annotated[int, typer.Option(help="The most tokens to write.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="Draw tokens by chance; 0: the most probable.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among so many most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the fewest tokens of this probability.")] = None,
    beams: Annotated[int, typer.Option(help="Texts kept side by side, of which the best is taken.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the writing; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    json: AsJson = False,
) -> None:
    """Write texts with the model in SOURCE; one prompt's is shown as it comes."""
    from fathom.api import generate as writing

    prompts = writing.prompts(prompt or [], file, sys.stdin)
    options = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "beams": beams}
    chosen = writing.settings(**options, stop=tuple(stop or ()), seed=seed)
    author = writing.author(source)
    if json:
        _answer(writing.described(prompts, author.texts(prompts, chosen)))
    elif len(prompts) == 1:
        for piece in author.stream(prompts[0], **vars(chosen)):
            print(piece, end="", flush=True)
        print()
    else:
        print("\n---\n".join(text.text for text in author.texts(prompts, chosen)))


@app.command()
def sample(
    folder: Folder,
    n: Annotated[int, typer.Option("--n", help="Images to make.")] = 64,
    out: Annotated[Path, typer.Option(help="The PNG in which they stand side by side.")] = Path("grid.png"),
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="To make images of; may be repeated. Default: all in turn.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What is to be seen, of a model of captions; may be repeated, in turn.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Of diffusion: steps that an image is made in.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Of diffusion: how far towards what is asked; 1: as told.")
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(help="Images to make them of: to be mended, put back, or for the ways between codes."),
    ] = None,
    model: Own = None,
    json: AsJson = False,
) -> None:
    """Make images with the generator in FOLDER, and print the path of the PNG that shows them."""
    from fathom.api.sample import place, write_grid

    asked: dict[str, Any] = {"classes": class_ or (), "prompts": prompt or (), "steps": steps, "guidance": guidance}
    if of is not None:
        named = {"--class": class_, "--prompt": prompt, "--steps": steps, "--guidance": guidance}
        _refuse(named, "beside --of: it is the given images that tell what is made")
    place(out)  # said before minutes go into what could not be kept
    trained = fathom.load(folder, model=model)
    images = trained.redraw(of, n) if of is not None else trained.sample(n, seed=seed, **asked)
    write_grid(images, out)
    _answer({"out": str(out), "images": len(images), "shape": list(images.shape[1:])} if json else str(out))


@app.command()
def translate(
    folder: Folder,
    text: Annotated[list[str] | None, typer.Argument(help="Texts to translate; - is stdin, a text a line.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text on each line.")] = None,
    beams: Annotated[int | None, typer.Option(help="Translations kept side by side, the best is taken.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 1 favours longer ones, below 1 shorter.")] = None,
    attention: Annotated[bool, typer.Option("--attention", help="Tell what each word was written from.")] = False,
    json: AsJson = False,
) -> None:
    """Translate texts with the model in FOLDER: one line each."""
    from fathom.api.generate import prompts

    missing = 'There is nothing to translate: give texts, as in "In the beginning was the Word.", or a --file of lines.'
    asked = prompts(text or [], file, sys.stdin, blank=True, missing=missing)
    lines = [line for given in asked for line in given.splitlines() or [""]]  # line for line, also the blank ones
    trained = fathom.load(folder)
    found = trained.translate(lines, beams=beams, length_penalty=length_penalty)
    rows: list[dict[str, Any]] = [{"text": a, "translation": b} for a, b in zip(lines, found, strict=True)]
    if attention:
        for row in rows:
            words = trained.looked_at(row["text"], row["translation"]) if row["text"].strip() else []
            row["words"] = [{"word": word, "from": source, "weight": weight} for word, source, weight in words]
    if json:
        _answer(rows)
        return
    for row in rows:
        print(row["translation"])
        for each in row.get("words", ()):
            print(f"  {each['word']} ← {each['from']} ({each['weight']:.2f})")


@app.command()
def embed(
    folder: Folder,
    source: Source,
    out: Annotated[Path | None, typer.Option(help="Write the vectors here: .npy, .csv, .parquet or .jsonl.")] = None,
    caption: Annotated[
        list[str] | None, typer.Option(help="Of a model of captions: tell which of several fits each image instead.")
    ] = None,
    recall: Annotated[
        str | None, typer.Option(help="Tell instead how often the nearest row has the same value in this column.")
    ] = None,
    model: Own = None,
    json: AsJson = False,
) -> None:
    """Give every row of SOURCE a vector by the model in FOLDER: alike rows lie near one another."""
    from fathom.api import embed as embedding
    from fathom.api.look import as_csv

    trained = fathom.load(folder, model=model)
    if recall is not None:
        _answer(embedding.recalled(trained, source, recall))
        return
    found = trained.match(source, caption) if caption else trained.embed(source)
    if out is not None:
        embedding.write(found, out)
        _note(f"{len(found):,} rows in {out}")
    if json:
        _answer(found.to_dicts())
    elif out is None:
        sys.stdout.write(as_csv(found))


@app.command()
def nearest(
    folder: Folder,
    words: Annotated[list[str], typer.Argument(help="Words whose directions are added up; or a source of rows.")],
    minus: Annotated[list[str] | None, typer.Option(help="A word whose direction is taken away.")] = None,
    among: Annotated[str | None, typer.Option(help="Rows to look among: a table, folder or sample.")] = None,
    count: Annotated[int | None, typer.Option(help="How many to tell. Default: 10 words, 5 rows.")] = None,
    model: Own = None,
    json: AsJson = False,
) -> None:
    """Tell which words are used most like WORDS, by the model in FOLDER, with the cosine of their vectors; or, of each
    row of a source, which rows of the one named by --among are most alike."""
    trained = fathom.load(folder, model=model)
    if among is not None:
        from fathom.api.nearest import described

        _refuse({"--minus": minus, "a second source": words[1:] or None}, "beside --among, which takes one of rows")
        near = trained.neighbours(words[0], among, 5 if count is None else count)
        _answer(near.to_dicts() if json else described(near))
        return
    found = trained.nearest(*words, minus=minus or (), count=10 if count is None else count)
    rows = [{"word": word, "cosine": cosine} for word, cosine in found]
    _answer(rows if json else "\n".join(f"{cosine:.3f}  {word}" for word, cosine in found))


@app.command()
def bench(
    model: Annotated[str | None, typer.Argument(help="From `fathom models`; default: what suits the data.")] = None,
    source: Annotated[str | None, typer.Option(help="Data to train on; default: a bundled sample it accepts.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="An option, as in engine.batch_size=64.")] = None,
    json: AsJson = False,
) -> None:
    """Measure how fast MODEL trains on this machine: what is chosen, what that gains, how near the limit it is."""
    from fathom.api import bench as benching

    found = benching.bench(model, source, set_ or ())
    _answer(found if json else benching.sentence(found))


@app.command()
def models(json: AsJson = False) -> None:
    """List the architectures: name, parameters, year, what each accepts, what it is and what it was proven against."""
    rows = fathom.list_models()
    for row in rows if not json else ():
        family = row["name"] == row["file"]
        accepts, proven = (", ".join(row["accepts"]), f" Proven against {row['proven']}.") if family else ("", "")
        row["about"] = f"{_short(row['parameters']):>6}  {row['year'] or '':4}  {accepts:<24}  {row['about']}{proven}"
    _listing(rows, json)


@app.command()
def objectives(json: AsJson = False) -> None:
    """List what a model can be trained to do."""
    _listing(fathom.list_objectives(), json)


@app.command()
def samples(json: AsJson = False) -> None:
    """List the bundled data sets."""
    _listing(fathom.list_samples(), json)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        _answer(f"fathom {fathom.__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 2 the user's mistake; of `fit` 130 interrupted, 143 terminated."""
    try:
        app()
    except FathomError as error:
        if leads():
            _note(f"error: {error}")
        elif isinstance(error, TrainingError):  # the other errors are the same in all processes
            print(f"error of a process: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except (OSError, MemoryError) as error:  # what no room has put better
        _note(f"error: {error or 'memory ran out'}")
        sys.exit(2)
    sys.exit(0)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: leaves as Ctrl-C does, saving first, with an exit code of its own."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated


def _default_folder(source: str | None, config: Path | None) -> Path:
    name = Path(source).name.split(".")[0] if source else (config.stem if config else "model")
    return Path("runs") / (name or "model")


def _refuse(options: dict[str, Any], why: str) -> None:
    """Refuse the options that were given, where none of them has a meaning."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{' and '.join(given)} cannot be given {why}.")


def _answer(value: Any) -> None:
    if not leads():
        return
    print(value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False, indent=2, default=str))


def _note(text: str) -> None:
    if leads():
        print(text, file=sys.stderr)


def _short(number: int) -> str:
    """1234567 as "1.2M"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.{0 if number >= 10 * size else 1}f}{letter}"
    return str(number)


def _listing(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        _answer(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['about']}")
