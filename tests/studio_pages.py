"""A studio that runs beside the tests, on a free port of this machine, and a client that talks HTTP to it."""

import asyncio
import http.client
import json
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

from course.studio import server


@contextmanager
def running(catalogue, host: str = "127.0.0.1"):
    """The address with its token, as `course studio` prints it."""
    address, begun = [], threading.Event()
    loop = asyncio.new_event_loop()

    def ready(where):
        address.append(where)
        begun.set()

    async def listen():
        await server.serve(catalogue, host, 0, "cpu", "cpu", ready)

    task = loop.create_task(listen())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([task])), daemon=True)
    thread.start()
    assert begun.wait(20)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(20)
    assert not thread.is_alive()
    loop.close()


class Client:
    """What a browser would send; any header can be another."""

    def __init__(self, address: str):
        parts = urlsplit(address)
        self.host, self.port, self.token = parts.hostname, parts.port, parts.query.removeprefix("token=")
        self.cookie = f"course-studio-{self.port}={self.token}"

    def ask(self, path: str, method: str = "GET", body=None, **headers: str | None):
        """(status, headers, bytes)."""
        sent = {"Cookie": self.cookie, "Host": f"{self.host}:{self.port}"}
        if body is not None:
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, body, {name: value for name, value in sent.items() if value is not None})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def json(self, path: str, method: str = "GET", body=None, **headers):
        status, _, said = self.ask(path, method, body, **headers)
        return status, json.loads(said)

    def over(self, job: dict, seconds: float = 60) -> dict:
        """The job, once it is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            _, now = self.json(f"/jobs/{job['id']}")
            if now["state"] in ("done", "failed", "cancelled"):
                return now
            time.sleep(0.02)
        raise AssertionError(f"not over after {seconds} s: {now}")
