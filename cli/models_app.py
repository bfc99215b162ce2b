"""`ddpm models`: its options, and which module does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.options import BatchSize, Device, Model, NoiseSeed, SkipBroken
from models.diffusion.options import Prediction, PublishedVariance, Sampler

models_app = typer.Typer(
    invoke_without_command=True,
    help="List the models that can be served, add to them, remove some.",
)

StatedSchedule = Literal["linear", "scaled_linear", "cosine", "sigmoid", "laplace"]


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
