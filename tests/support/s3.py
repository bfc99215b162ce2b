"""An S3 on this machine.

It is moto's server in a thread, and the environment in which botocore finds it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import httpx
from moto.server import ThreadedMotoServer

BUCKET = "pictures"


@contextmanager
def s3_server() -> Iterator[ThreadedMotoServer]:
    """Run a server with an empty bucket."""
    # It would log a line for each request.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    # Moto keeps its objects when a server ends.
    httpx.post(f"{url}/moto-api/reset").raise_for_status()
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "only-for-this-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    with patch.dict(os.environ, environment):
        from s3fs import S3FileSystem

        S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield server
    server.stop()
