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
from models.diffusion.options import Prediction, PublishedVariance, Sampler

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
models_app = typer.Typer(
    invoke_without_command=True,
    help="List the models that can be served, add to them, remove some.",
)
app.add_typer(models_app, name="models")
keys_app = typer.Typer(
    no_args_is_help=True, help="Make keys for the API, and the secrets of their webhooks."
)
app.add_typer(keys_app, name="keys")

StatedSchedule = Literal["linear", "scaled_linear", "cosine", "sigmoid", "laplace"]
Host = Annotated[
    str | None, typer.Option(help="Address to listen on; default DDPM_HOST, else 127.0.0.1")
]
Model = Annotated[str, typer.Argument(help="Name from `ddpm models`, or the folder of a model")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures at once; the result is the same")]
NoiseSeed = Annotated[int, typer.Option(min=0, max=2**53 - 1, help="Of the noise")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU where there is one")]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out pictures that cannot be read")
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
        "steps": steps,
        "sampler": sampler,
        "variance": variance,
        "eta": eta,
        "model": model,
        "label": label,
        "labels": None if labels is None else [part.strip() for part in labels.split(",")],
        "guidance": guidance,
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
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="PNG for the sheet")] = Path("interpolation.png"),
) -> None:
    """Draw what a network sees between two pictures: noise both, mix them, and denoise.
    Section 4.4 of the paper describes it.

    --t is 500 unless it is given.
    """
    from cli.commands.interpolate import draw as run

    run(model, first, second, t or [500], between, steps, variance, seed, device, out, label)


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


@models_app.callback()
def models(ctx: typer.Context) -> None:
    """List the models that can be served, add to them, remove some."""
    if ctx.invoked_subcommand is None:
        from cli.commands.models import show

        show()


@models_app.command()
def add(
    thing: Annotated[
        str,
        typer.Argument(help="Folder in diffusers' format, a file of a trainer, or owner/name"),
    ],
    name: Annotated[
        str | None, typer.Option(help="What jobs will call it; default: the name of the folder")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights")] = None,
    provenance: Annotated[str | None, typer.Option(help="Where the weights come from")] = None,
    data_name: Annotated[str | None, typer.Option(help="What it was trained on")] = None,
    data_licence: Annotated[str | None, typer.Option(help="Licence of that data")] = None,
    default: Annotated[
        bool, typer.Option("--default", help="Use it for jobs that name no model")
    ] = False,
    schedule: Annotated[
        StatedSchedule | None,
        typer.Option(help="Schedule of its betas, if its files state none, or a wrong one"),
    ] = None,
    timesteps: Annotated[
        int | None, typer.Option(help="Timesteps of that schedule; 1000 if nothing states them")
    ] = None,
    prediction: Annotated[
        Prediction | None,
        typer.Option(help="What its output estimates, if its files state nothing, or wrongly"),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Pixels a side, or HxW, if its config.json states no size")
    ] = None,
    published_timesteps: Annotated[
        bool,
        typer.Option(
            "--published-timesteps",
            help="Choose timesteps by the spacing and offset of its scheduler, not by linspace",
        ),
    ] = False,
    clip: Annotated[
        str | None,
        typer.Option(help="Bound of its estimates of the image, or none, instead of its files'"),
    ] = None,
    sampler: Annotated[
        Sampler | None, typer.Option(help="Of jobs that name none; default: as it was published")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of jobs that name none; default: 50 of ddim, 25 of dpmpp_2m, T up to 1000"
        ),
    ] = None,
    variance: Annotated[
        PublishedVariance | None,
        typer.Option(help="Of jobs of ddpm that name none; default: as it was published"),
    ] = None,
    eta: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of jobs of ddim that name none; default: 0")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of owner/name; default: main")
    ] = None,
    flags: Annotated[
        str | None,
        typer.Option(help="Flags of its training, of another trainer's file"),
    ] = None,
    label_names: Annotated[
        str | None,
        typer.Option(help="Names of its classes: a file of one a line, or a,b,c"),
    ] = None,
    null_class: Annotated[
        int | None,
        typer.Option(min=0, help="Row of its class embedding that means no class; never guessed"),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Take the place of a model of that name; accepted jobs keep the old"
        ),
    ] = False,
    no_draw: Annotated[
        bool, typer.Option("--no-draw", help="Measure no step of it, and draw no samples")
    ] = False,
) -> None:
    """Copy a model into DDPM_MODELS_DIR, write its card, and say what was found and assumed.
    Running processes take it up within seconds. Then measure a step of it, and draw samples.

    What no option says is taken from the folder's own card, as `ddpm train` writes it.
    """
    from cli.commands.models import CardOptions, Statement
    from cli.commands.models import add as run
    from models.checkpoints.job_defaults import Asked

    options = CardOptions(licence, provenance, data_name, data_licence)
    statement = Statement(
        schedule,
        timesteps,
        prediction,
        size,
        published_timesteps,
        clip,
        revision,
        flags,
        label_names,
        null_class,
    )
    asked = Asked(sampler, steps, variance, eta)
    run(thing, name, options, default, statement, asked, replace, draw=not no_draw)


@models_app.command()
def show(model: Annotated[str, typer.Argument(help="Name from `ddpm models`")]) -> None:
    """Print the card of a model, as JSON."""
    from cli.commands.catalogue import show_card

    show_card(model)


@models_app.command()
def check(
    model: Annotated[
        list[str] | None, typer.Argument(help="Names from `ddpm models`; default: all")
    ] = None,
) -> None:
    """Load models as a worker does, and say which of them cannot be served."""
    from cli.commands.catalogue import check as run

    run(model or [])


@models_app.command()
def remove(
    model: Annotated[str, typer.Argument(help="Name from `ddpm models`")],
    force: Annotated[
        bool, typer.Option("--force", help="Delete its files now; jobs that need them fail")
    ] = False,
) -> None:
    """Remove an added model. The shipped ones and the default one stay.
    Accepted jobs of it end before its files are deleted.
    """
    from cli.commands.catalogue import remove as run

    run(model, force)


@models_app.command()
def variance(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(help="Pictures it was trained on: image folder, IDX file (also .gz) or .npz"),
    ],
    images: Annotated[int, typer.Option(min=1, help="How many of them, evenly from all")] = 128,
    batch_size: BatchSize = 16,
    seed: NoiseSeed = 0,
    device: Device = "auto",
    skip_broken: SkipBroken = False,
) -> None:
    """Estimate the analytic variance of a model, so that jobs may ask for it.
    Ctrl-C ends it early.
    """
    from cli.commands.measure import MeasureOptions
    from cli.commands.variance import estimate as run

    run(model, MeasureOptions(data, images, batch_size, seed, device, skip_broken))
