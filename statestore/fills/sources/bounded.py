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
    from urllib3 import BaseHTTPResponse

# A page of 250 fills takes 200 kB. Unpacked, and for as long as one answer may take.
MAX_BYTES = 1 << 24
MAX_SECONDS = 120.0

_BLOCK = 1 << 16


class TooMuch(Exception):
    """The answer is larger, or took longer, than any that means well; says which."""


def read_whole(response: Response, max_bytes: int | None = None) -> None:
    """Read the body into the response, which has to be one that was asked for as a stream.

    Args:
        max_bytes: of the body, unpacked; `MAX_BYTES` unless given.

    Raises:
        TooMuch: it does not end where it should have; the connection is closed.
        requests.RequestException: as if the body had been read by requests.
    """
    from requests.exceptions import ConnectionError
    from urllib3.exceptions import HTTPError

    try:
        body = read(response.raw, max_bytes or MAX_BYTES)
    except HTTPError as error:
        raise ConnectionError(error, request=response.request) from error
    except BaseException:
        response.close()
        raise
    # Where requests keeps a body that it has read.
    response._content = body
    response._content_consumed = True  # type: ignore[attr-defined]


def read(raw: BaseHTTPResponse, max_bytes: int) -> bytes:
    """Return the body of an answer that was asked for as a stream, and give its connection back.

    Raises:
        TooMuch: it does not end where it should have; the connection is closed.
        urllib3.exceptions.HTTPError: it broke off.
    """
    until = time.monotonic() + MAX_SECONDS
    body = bytearray()
    read = getattr(raw, "read1", raw.read)  # before urllib3 2.1: waits for the whole block
    try:
        while block := read(_BLOCK, decode_content=True):
            body += block
            if len(body) > max_bytes:
                raise TooMuch(f"the answer is longer than {max_bytes} bytes")
            if time.monotonic() > until:
                raise TooMuch(f"the answer took longer than {MAX_SECONDS:g} s")
    except BaseException:
        raw.close()
        raise
    raw.release_conn()
    return bytes(body)
