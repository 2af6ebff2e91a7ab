"""The addresses of the studio, and its start.

    GET  /                              the page
    POST /jobs                          a form as JSON -> a job, or {"errors": {field: what is wrong}}
    GET  /jobs/ID                       how far it is; DELETE cancels
    GET  /jobs/ID/look                  what is there by now
    GET  /jobs/ID/N.png, /jobs/ID/N-edges.png     the pictures
    POST /edges                         a picture -> the edges in it, as the ControlNet wants them
"""

import asyncio
import base64
import io
import json
import secrets
import socket
import sys
import webbrowser
from pathlib import Path

import numpy as np
import torch
import tornado.httpserver
import tornado.netutil
import tornado.web
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from course import pixels
from course.errors import UsageError
from course.studio import asked, painter
from course.studio.catalogue import Catalogue
from course.studio.guard import LOCAL, Guarded
from course.studio.jobs import Full, Job, Worker, as_png

HERE = Path(__file__).parent
LARGEST = 8 * 2**20                                            # bytes of a request: a drawing of 1,024 x 1,024 at its worst


class Page(Guarded):
    def get(self):
        catalogue: Catalogue = self.settings["catalogue"]
        page = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
                           trim_blocks=True, lstrip_blocks=True).get_template("index.html")
        self.finish(page.render(c=catalogue, told=catalogue.told(), first=next(iter(catalogue.models.values())), limits=asked,
                                device=self.settings["device"]))


class Asset(Guarded, tornado.web.StaticFileHandler):
    """Style, scripts, icon."""

    def get_content_type(self):
        """Said here, since on Windows the registry may hold something else, and then no script would run."""
        return {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}[Path(self.absolute_path).suffix]


class Jobs(Guarded):
    def post(self):
        form = self.json()
        if form is None:
            return
        try:
            job = self.settings["worker"].submit(asked.read(form, self.settings["catalogue"]))
        except asked.Mistakes as mistakes:
            self.set_status(400)
            self.finish({"errors": mistakes.by_field})
        except Full as full:
            self.set_status(429)
            self.finish({"error": str(full).capitalize() + "."})
        else:
            self.set_status(201)
            self.finish(told(job, self.settings))

    def json(self):
        """The request's JSON; None where it is none, and then the answer is given."""
        if self.request.headers.get("Content-Type", "").split(";")[0].strip() != "application/json":
            self.set_status(415)
            self.finish({"error": "JSON is expected."})
            return None
        try:
            return json.loads(self.request.body)
        except (ValueError, RecursionError):
            self.set_status(400)
            self.finish({"error": "That is no JSON."})
            return None


class OneJob(Guarded):
    def job(self, id: str) -> Job:
        job = self.settings["worker"].jobs.get(id)
        if job is None:
            raise tornado.web.HTTPError(404)
        return job

    def get(self, id: str):
        self.finish(told(self.job(id), self.settings))

    def delete(self, id: str):
        job = self.job(id)
        self.settings["worker"].cancel(job)
        self.finish(told(job, self.settings))


class Look(OneJob):
    def get(self, id: str):
        look = self.job(id).look
        if look is None:
            raise tornado.web.HTTPError(404)
        self.set_header("Content-Type", "image/png")
        self.finish(look)


class Finished(OneJob):
    def get(self, id: str, number: str, edges: str | None):
        pictures = self.job(id).pictures
        if int(number) >= len(pictures):
            raise tornado.web.HTTPError(404)
        picture = pictures[int(number)]
        self.set_header("Content-Type", "image/png")
        self.finish(as_png(picture.edges) if edges else as_png(picture.image, picture.said))


