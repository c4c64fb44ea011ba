"""Answers of a bounded size, read within a bounded time, whatever the other side sends.

A client that reads a body to its end reads what there is, and unpacks it on the way: some kilobytes
of gzip become gigabytes. And a timeout between two bytes is no timeout where one byte comes at a
time. What is left out: headers that come a byte at a time, of which there may be 100 lines.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests import Response

# A page of 250 fills takes 200 kB. Unpacked, and for as long as one answer may take.
MAX_BYTES = 1 << 24
MAX_SECONDS = 120.0

_BLOCK = 1 << 16


class TooMuch(Exception):
    """The answer is larger, or took longer, than any that means well; says which."""


def read_whole(response: Response) -> None:
    """Read the body into the response, which has to be one that was asked for as a stream.

    Raises:
        TooMuch: it does not end where it should have; the connection is closed.
        requests.RequestException: as if the body had been read by requests.
    """
    from requests.exceptions import ConnectionError
    from urllib3.exceptions import HTTPError

    until = time.monotonic() + MAX_SECONDS
    body = bytearray()
    raw = response.raw
    read = getattr(raw, "read1", raw.read)  # before urllib3 2.1: waits for the whole block
    try:
        while block := read(_BLOCK, decode_content=True):
            body += block
            if len(body) > MAX_BYTES:
                raise TooMuch(f"the answer is longer than {MAX_BYTES} bytes")
            if time.monotonic() > until:
                raise TooMuch(f"the answer took longer than {MAX_SECONDS:g} s")
    except HTTPError as error:
        raise ConnectionError(error, request=response.request) from error
    except BaseException:
        response.close()
        raise
    raw.release_conn()
    # Where requests keeps a body that it has read.
    response._content = bytes(body)
    response._content_consumed = True  # type: ignore[attr-defined]
