"""What is made of answers that no healthy InfluxDB gives: a proxy's, a login page, half of one."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from statestore.backends import influx as module
from statestore.backends.influx import Influx
from statestore.backends.mirrored import Revision
from statestore.errors import BackendError, BackendUnavailable, ConfigError, ContentRefused
from statestore.fills.sources import bounded

pytest.importorskip("influxdb_client", reason="needs: pip install 'statestore[influx]'")

TOKEN = "bot:pa55word-that-is-secret"
REVISION = Revision("bot", 1, "sum", 1, b"{}", ())
VERSIONS = pytest.mark.parametrize("version", ["1.6.7", "v2.7.6"])


class Answering:
    """A server of either version that says what it is told to."""

    version = "1.6.7"
    status = 204
    body = b""
    location: str | None = None
    trickles = False

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []

    def influx(self, version: str, token: str = TOKEN) -> Influx:
        self.version = version
        return Influx(self.url, token=token, timeout=5)


@pytest.fixture
def servers() -> Iterator[Callable[[], Answering]]:
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start() -> Answering:
        said = Answering()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(204, b"") if self.path == "/ping" else self._told()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if said.trickles:
                    self._trickle()
                else:
                    self._told()

            def _told(self) -> None:
                said.asked.append(self.path)
                self._answer(said.status, said.body)

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("X-Influxdb-Version", said.version)
                self.send_header("Content-Length", str(len(body)))
                if said.location is not None:
                    self.send_header("Location", said.location)
                self.end_headers()
                self.wfile.write(body)

            def _trickle(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                with suppress(OSError):  # whoever asked has gone
                    while True:
                        self.wfile.write(b"x")
                        time.sleep(0.01)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        said.url = f"http://127.0.0.1:{server.server_port}"
        return said

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(servers: Callable[[], Answering]) -> Answering:
    return servers()


@VERSIONS
@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize(
    "body", [b"", b"<html>please log in</html>", b'{"code":"partial"}', b"\xff"]
)
def test_only_204_is_an_acknowledgement(
    server: Answering, version: str, status: int, body: bytes
) -> None:
    server.status, server.body = status, body

    with pytest.raises(BackendError):
        server.influx(version).write(REVISION)


@VERSIONS
@pytest.mark.parametrize(
    "body",
    [
        b"<html>please log in</html>",
        b"[]",
        b"half a\rline",
        b"\xff\xfe",
        b'{"results":[{"series":[{"columns":["time","x"],"values":[[1,2]]}]}]}',
        b"#datatype,string,long\r\n#group,false,false\r\n#default,_result,\r\n,result,x\r\n,,1\r\n",
    ],
)
@pytest.mark.parametrize("ask", [Influx.names, lambda i: i.newest("b"), lambda i: i.series("b")])
def test_an_answer_of_another_shape_is_an_error_and_no_bug(
    server: Answering, version: str, body: bytes, ask: Callable[[Influx], object]
) -> None:
    server.status, server.body = 200, body

    with pytest.raises(BackendError, match="TRADING_STATE_INFLUXDB_URL"):
        ask(server.influx(version))


@VERSIONS
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed_with_or_without_the_token(
    servers: Callable[[], Answering], version: str, status: int
) -> None:
    server, elsewhere = servers(), servers()
    server.status, server.location = status, f"{elsewhere.url}/api/v2/write"
    database = server.influx(version)

    with pytest.raises(BackendError, match=f"answered {status}"):
        database.write(REVISION)
    with pytest.raises(BackendError, match=f"answered {status}"):
        database.newest("bot")
    assert elsewhere.asked == []


@VERSIONS
def test_an_answer_that_comes_a_byte_at_a_time_is_none(
    server: Answering, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "MAX_SECONDS", 0.05)
    server.trickles = True

    with pytest.raises(BackendUnavailable, match="took longer than"):
        server.influx(version).newest("bot")


@VERSIONS
def test_an_answer_without_an_end_is_none(
    server: Answering, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    server.status, server.body = 200, b"x" * 100_000

    with pytest.raises(BackendUnavailable, match="longer than 1000 bytes"):
        server.influx(version).newest("bot")


@VERSIONS
@pytest.mark.parametrize(
    "echoed", [TOKEN, "pa55word-that-is-secret", base64.b64encode(TOKEN.encode()).decode()]
)
@pytest.mark.parametrize("before", range(170, 202, 3))
def test_no_part_of_the_token_is_in_a_message_wherever_that_is_cut(
    server: Answering, version: str, echoed: str, before: int
) -> None:
    server.status, server.body = 500, b"." * before + echoed.encode()

    with pytest.raises(BackendUnavailable) as caught:
        server.influx(version).newest("bot")
    assert not any(echoed[:length] in str(caught.value) for length in range(4, len(echoed)))


@VERSIONS
def test_what_is_too_large_or_malformed_is_the_contents_fault_only_when_written(
    server: Answering, version: str
) -> None:
    for server.status in (400, 413, 422):
        with pytest.raises(ContentRefused):
            server.influx(version).write(REVISION)
        with pytest.raises(BackendError) as caught:
            server.influx(version).newest("bot")
        assert not isinstance(caught.value, ContentRefused)


def test_a_certificate_that_is_none_is_a_connection_that_failed(server: Answering) -> None:
    database = server.influx("v2.7.6")
    database.url = server.url.replace("http:", "https:")
    database._api = module._Version2(database)  # it was reached before

    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        database.newest("bot")


@pytest.mark.parametrize("token", ["t0ken\n", "t0\x00ken", "t0ken\u200b"])
def test_a_token_with_a_line_break_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ConfigError, match="TRADING_STATE_INFLUXDB_TOKEN") as caught:
        Influx("http://127.0.0.1:8086", token=token)
    assert "t0" not in str(caught.value)


def test_a_password_of_1_x_may_have_any_letter_and_a_token_of_2_x_may_not(
    server: Answering,
) -> None:
    server.status, server.body = 200, b'{"results":[{}]}'

    assert server.influx("1.6.7", "bot:pä€sswort").newest("bot") is None
    with pytest.raises(ConfigError, match="TRADING_STATE_INFLUXDB_TOKEN"):
        server.influx("v2.7.6", "pä€sswort").newest("bot")