class Edges(Jobs):
    def post(self):
        form = self.json()
        if form is None:
            return
        try:
            if not isinstance(form, dict) or not isinstance(form.get("size"), int) or not 8 <= form["size"] <= 1024:
                raise UsageError("A picture and its size are expected.")
            with Image.open(io.BytesIO(asked.png(form.get("picture"), form["size"]))) as image:
                rgb = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]       # (1,3,S,S) uint8
        except (UsageError, OSError, SyntaxError, ValueError) as error:
            self.set_status(400)
            self.finish({"errors": {"hint": str(error)}})
            return
        found = as_png(painter.edges(pixels.to_unit(rgb)))
        self.finish({"edges": "data:image/png;base64," + base64.b64encode(found).decode()})


def told(job: Job, settings: dict) -> dict:
    """What the page is told of a job."""
    said = {"id": job.id, "state": job.state, "share": job.share, "left": job.left(), "looked": job.looked if job.look else 0,
            "steps": job.asked.steps, "before": settings["worker"].before(job) if job.state == "waiting" else 0,
            "error": job.error, "seconds": job.seconds}
    if job.state == "done":
        said["asked"] = job.asked.told()
        said["unread"] = job.pictures[0].unread
        said["command"] = asked.command(job.asked, settings["typed"])
        said["pictures"] = [{"seed": p.seed, "oracle": p.oracle, "command": p.said["command"], "width": p.image.width,
                             "height": p.image.height} for p in job.pictures]
    return said


def application(catalogue: Catalogue, worker: Worker, token: str, cookie: str, local_only: bool, device: str,
                typed: str = "auto") -> tornado.web.Application:
    return tornado.web.Application([
        (r"/", Page), (r"/jobs", Jobs), (r"/jobs/([\w-]+)", OneJob), (r"/jobs/([\w-]+)/look", Look),
        (r"/jobs/([\w-]+)/(\d{1,3})(-edges)?\.png", Finished), (r"/edges", Edges),
        (r"/static/(.*)", Asset, {"path": str(HERE / "static")})],
        default_handler_class=Nothing, log_function=quiet, catalogue=catalogue, worker=worker, token=token, cookie=cookie,
        local_only=local_only, device=device, typed=typed)


class Nothing(Guarded):
    def prepare(self):
        super().prepare()
        raise tornado.web.HTTPError(404)


def quiet(handler) -> None:
    """No line for each request: the terminal is for what matters."""


async def serve(catalogue: Catalogue, host: str, port: int, device: str, typed: str = "auto", ready=lambda address: None) -> None:
    """Listen until cancelled. ready(address), with the token in it, is called once. UsageError: the port is taken."""
    try:
        sockets = tornado.netutil.bind_sockets(port, host)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port} ({error.strerror or error}); --port 0 takes a free one") from None
    port = sockets[0].getsockname()[1]
    worker, token = Worker(painter.Painter(device, typed).draw), secrets.token_urlsafe(24)
    server = tornado.httpserver.HTTPServer(
        application(catalogue, worker, token, f"course-studio-{port}", host in LOCAL, device, typed), max_body_size=LARGEST)
    server.add_sockets(sockets)
    try:
        ready(f"http://{shown(host)}:{port}/?token={token}")
        await asyncio.Event().wait()
    finally:
        server.stop()
        worker.close()


def shown(host: str) -> str:
    """What to type into a browser on this machine to reach who listens on `host`."""
    if host in ("", "0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def run(catalogue: Catalogue, host: str, port: int, device: str, typed: str, browser: bool) -> None:
    """The command: say where it listens, open a browser, and go on until Ctrl-C."""
    if host not in LOCAL:
        print(f"warning: with --host {host} the studio can be reached from other machines. Whoever has the address with its "
              "token can draw here and see what you draw; nothing is encrypted. Without --host it stays on this machine.",
              file=sys.stderr)

    def ready(address: str) -> None:
        print(f"the studio: {address}\nCtrl-C ends it", flush=True)
        if browser:
            webbrowser.open(address)

    try:
        asyncio.run(serve(catalogue, host, port, device, typed, ready))
    except KeyboardInterrupt:
        print("\nclosed")
