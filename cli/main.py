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

from cli.faults import FaultGroup

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
    invoke_without_command=True, help="List the models that can be served, or add to them."
)
app.add_typer(models_app, name="models")
keys_app = typer.Typer(
    no_args_is_help=True, help="Make keys for the API, and the secrets of their webhooks."
)
app.add_typer(keys_app, name="keys")

Host = Annotated[
    str | None, typer.Option(help="Address to listen on; default DDPM_HOST, else 127.0.0.1")
]
Model = Annotated[str, typer.Argument(help="Name from `ddpm models`, or the folder of a model")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures at once; the result is the same")]
NoiseSeed = Annotated[int, typer.Option(min=0, max=2**53 - 1, help="Of the noise")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU where there is one")]
Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Port to listen on; default DDPM_PORT, else 8000"),
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
    from cli.serve.up import up as run
    from cli.settings import CliSettings, check_access, check_models, check_results_url, read

    settings = read(ApiSettings)
    check_results_url(settings.results_url)
    check_access(settings, host or settings.host)
    check_models(read(CliSettings).models_root)
    keyed = bool(settings.api_keys.get_secret_value().strip())
    raise typer.Exit(run(host or settings.host, port or settings.port, workers, keyed))


@app.command()
def api(host: Host = None, port: Port = None) -> None:
    """Run the API alone, on the queue at DDPM_REDIS_URL; default redis://127.0.0.1:6379/0."""
    from app.http.server import Server
    from app.main import create_app
    from app.settings import ApiSettings
    from cli.settings import check_access, check_models, check_results_url, read

    settings = read(ApiSettings)
    check_results_url(settings.results_url)
    check_access(settings, host or settings.host)
    check_models(settings.models_dir)
    server = Server(
        create_app(settings),
        host=host or settings.host,
        port=port or settings.port,
        # Clients poll, and a line for each request would bury all others.
        access_log=False,
        timeout_graceful_shutdown=3,
    )
    server.run()
    raise typer.Exit(int(not server.started))


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
            help="fixed_small, fixed_large or analytic, with --sampler ddpm; default: the model's"
        ),
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="0 to 1, with --sampler ddim; default: the model's")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name from `ddpm models`; default: the service's")
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
    }
    request = {name: value for name, value in options.items() if value is not None}
    raise typer.Exit(run(url, key, request, out))


@app.command()
def train(
    recipe: Annotated[
        Path, typer.Argument(help="Configuration of the run, TOML; see models/train/recipes/")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the state, the pictures and the finished model")
    ],
    device: Device = "auto",
) -> None:
    """Train a network. Ctrl-C saves, and the same command resumes exactly where it stopped."""
    from cli.commands.train import train as run

    run(recipe, out, device)


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

    run(model, MeasureOptions(data, images, batch_size, seed, device), steps, out)


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
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="PNG for the sheet")] = Path("interpolation.png"),
) -> None:
    """Draw what a network sees between two pictures: noise both, mix them, and denoise.
    Section 4.4 of the paper describes it.

    --t is 500 unless it is given.
    """
    from cli.commands.interpolate import draw as run

    run(model, first, second, t or [500], between, steps, variance, seed, device, out)


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
    """List the models that can be served, or add to them."""
    if ctx.invoked_subcommand is None:
        from cli.commands.models import show

        show()


@models_app.command()
def add(
    folder: Annotated[
        Path,
        typer.Argument(help="Model in diffusers' format: UNet2DModel or DDPMPipeline, safetensors"),
    ],
    name: Annotated[str, typer.Option(help="What jobs will call it")],
    licence: Annotated[str | None, typer.Option(help="Licence of the weights")] = None,
    provenance: Annotated[str | None, typer.Option(help="Where the weights come from")] = None,
    data_name: Annotated[str | None, typer.Option(help="What it was trained on")] = None,
    data_licence: Annotated[str | None, typer.Option(help="Licence of that data")] = None,
    default: Annotated[
        bool, typer.Option("--default", help="Use it for jobs that name no model")
    ] = False,
) -> None:
    """Copy a model folder into DDPM_MODELS_DIR and write its card.
    Running processes see it after a restart.

    What no option says is taken from the folder's own card, as `ddpm train` writes it.
    """
    from cli.commands.models import CardOptions
    from cli.commands.models import add as run

    run(folder, name, CardOptions(licence, provenance, data_name, data_licence), default)


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
) -> None:
    """Estimate the analytic variance of a model, so that jobs may ask for it.
    Ctrl-C ends it early.
    """
    from cli.commands.measure import MeasureOptions
    from cli.commands.variance import estimate as run

    run(model, MeasureOptions(data, images, batch_size, seed, device))
