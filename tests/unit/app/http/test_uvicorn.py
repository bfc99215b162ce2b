"""What app/http leans on of uvicorn beyond its documentation.

Where an upgrade fails here: read what has changed in uvicorn's HTTP protocol, run the tests of
app/http, then write the new digest and raise the bound in pyproject.toml.
"""

from __future__ import annotations

import ast
import inspect
import re
from hashlib import sha256

import uvicorn
from uvicorn.protocols.http import flow_control, httptools_impl

from app.http import connection
from tests.support.processes import ROOT

# The digest of each module's text.
READ = {
    httptools_impl: "1d4e1c579df41684",
    flow_control: "d39d16560df512f3",
}
# The only names of uvicorn's classes that app/http/connection.py uses.
OF_THE_PROTOCOL = {
    "connection_made",
    "connection_lost",
    "data_received",
    "eof_received",
    "on_message_begin",
    "on_header",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
    "pause_writing",
    "resume_writing",
    "send_400_response",
    "shutdown",
    "timeout_keep_alive_handler",
}
OF_ITS_STATE = {"cycle", "flow", "headers", "loop", "parser", "pipeline", "transport", "url"}


def test_uvicorns_http_protocol_is_the_one_that_was_read() -> None:
    digests = {
        module: sha256(inspect.getsource(module).encode()).hexdigest()[:16] for module in READ
    }
    assert digests == READ, f"uvicorn {uvicorn.__version__} is another; see the top of this file"


def test_the_bound_in_pyproject_keeps_other_versions_out() -> None:
    (bound,) = re.findall(r'"uvicorn==(\d+\.\d+)\.\*"', (ROOT / "pyproject.toml").read_text())
    assert uvicorn.__version__.startswith(f"{bound}.")


def test_a_connection_uses_no_more_of_uvicorn_than_is_listed() -> None:
    tree = ast.parse(inspect.getsource(connection.Connection))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    inherited = set(dir(httptools_impl.HttpToolsProtocol)) | set(
        re.findall(r"self\.(\w+)", inspect.getsource(httptools_impl.HttpToolsProtocol))
    )
    own = {name for name in used if name.startswith("_")}
    assert not {name for name in own if name in inherited}, "uvicorn's private names"
    assert (used - own) & inherited <= OF_THE_PROTOCOL | OF_ITS_STATE
