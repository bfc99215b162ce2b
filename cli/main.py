"""The `ddpm` command: its options, and which module does the work.

The docstrings and the `help` texts are what `ddpm COMMAND --help` shows. A docstring's first line
stands alone in the command reference.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.faults import Fault, FaultGroup
from cli.models_app import models_app
from cli.options import BatchSize, Device, Model, NoiseSeed, SkipBroken

# Idle threads of torch soon sleep (docs/decisions/0005). OpenMP reads this when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

app = typer.Typer(
    name="ddpm",
    cls=FaultGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sample from trained denoising diffusion models, serve them over HTTP, "
    "train and evaluate them.",
)
app.add_typer(models_app, name="models")
keys_app = typer.Typer(
    no_args_is_help=True, help="Make keys for the API, and the secrets of their webhooks."
)
app.add_typer(keys_app, name="keys")

Host = Annotated[
    str | None, typer.Option(help="Address to listen on; default DDPM_HOST, else 127.0.0.1")
]
Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Port to listen on; default DDPM_PORT, else 8000"),
]
Uds = Annotated[
    Path | None, typer.Option(help="Unix socket to listen on instead; default DDPM_UDS")
]


@app.command()
def up(
    host: Host = None,
    port: Port = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Worker processes; default: one per GPU, else one"),
    ] = None,
) -> None:
    """Run the whole service here: queue, workers and API, until Ctrl-C."""
    from app.settings import ApiSettings
    from cli.serve.api import api_processes
    from cli.serve.up import up as run
    from cli.settings import (
        CliSettings,
        check_access,
        check_models,
        check_results_url,
        check_tracing,
        keys_of,
        read,
    )

    settings = read(ApiSettings)
    check_results_url(settings.results_url)
    check_tracing()
    check_access(settings, host or settings.host)
    check_models(read(CliSettings).models_root)
    keyed = bool(keys_of(settings))
    where = (host or settings.host, port or settings.port)
    raise typer.Exit(run(*where, api_processes(settings), workers, keyed))


@app.command()
def api(host: Host = None, port: Port = None, uds: Uds = None) -> None:
    """Run the API alone, on the queue at DDPM_REDIS_URL; default redis://127.0.0.1:6379/0."""
    from app.settings import ApiSettings
    from cli.serve.api import serve
    from cli.serve.inherited_sockets import listening_host, of_this_process
    from cli.settings import check_access, check_models, check_results_url, check_tracing, read

    settings = read(ApiSettings)
    check_results_url(settings.results_url)
    check_tracing()
    sockets = of_this_process()
    check_access(settings, listening_host(sockets, host or settings.host))
    check_models(settings.models_dir)
    socket = uds or (None if host or port else settings.uds)
    status = serve(settings, host or settings.host, port or settings.port, sockets, socket)
    raise typer.Exit(status)


@app.command()
def worker() -> None:
    """Run one worker, on the queue at DDPM_REDIS_URL; default redis://127.0.0.1:6379/0."""
    # Loading takes a while, and until it is over the worker holds nothing.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    from cli.settings import read
    from worker.settings import WorkerSettings

    read(WorkerSettings)

    # Only now, because it loads torch.
    from worker.__main__ import main

    raise typer.Exit(main())


@app.command()
def sample(
    count: Annotated[int, typer.Option(help="Number of images")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same images; default: the service draws one")
    ] = None,
    start: Annotated[
        int | None,
        typer.Option(help="Index of the first image, to go on where a seed was left; default: 0"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the reverse chain; default: the model's")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddpm, ddim or dpmpp_2m; default: the model's")
    ] = None,
    variance: Annotated[
        str | None,
        typer.Option(
            help="fixed_small, fixed_large, analytic or learned, with --sampler ddpm; default: the "
            "model's"
        ),
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="0 to 1, with --sampler ddim; default: the model's")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name from `ddpm models`; default: the service's")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Class of all images: its name or number; default: drawn")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Class of each image, as a,b,c; instead of --label")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="0 to 100, where the model has a null class; 1 is none; default: 1"),
    ] = None,
    priority: Annotated[
        str | None,
        typer.Option(help="interactive or bulk, which lets others pass; default: interactive"),
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(help="URL that is told when the job has ended")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the PNGs")] = Path("samples"),
    url: Annotated[
        str, typer.Option(envvar="DDPM_URL", help="Where the service is")
    ] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None, typer.Option(envvar="DDPM_KEY", help="API key, where the service wants one")
    ] = None,
) -> None:
    """Have a running service draw images, and save them as OUT/<seed>-<index>.png.
    Ctrl-C cancels.
    """
    from cli.commands.sample import sample as run

    options = {
        "count": count,
        "seed": seed,
        "start": start,
        "steps": steps,
        "sampler": sampler,
        "variance": variance,
        "eta": eta,
        "model": model,
        "label": label,
        "labels": None if labels is None else [part.strip() for part in labels.split(",")],
        "guidance": guidance,
        "priority": priority,
        "webhook": webhook,
    }
    request = {name: value for name, value in options.items() if value is not None}
    raise typer.Exit(run(url, key, request, out))


