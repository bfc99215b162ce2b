from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import sys
from pathlib import Path
from app.main import create_app
from app.settings import ApiSettings
create_app(ApiSettings(models_dir=Path(sys.argv[1]))).openapi()
print("torch" in sys.modules)
print(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads /proc for the memory in use"
)
def test_the_api_loads_no_torch_and_stays_under_150_mb(models_dir: Path) -> None:
    command = [sys.executable, "-c", _SCRIPT, str(models_dir)]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    loaded, rss_kib = child.stdout.split()
    assert loaded == "False"
    assert int(rss_kib) < 150_000
