"""The part of an InfluxDB 2 that a mirror talks to, on 127.0.0.1: it records every request.

It is no database: writes are parsed as line protocol and kept, the queries a mirror asks are
known by what is in their text and answered from that, as annotated CSV.
"""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "t0ken-that-is-secret"

_LINE = re.compile(
    r"(?P<measurement>\w+),(?P<tags>(?:\\.|[^ \\])*) "
    r'deleted=(?P<deleted>true|false),id="(?P<id>(?:\\.|[^"\\])*)"'
    r'(?:,parts=(?P<parts>\d+)i)?,payload="(?P<payload>(?:\\.|[^"\\])*)",seq=(?P<seq>\d+)i '
    r"(?P<at>\d+)\n?",
    re.DOTALL,
)


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def flux(self) -> str:
        text: str = json.loads(self.body)["query"]
        return text


@dataclass
class Recorder:
    """What was asked and written; `status` is the answer to everything that needs a token."""

    requests: list[Asked] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    health: int = 200
    url: str = ""

    def asked(self, path: str) -> list[Asked]:
        return [one for one in self.requests if one.path == path]

    def write(self, body: str) -> None:
        position = 0
        while position < len(body):
            match = _LINE.match(body, position)
            assert match, body[position : position + 200]
            position = match.end()
            tags = dict(
                re.sub(r"\\([ ,=])", r"\1", one).split("=", 1)
                for one in re.split(r"(?<!\\),", match["tags"])
            )
            texts = {k: re.sub(r'\\(["\\])', r"\1", match[k]) for k in ("id", "payload")}
            point = {
                "measurement": match["measurement"],
                **tags,
                **texts,
                "deleted": match["deleted"],
                "seq": int(match["seq"]),
                "at": int(match["at"]),
            }
            if match["parts"]:
                point["parts"] = int(match["parts"])
            self.points.append(point)

    def answer(self, flux: str) -> str:
        if "schema.tagValues" in flux:
            names = sorted({p["state"] for p in self.points if "part" in p})
            return _table({"_value": "string"}, [{"_value": name} for name in names])
        quoted = r'"((?:\\.|[^"\\])*)"'
        measurement = re.search(rf"_measurement == {quoted}", flux)[1]  # type: ignore[index]
        state = re.search(rf"r.state == {quoted}", flux)[1]  # type: ignore[index]
        name = re.sub(r"\\(.)", r"\1", state)
        found = [p for p in self.points if (p["measurement"], p["state"]) == (measurement, name)]
        if "max()" in flux:
            first = [p for p in found if p["part"] == "0"]
            best = max(first, key=lambda p: p["seq"], default=None)
            return _table({"seq": "long", "at": "long"}, [best] if best else [])
        if "pivot" in flux:
            revision = int(re.search(r"r.seq == (\d+)", flux)[1])  # type: ignore[index]
            since = int(re.search(r"time\(v: (\d+)\)", flux)[1])  # type: ignore[index]
            kinds = {"at": "long", "part": "string", "parts": "long"}
            kinds |= {"id": "string", "payload": "string"}
            rows = [p for p in found if p["seq"] == revision and p["at"] >= since]
            return _table(kinds, rows)
        key = {"positions": "symbol", "pair_states": "pair"}[measurement]
        last = {(p[key], p.get("venue", "")): p for p in sorted(found, key=lambda p: int(p["at"]))}
        rows = [{**p, "_value": p["deleted"], "venue": p.get("venue", "")} for p in last.values()]
        return _table({"_value": "boolean", key: "string", "venue": "string"}, rows)


def _table(kinds: dict[str, str], rows: list[dict[str, Any]]) -> str:
    """Return annotated CSV, as the query API of 2.x has it."""
    if not rows:
        return "\r\n"
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["#datatype", "string", "long", *kinds.values()])
    writer.writerow(["#group", "false", "false", *["false"] * len(kinds)])
    writer.writerow(["#default", "_result", "", *[""] * len(kinds)])
    writer.writerow(["", "result", "table", *kinds])
    for row in rows:
        writer.writerow(["", "", 0, *[row[name] for name in kinds]])
    return text.getvalue() + "\r\n"


@contextmanager
def recording_influx() -> Iterator[Recorder]:
    """Run one of one's own."""
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            split = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(split.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            recorder.requests.append(
                Asked(self.command, split.path, query, dict(self.headers), body)
            )
            if split.path == "/ping":
                return self._send(204, "")
            if split.path == "/health":
                up = recorder.health == 200
                told = {"name": "influxdb", "status": "pass" if up else "fail"}
                if not up:
                    told["message"] = "still starting"
                return self._send(recorder.health, json.dumps(told), "application/json")
            if self.headers.get("Authorization") != f"Token {TOKEN}":
                told = {"code": "unauthorized", "message": "unauthorized access"}
                return self._send(401, json.dumps(told), "application/json")
            if recorder.status != 200:
                told = {"code": "x", "message": f"told {self.headers.get('Authorization')}"}
                return self._send(recorder.status, json.dumps(told), "application/json")
            if split.path == "/api/v2/write":
                recorder.write(body.decode())
                return self._send(204, "")
            flux = json.loads(body)["query"]
            return self._send(200, recorder.answer(flux), "text/csv; charset=utf-8")

        def _send(self, status: int, text: str, kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("X-Influxdb-Version", "v2.7.6")
            self.send_header("Content-Type", kind)
            data = text.encode()
            if status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        recorder.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield recorder
        finally:
            server.shutdown()
            thread.join()