@app.command()
def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="Configuration of the run, TOML; see models/train/recipes/"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the state, the pictures and the finished model; default: runs/ and "
            "the name of the recipe or of the data"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Train on this image folder, IDX file or .npz without a recipe: one that fits "
            "is written to OUT/recipe.toml"
        ),
    ] = None,
    new: Annotated[
        Path | None,
        typer.Option(help="Write a recipe with every key explained to this file, and end"),
    ] = None,
    begin_from: Annotated[
        str | None,
        typer.Option("--from", help="Fine-tune this model: a name from `ddpm models`, or a folder"),
    ] = None,
    updates: Annotated[
        int | None, typer.Option(min=1, help="Updates until the run ends; default: the recipe's")
    ] = None,
    skip_broken: SkipBroken = False,
    decode_all: Annotated[
        bool,
        typer.Option(
            "--decode-all", help="Decode all of every picture before training, not its header only"
        ),
    ] = False,
    classes: Annotated[
        bool,
        typer.Option(
            "--classes",
            help="With --data or --new: learn the classes of the data, such as its folders",
        ),
    ] = False,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Do without torch.compile on a GPU")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, try three updates, and write nothing")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train a network. Ctrl-C saves, and the same command resumes exactly where it stopped."""
    from cli.commands.train import TrainOptions, new_recipe, train_on
    from cli.commands.train import train as run

    if recipe is not None and (data or new):
        raise Fault("RECIPE names the data itself; give either it, or --data or --new")
    if recipe is not None and classes:
        raise Fault("RECIPE says itself whether there are classes; set data.classes in it")
    options = TrainOptions(
        device, updates, skip_broken, decode_all, not no_compile, dry_run, begin_from, classes
    )
    if new is not None:
        new_recipe(new, data, options)
        return
    if data is not None:
        train_on(data, out, options)
    elif recipe is not None:
        run(recipe, out or Path("runs") / recipe.stem, options)
    else:
        raise Fault("there is nothing to train on; give a RECIPE, or --data FOLDER")


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(
            help="Pictures it was not trained on: image folder, IDX file (also .gz) or .npz"
        ),
    ],
    images: Annotated[int, typer.Option(min=1, help="How many of them, evenly from all")] = 64,
    steps: Annotated[
        int | None,
        typer.Option(min=2, help="Timesteps that are visited; default: all that it was trained on"),
    ] = None,
    batch_size: BatchSize = 16,
    seed: NoiseSeed = 0,
    device: Device = "auto",
    skip_broken: SkipBroken = False,
    no_classes: Annotated[
        bool,
        typer.Option(
            "--no-classes",
            help="Of a network with classes: measure without, not with each picture's own",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the figures; default: runs/evaluate/<model>-<steps>-steps"),
    ] = None,
) -> None:
    """Bound the negative log likelihood of pictures in bits/dim, with its rate and distortion.
    Ctrl-C ends it early.
    """
    from cli.commands.evaluate import evaluate as run
    from cli.commands.measure import MeasureOptions

    options = MeasureOptions(data, images, batch_size, seed, device, skip_broken, no_classes)
    run(model, options, steps, out)


@app.command()
def interpolate(
    model: Model,
    first: Annotated[
        Path, typer.Argument(help="A picture, cropped and resized to the model's size")
    ],
    second: Annotated[Path, typer.Argument(help="Another one")],
    t: Annotated[
        list[int] | None,
        typer.Option(
            help="Timestep to which they are noised before they are mixed; again for more rows"
        ),
    ] = None,
    between: Annotated[int, typer.Option(min=0, help="Pictures between the two")] = 9,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps back from t; default: all")
    ] = None,
    variance: Annotated[
        Literal["fixed_small", "fixed_large"] | None,
        typer.Option(
            help="Of the way back; default: fixed_small where --steps leaves timesteps out, "
            "else the model's"
        ),
    ] = None,
    seed: NoiseSeed = 0,
    label: Annotated[
        str | None, typer.Option(help="Class of what is drawn, of a network with classes")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="0 to 100, where the model has a null class; 1 is none; default: 1"),
    ] = None,
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="PNG for the sheet")] = Path("interpolation.png"),
) -> None:
    """Draw what a network sees between two pictures: noise both, mix them, and denoise.
    Section 4.4 of the paper describes it.

    --t is 500 unless it is given.
    """
    from cli.commands.interpolate import draw as run

    ts = t or [500]
    run(model, first, second, ts, between, steps, variance, seed, device, out, label, guidance)


@keys_app.command()
def new(
    name: Annotated[
        str, typer.Argument(help="Whose jobs the key's are; letters, digits, '.', '_' and '-'")
    ],
) -> None:
    """Make a key, and print it once, with its entry for DDPM_API_KEYS. Nothing is stored."""
    from cli.commands.keys import new as run

    run(name)


@keys_app.command()
def webhook_secret(
    name: Annotated[str, typer.Argument(help="Whose; `local` where there are no keys")],
) -> None:
    """Print what a key's owner verifies webhooks with.
    It is made from DDPM_WEBHOOK_SECRET and the name.
    """
    from cli.commands.keys import webhook_secret as run

    run(name)
