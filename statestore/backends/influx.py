"""InfluxDB, 2.x through its client and 1.x through plain HTTP: writing to it, and asking it.

What is promised: a write is done when the server said so; a failure is a `BackendError`, and one
of the connection or of a server that is not up is a `BackendUnavailable`; a query that failed is no
empty answer; queries reach back to 1970, without a horizon. The piece 0 of a document is sent by
itself, once all else is acknowledged: of a request that is refused in part, the rest is written,
and a revision that is found is to be there whole. The token is in no message, log or ``repr``;
no proxy and no ``.netrc`` is used, and no redirect is followed. An answer that does not end is one
that did not come, however slowly its bytes do (`statestore.fills.sources.bounded`).

What is written is in `statestore.backends.points`. One module, because what the two versions answer
to the same five questions is best compared side by side.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from statestore.backends.mirrored import Held, Kind, Revision, Series
from statestore.backends.points import MEASUREMENTS, STATES, lines, requests_of, tag, untag
from statestore.disk import codec
from statestore.errors import BackendError, BackendUnavailable, ConfigError, ContentRefused
from statestore.fills.sources import bounded

if TYPE_CHECKING:
    from influxdb_client.client.influxdb_client import InfluxDBClient
    from requests import Response

_FOREVER = "2262-01-01T00:00:00Z"
_MAX_BYTES = 4 * codec.MAX_BYTES  # of an answer: a document, with its quotes doubled
_LONGEST_ANSWER = 200  # characters of what a server said that go into a message


@dataclass(frozen=True, slots=True)
class Health:
    """A server that is up, and answers for our bucket. `checked` is the path that was asked."""

    version: str
    checked: str


class _Api(Protocol):
    """What the two versions do differently."""

    def write(self, lines: bytes) -> None: ...

    def newest_revision(self, name: str) -> tuple[int, int] | None:
        """Return the highest revision of a state, and the instant of its first point."""

    def documents(self, name: str, revision: int, since: int) -> list[Mapping[str, Any]]:
        """Return ``at part parts id payload`` of every point of a revision."""

    def series(self, name: str, kind: Kind) -> list[Mapping[str, Any]]:
        """Return the tags of every series of a state, and ``deleted`` as last written."""

    def names(self) -> list[str]:
        """Return the names of the states there are, as tags."""


class Influx:
    """One bucket (2.x) or database (1.x). Threads may share it: each call has its connection.

    Attributes:
        address: where it is, for messages.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        org: str = "quant-system",
        bucket: str = "quant-data",
        timeout: float = 10.0,
    ) -> None:
        """Remember where it is; nothing is connected yet.

        Args:
            token: of 2.x; for 1.x ``user:password``, or None without authentication.
            bucket: of 2.x; for 1.x the database.
            timeout: seconds, of one request.

        Raises:
            ConfigError: the extra is not installed, or the URL is none or has credentials in it.
        """
        try:
            import influxdb_client  # noqa: F401
            import requests  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "a mirror in InfluxDB needs its client: pip install 'statestore[influx]'"
            ) from error
        if not _is_address(url):
            # Not quoted: what is wrong with it may be a password.
            raise ConfigError(
                "the URL of InfluxDB has to be as http://host:8086, without credentials; these "
                "belong in TRADING_STATE_INFLUXDB_TOKEN (user:password for 1.x)"
            )
        if not (token or "").isprintable():
            raise ConfigError(
                "TRADING_STATE_INFLUXDB_TOKEN has a character that no token has, as a line break"
            )
        self.url = url.rstrip("/")
        self.bucket = bucket
        self.address = f"InfluxDB at {self.url} ({bucket})"
        self._org = org
        self._token = token
        self._timeout = timeout
        self._api: _Api | None = None

    def __repr__(self) -> str:
        return f"Influx({self.url!r}, bucket={self.bucket!r})"

    def __str__(self) -> str:
        return self.address

    # What a mirror calls

    def health(self) -> Health:
        """Ask ``/health``, and ``/ping`` where there is none; then for something of our bucket.

        Raises:
            BackendUnavailable: refused, timed out, or not up (503).
            BackendError: the token or the bucket is refused.
        """
        checked = "/health"
        answer = self._get(checked)
        if answer.status_code == 404:
            checked = "/ping"
            answer = self._get(checked)
        if answer.status_code not in (200, 204):
            raise self._refused(answer.status_code, answer.content, checked)
        self.names()
        return Health(_version(answer) or "unknown", checked)

    def write(self, revision: Revision) -> None:
        """Write a revision; when it returns, the server has acknowledged all of it.

        Writing the same again changes nothing.

        Raises:
            BackendUnavailable: nobody knows what of it was written.
            BackendError: refused.
        """
        api = self._connected()
        *most, visible = lines(revision)
        for body in requests_of(most):
            api.write(body)
        api.write(visible)

    def newest(self, name: str) -> Held | None:
        """Return the highest revision of a state; of two such, the one written later.

        Raises:
            BackendError: it could not be asked.
        """
        with self._understood() as api:
            found = api.newest_revision(tag(name))
            if found is None:
                return None
            rows = api.documents(tag(name), *found)
            latest = max(int(row["at"]) for row in rows if int(row["part"]) == 0)
            pieces = {int(row["part"]): row for row in rows if int(row["at"]) == latest}
            parts = [pieces.get(number) for number in range(int(pieces[0]["parts"]))]
            return Held(
                name=name,
                revision=found[0],
                sha256=str(pieces[0]["id"]),
                instant=latest,
                parts=tuple(
                    None if part is None else str(part["payload"]).encode() for part in parts
                ),
                address=self.address,
            )

    def series(self, name: str) -> dict[Series, bool]:
        """Return every position and pair that was ever written, and whether it is deleted.

        Raises:
            BackendError: it could not be asked.
        """
        found = {}
        with self._understood() as api:
            for kind, (_, key) in MEASUREMENTS.items():
                for row in api.series(tag(name), kind):
                    series = Series(kind, untag(row[key]), untag(row.get("venue") or ""))
                    found[series] = bool(row["deleted"])
        return found

    def names(self) -> list[str]:
        """Return the names of the states there are.

        Raises:
            BackendError: it could not be asked.
        """
        with self._understood() as api:
            return sorted(untag(name) for name in api.names())

    # Talking

    @contextmanager
    def _understood(self) -> Iterator[_Api]:
        """Give what asks, for a block; what is no answer to that is an error."""
        api = self._connected()
        try:
            yield api
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise self._not_understood(error) from error

    def _not_understood(self, error: Exception) -> BackendError:
        return BackendError(
            f"{self.address} answered what is not understood ({type(error).__name__}); is it an "
            "InfluxDB? Check TRADING_STATE_INFLUXDB_URL"
        )

    def _connected(self) -> _Api:
        if self._api is None:
            answer = self._get("/ping")
            if answer.status_code not in (200, 204):
                raise self._refused(answer.status_code, answer.content, "/ping")
            old = _version(answer).startswith("1.")
            self._api = _Version1(self) if old else _Version2(self)
        return self._api

    def _get(self, path: str) -> Response:
        return self._send("GET", path)

    def _send(
        self,
        method: str,
        path: str,
        *,
        auth: tuple[bytes, bytes] | None = None,
        params: Mapping[str, str] | None = None,
        data: bytes | Mapping[str, str] | None = None,
    ) -> Response:
        import requests
        from requests.auth import HTTPBasicAuth

        try:
            with requests.Session() as session:
                session.trust_env = False
                response = session.request(
                    method,
                    self.url + path,
                    auth=HTTPBasicAuth(*auth) if auth else None,
                    params=params,
                    data=data,
                    timeout=self._timeout,
                    allow_redirects=False,
                    stream=True,
                )
                bounded.read_whole(response, _MAX_BYTES)
                return response
        except bounded.TooMuch as error:
            raise self._unreachable(error) from None
        except requests.RequestException as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> BackendUnavailable:
        text = self._without_token(str(error))
        system = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
        if system:
            why = system[1]
        elif "timed out" in text:
            why = f"no answer within {self._timeout:g} s"
        else:
            why = text[:_LONGEST_ANSWER] or type(error).__name__
        return BackendUnavailable(
            f"{self.address} cannot be reached: {why}; look whether the server runs and whether "
            "TRADING_STATE_INFLUXDB_URL is right"
        )

    def _refused(self, status: int, body: bytes | str | None, doing: str) -> BackendError:
        """Return what an answer that is no success means."""
        said = self._without_token(_said(body))[:_LONGEST_ANSWER]
        what = f"{self.address} answered {status} to {doing}{': ' + said if said else ''}"
        if status == 429 or status >= 500:
            return BackendUnavailable(f"{what}; it is not up, or has too much to do")
        advice = {
            401: "the token is refused: check TRADING_STATE_INFLUXDB_TOKEN (user:password for 1.x)",
            403: f"the token has no permission for {self.bucket}: it needs to read and to write it",
            404: f"make {self.bucket}, or check TRADING_STATE_INFLUXDB_BUCKET and _ORG",
        }.get(status, "")
        if doing in ("/ping", "/health"):
            advice = "check TRADING_STATE_INFLUXDB_URL"
        # Of a question it says nothing about what is to be written.
        if status in (400, 413, 422) and doing.endswith("/write"):
            return ContentRefused(what)
        return BackendError(f"{what}{'; ' + advice if advice else ''}")

    def _without_token(self, text: str) -> str:
        token = self._token or ""
        basic = base64.b64encode(token.encode()).decode()
        for secret in filter(None, [token, basic, token.partition(":")[2]]):
            text = text.replace(secret, "***")
        return " ".join(text.split())


