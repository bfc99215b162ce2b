"""`python -m cli`: how `ddpm up` starts its children, whatever the PATH."""

from cli.main import app

app()
