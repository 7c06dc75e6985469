"""What llama.cpp asks for with `-hf`, in its order, since it keeps its models in the cache of the Hub's own tools.

https://github.com/ggml-org/llama.cpp, common/hf-cache.cpp and common/download.cpp: which commit `main` is, what is in
it, and then of a file a HEAD and a GET. What is left of an interrupted one it asks for by a range, and takes nothing
but a 206 for an answer.
"""

from __future__ import annotations

import http.client
import json
import os
from urllib.parse import urlsplit

from originals import ORIGINALS

NAME, FILE = "team/plain", "tiny-Q4_K_M.gguf"
endpoint = urlsplit(os.environ["HF_ENDPOINT"])
data = (ORIGINALS / NAME / FILE).read_bytes()


def ask(method: str, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(endpoint.hostname or "", endpoint.port)
    connection.request(method, endpoint.path + path, headers={"User-Agent": "llama-cpp/b1", **headers})
    response = connection.getresponse()
    return response, response.read()


_, refs = ask("GET", f"/api/models/{NAME}/refs", Accept="application/json")
commit = next(branch["targetCommit"] for branch in json.loads(refs)["branches"] if branch["name"] == "main")
_, tree = ask("GET", f"/api/models/{NAME}/tree/{commit}?recursive=true", Accept="application/json")
(entry,) = (entry for entry in json.loads(tree) if entry["path"] == FILE)
oid = entry.get("lfs", entry)["oid"]
page = f"/{NAME}/resolve/{commit}/{FILE}"
head, _ = ask("HEAD", page)
assert (head.status, head.headers["accept-ranges"], int(head.headers["content-length"])) == (200, "bytes", len(data))
assert head.headers["etag"] == f'"{oid}"'
whole, body = ask("GET", page)
assert (whole.status, body) == (200, data)
for begun in (1, 12_345, len(data) - 1):
    rest, body = ask("GET", page, Range=f"bytes={begun}-")
    assert (rest.status, body) == (206, data[begun:])
