"""moto's S3 in a process of its own: `python -m tests.kit.moto_server` prints its port and runs until it is ended."""

import logging

from moto.server import create_backend_app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its log lines have whole links
server = make_server("127.0.0.1", 0, create_backend_app("s3"), threaded=True)
print(server.port, flush=True)
server.serve_forever()