class _Version1:
    """The HTTP API of 1.x: ``/write`` and ``/query``, in InfluxQL with bound parameters."""

    def __init__(self, server: Influx) -> None:
        self._server = server
        user, colon, password = (server._token or "").partition(":")
        self._auth = (user.encode(), password.encode()) if colon else None

    def write(self, lines: bytes) -> None:
        params = {"db": self._server.bucket, "precision": "ns"}
        answer = self._server._send("POST", "/write", auth=self._auth, params=params, data=lines)
        if answer.status_code != 204:
            raise self._server._refused(answer.status_code, answer.content, "/write")

    def newest_revision(self, name: str) -> tuple[int, int] | None:
        rows = self._rows(
            f"SELECT MAX(seq) AS seq FROM {STATES} WHERE state = $state AND part = '0'", state=name
        )
        return (int(rows[0]["seq"]), int(rows[0]["time"])) if rows else None

    def documents(self, name: str, revision: int, since: int) -> list[Mapping[str, Any]]:
        rows = self._rows(
            f"SELECT part, parts, id, payload FROM {STATES} "
            f"WHERE state = $state AND seq = {revision:d} AND time >= {since:d}",
            state=name,
        )
        return [{**row, "at": row["time"]} for row in rows]

    def series(self, name: str, kind: Kind) -> list[Mapping[str, Any]]:
        measurement, key = MEASUREMENTS[kind]
        return self._rows(
            f"SELECT LAST(deleted) AS deleted FROM {measurement} WHERE state = $state "
            f"GROUP BY {key}, venue",
            state=name,
        )

    def names(self) -> list[str]:
        rows = self._rows(f"SHOW TAG VALUES FROM {STATES} WITH KEY = state")
        return [row["value"] for row in rows]

    def _rows(self, query: str, **bound: str) -> list[Mapping[str, Any]]:
        answer = self._server._send(
            "POST",
            "/query",
            auth=self._auth,
            data={
                "db": self._server.bucket,
                "epoch": "ns",
                "q": query,
                "params": json.dumps(bound),
            },
        )
        if answer.status_code != 200:
            raise self._server._refused(answer.status_code, answer.content, "/query")
        result = json.loads(answer.content)["results"][0]
        # A query that failed is answered with 200.
        if "error" in result:
            lost = "database not found" in result["error"]
            raise self._server._refused(404 if lost else 400, result["error"], "/query")
        return [
            dict(zip(series["columns"], values, strict=True)) | series.get("tags", {})
            for series in result.get("series", [])
            for values in series["values"]
        ]


