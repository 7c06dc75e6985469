"""Real clients of the Hub, for tests of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["hub"]


def hub(url: str, home: Path, code: str, token: str | None = None) -> Any:
    """What `code`, run with huggingface_hub in a fresh process, leaves in `result`."""
    prelude = "import json\nfrom huggingface_hub import *\nfrom huggingface_hub.errors import *\n"
    env = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", f"{prelude}{code}\nprint(json.dumps(result))"],
        env=env | ({"HF_TOKEN": token} if token else {}),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])
