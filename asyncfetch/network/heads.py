"""Where the head of an answer ends, so that httpcore is handed the head and a body is left to its reader.

httpcore's parser, h11, takes what it is given whole and keeps what lies beyond the head. Who then reads
the body from the socket would miss those bytes, or take them for others. So the two must agree
about the end of each head, byte for byte. Pure: no socket, no clock.
"""

from __future__ import annotations

import re

__all__ = ["HeadSplitter"]

# The end of a head whose lines end as RFC 9112 says, or a line that ends otherwise. h11 takes those too.
_END_OR_BARE = re.compile(rb"(?<!\r)\n|\r\n\r\n")
_NO_BODY = (101, 204, 304)  # whatever a length says
_STATUS = re.compile(rb"HTTP/[0-9]\.[0-9] ([0-9]{3})")


class HeadSplitter:
    """Takes the bytes of one answer as they come and tells the head from what follows.

    A head is told apart only where every parser sees the same: a status line first, each line ended
    by CR LF. Interim heads (1xx) belong to it. Of anything else all goes to httpcore, which takes or
    refuses it and reads the body itself.
    """

    def __init__(self) -> None:
        self._head = bytearray()  # what came so far of the head under way
        self._splitting = True
        self.at_body = False  # httpcore has the head to its last byte, and not a byte beyond

    def split(self, data: bytes) -> tuple[bytes, bytes]:
        """What of `data` is httpcore's now, and what is left to the reader of the body.

        The first is empty only if `data` is. Once the head has ended, who still asks here reads the
        body by himself: all is his, and `at_body` is false from then on.
        """
        if not self._splitting:
            self.at_body = False
            return data, b""
        seen = len(self._head)
        self._head += data
        while end := _END_OR_BARE.search(self._head, max(seen - 3, 0)):
            status = _STATUS.match(self._head)
            code = int(status[1]) if status and end[0] != b"\n" else 0
            if code < 100 or code in _NO_BODY:
                self._splitting = False
                return data, b""
            rest = self._head[end.end() :]
            if code >= 200:
                self._splitting, self.at_body = False, True
                return data[: len(data) - len(rest)], bytes(rest)
            self._head, seen = rest, 0
        return data, b""