class _Version2:
    """The API of 2.x: Flux queries and synchronous writes, through influxdb-client."""

    def __init__(self, server: Influx) -> None:
        self._server = server
        if not (server._token or "").isascii():
            raise ConfigError(
                "TRADING_STATE_INFLUXDB_TOKEN has a character that no token of InfluxDB 2 has"
            )

    def write(self, lines: bytes) -> None:
        from influxdb_client.service.write_service import WriteService

        doing = "/api/v2/write"
        with self._client(doing) as client:
            # `WriteApi` takes any 2xx for done: a partial write (201), and a proxy's page (200).
            service = WriteService(client.api_client)  # type: ignore[no-untyped-call]
            _, status, _ = service.post_write_with_http_info(  # type: ignore[no-untyped-call]
                org=self._server._org,
                bucket=self._server.bucket,
                body=lines,
                precision="ns",
                content_type="text/plain; charset=utf-8",
            )
        if status != 204:
            raise self._server._refused(status, None, doing)

    def newest_revision(self, name: str) -> tuple[int, int] | None:
        rows = self._rows(
            STATES,
            name,
            'r.part == "0" and r._field == "seq"',
            "|> group() |> max() |> map(fn: (r) => ({seq: r._value, at: int(v: r._time)}))",
        )
        return (int(rows[0]["seq"]), int(rows[0]["at"])) if rows else None

    def documents(self, name: str, revision: int, since: int) -> list[Mapping[str, Any]]:
        return self._rows(
            STATES,
            name,
            "true",
            '|> pivot(rowKey: ["_time", "part"], columnKey: ["_field"], valueColumn: "_value") '
            f"|> group() |> filter(fn: (r) => r.seq == {revision:d}) "
            "|> map(fn: (r) => ({at: int(v: r._time), part: r.part, parts: r.parts, id: r.id, "
            "payload: r.payload}))",
            since=f"time(v: {since:d})",
        )

    def series(self, name: str, kind: Kind) -> list[Mapping[str, Any]]:
        rows = self._rows(MEASUREMENTS[kind][0], name, 'r._field == "deleted"', "|> last()")
        return [{**row, "deleted": row["_value"]} for row in rows]

    def names(self) -> list[str]:
        rows = self._query(
            'import "influxdata/influxdb/schema"\n'
            f'schema.tagValues(bucket: {_flux(self._server.bucket)}, tag: "state", '
            f'predicate: (r) => r._measurement == "{STATES}", start: 0)'
        )
        return [str(row["_value"]) for row in rows]

    def _rows(
        self, measurement: str, name: str, which: str, then: str, since: str = "0"
    ) -> list[Mapping[str, Any]]:
        return self._query(
            f"from(bucket: {_flux(self._server.bucket)}) "
            f"|> range(start: {since}, stop: {_FOREVER}) "
            f'|> filter(fn: (r) => r._measurement == "{measurement}" '
            f"and r.state == {_flux(name)} and {which}) {then}"
        )

    def _query(self, flux: str) -> list[Mapping[str, Any]]:
        from influxdb_client.client.flux_csv_parser import FluxCsvParser, FluxSerializationMode

        with self._client("/api/v2/query") as client:
            answer = client.query_api().query_raw(flux)
            body = bounded.read(answer, _MAX_BYTES)
            parser = FluxCsvParser(io.BytesIO(body), FluxSerializationMode.tables)
            with parser:
                list(parser.generator())  # type: ignore[no-untyped-call]
            return [record.values for table in parser.table_list() for record in table.records]

    @contextmanager
    def _client(self, doing: str) -> Iterator[InfluxDBClient]:
        import urllib3
        from influxdb_client.client.exceptions import InfluxDBError
        from influxdb_client.client.flux_csv_parser import (
            FluxCsvParserException,
            FluxQueryException,
        )
        from influxdb_client.client.influxdb_client import InfluxDBClient

        server = self._server
        try:
            with InfluxDBClient(
                server.url,
                server._token or "",
                org=server._org,
                timeout=int(server._timeout * 1000),
            ) as client:
                yield client
        except InfluxDBError as error:
            status = getattr(error.response, "status", 0) or 0
            if not status:  # TLS
                raise server._unreachable(error) from None
            raise server._refused(status, getattr(error, "body", None), doing) from None
        except FluxQueryException as error:
            raise server._refused(400, str(error), doing) from None
        except (FluxCsvParserException, csv.Error, UnicodeDecodeError) as error:
            raise server._not_understood(error) from error
        except (urllib3.exceptions.HTTPError, bounded.TooMuch) as error:
            raise server._unreachable(error) from None


def _is_address(url: str) -> bool:
    """Return whether it is that of a server, and nothing besides: no credentials, no query."""
    try:
        told = urlsplit(url)
        told.port  # noqa: B018  # raises where it is no number
    except ValueError:
        return False
    known = told.scheme in ("http", "https") and bool(told.hostname)
    return known and url.isprintable() and not (told.query or told.fragment or "@" in url)


def _flux(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return f'"{escaped}"'


def _version(answer: Response) -> str:
    """Return ``1.6.7`` or ``2.7.1`` where the server says it, without its letter."""
    return str(answer.headers.get("X-Influxdb-Version", "")).lstrip("vV")


def _said(body: bytes | str | None) -> str:
    """Return what a server said in an error, short."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        told = json.loads(text)
        text = str(told.get("message") or told.get("error") or "")
    except (ValueError, AttributeError):
        text = "" if text.lstrip().startswith("<") else text
    return text
