"""`course studio` over real HTTP, with a tiny model: what it draws, what it refuses, and who may talk to it."""

import base64
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from course import cli, controlnet, lora
from course.adapt import control
from course.data import hints
from course.errors import CheckpointError, CourseError, UsageError
from course.pipeline import StableDiffusion
from course.sample import read_image
from course.studio import asked, catalogue, guard, jobs, server
from course.tokenizer import Tokenizer
from tests.conftest import TINY, randomise
from tests.studio_pages import Client, running

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a ControlNet and a LoRA of random weights."""
    place = tmp_path_factory.mktemp("studio")
    torch.manual_seed(0)
    pipe = StableDiffusion(TINY, Tokenizer.train(["a small red circle on a white background"] * 3, num_merges=40, length=16))
    pipe.save(place / "tiny")
    control.save(randomise(controlnet.ControlNet.from_unet(pipe.unet, (8, 8, 16))), place / "net", "edges")
    lora.inject(pipe.unet, 2)
    randomise(pipe.unet, 3)
    lora.save({"unet": pipe.unet}, place / "mine.safetensors")
    return place


@pytest.fixture(scope="module")
def offered(folder):
    return catalogue.collect([str(folder / "tiny")], [str(folder / "mine.safetensors")], [str(folder / "net")])


@pytest.fixture(scope="module")
def client(offered):
    with running(offered) as address:
        yield Client(address)


@pytest.fixture
def form(folder):
    return {"prompt": "a red circle", "negative_prompt": "", "model": str(folder / "tiny"), "sampler": "ddim", "steps": 3,
            "guidance": 2, "seed": 7, "count": 1, "loras": {}}


def drawing(size: int = 32, empty: bool = False) -> str:
    page = Image.new("RGBA", (size, size), "black")             # as a browser's canvas is saved
    if not empty:
        ImageDraw.Draw(page).rectangle((8, 8, 23, 23), outline="white")
    file = io.BytesIO()
    page.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ---- what is drawn

def test_what_is_shipped_is_offered():
    told = catalogue.collect([], [], []).told()["models"]
    assert list(told)[0] == "scenes64" and "scenes64-xl-refiner" not in told
    assert told["scenes64"] == told["scenes64"] | {"size": 64, "loras": ["scenes64-heart"], "controls": ["scenes64-edges"]}
    assert told["scenes64-fast"]["steps"] == 2 and told["scenes64-pixel"]["loras"] == told["scenes64-xl"]["controls"] == []


@pytest.mark.parametrize("prompt", ["a red circle", "-a \"$b\" 'c\\"])
def test_the_command_that_is_shown_draws_the_same(client, folder, form, prompt, tmp_path, monkeypatch):
    form |= {"prompt": prompt, "sampler": "dpmpp_2m", "guidance": 1.7, "negative_prompt": "-a ring", "hint": drawing(),
             "loras": {str(folder / "mine.safetensors"): 0.65}, "control": {"name": str(folder / "net"), "weight": 0.8}}
    status, job = client.json("/jobs", "POST", form)
    assert status == 201
    job = client.over(job)
    assert job["state"] == "done", job
    _, headers, found = client.ask(f"/jobs/{job['id']}/0.png")
    picture = Image.open(io.BytesIO(found))
    assert headers["Content-Type"] == "image/png" and picture.size == (256, 256)

    monkeypatch.chdir(tmp_path)
    Path("edges.png").write_bytes(base64.b64decode(form["hint"].split(",")[1]))
    monkeypatch.setattr("sys.argv", shlex.split(job["command"]))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    typed = Image.open("sample.png")
    assert typed.tobytes() == picture.tobytes()
    # both carry what they were made with
    said, typed_said = json.loads(picture.text["course"]), json.loads(typed.text["course"])
    assert picture.text["Description"] == typed.text["Description"] == prompt
    same = ("prompts", "seeds", "negative_prompt", "steps", "guidance_scale", "sampler", "model")
    assert [said[key] for key in same] == [typed_said[key] for key in same]
    assert said["seeds"] == [7] and shlex.split(said["command"]) == shlex.split(typed_said["command"]) == sys.argv


def test_each_picture_of_several_has_its_seed(client, form):
    _, job = client.json("/jobs", "POST", form | {"count": 3})
    job = client.over(job)
    assert [p["seed"] for p in job["pictures"]] == [7, 8, 9] and "--count 3" in job["command"]
    _, alone = client.json("/jobs", "POST", form | {"seed": 8})
    alone = client.over(alone)
    paths = f"/jobs/{job['id']}/1.png", f"/jobs/{alone['id']}/0.png"
    first, second = (Image.open(io.BytesIO(client.ask(path)[2])) for path in paths)
    said = json.loads(first.text["course"])
    assert said["seeds"] == [8] and "--seed 8 " in said["command"]
    assert all(abs(a - b) <= 1 for a, b in zip(first.tobytes(), second.tobytes(), strict=True))      # a batch rounds otherwise
    assert client.ask(f"/jobs/{job['id']}/3.png")[0] == 404


def test_what_was_too_long_is_said(client, form):
    with pytest.warns(UserWarning, match="not read"):
        _, job = client.json("/jobs", "POST", form | {"prompt": "a red circle " * 9})
        job = client.over(job)
    assert job["state"] == "done" and job["unread"].endswith("circle")


def test_a_lora_leaves_nothing_behind(client, folder, form):
    def drawn(**more):
        _, job = client.json("/jobs", "POST", form | more)
        return Image.open(io.BytesIO(client.ask(f"/jobs/{client.over(job)['id']}/0.png")[2])).tobytes()
    plain, adapted, after = drawn(), drawn(loras={str(folder / "mine.safetensors"): 1}), drawn()
    assert plain == after != adapted


def test_edges_of_a_loaded_picture(client, tmp_path):
    page = Image.new("RGB", (64, 64), "pink")
    ImageDraw.Draw(page).ellipse((16, 16, 47, 47), fill="green")
    page.save(tmp_path / "x.png")
    url = "data:image/png;base64," + base64.b64encode((tmp_path / "x.png").read_bytes()).decode()
    status, said = client.json("/edges", "POST", {"picture": url, "size": 64})
    found = Image.open(io.BytesIO(base64.b64decode(said["edges"].split(",")[1])))
    expected = (255 * hints.edges(read_image(tmp_path / "x.png"))[0]).byte().numpy()
    assert status == 200 and found.tobytes() == expected.tobytes() and expected.any()
    for wrong in ({}, {"picture": url}, {"picture": url, "size": 32}, {"picture": "x", "size": 64}, [], 5):
        status, said = client.json("/edges", "POST", wrong)
        assert status == 400 and said["errors"]["hint"], wrong


# ---- what is refused, at its field

@pytest.mark.parametrize("field, value, words", [
    ("prompt", "  \n", "Say what to draw"), ("prompt", None, "Say what to draw"), ("prompt", "x" * 1001, "At most 1,000"),
    ("prompt", "\ud800", "Text is expected"), ("prompt", 5, "Text is expected"), ("negative_prompt", ["x"], "Text is expected"),
    ("model", "nowhere", "Choose one of"), ("model", {}, "Choose one of"), ("sampler", "magic", "ddim, ddpm, euler"),
    ("steps", 0, "from 1 to 200"), ("steps", 2.5, "A whole number"), ("steps", "3", "A whole number"),
    ("steps", True, "A whole number"),
    ("steps", None, "A whole number"), ("guidance", 31, "from 0 to 30"), ("guidance", float("nan"), "A number"),
    ("guidance", None, "A number"), ("seed", -1, "from 0 to"), ("seed", 2**32, "from 0 to"), ("count", 9, "from 1 to 8"),
    ("loras", {"other": 1}, "Choose one of"), ("loras", ["x"], "each LoRA with its weight"),
    ("loras", {"scenes64-heart": 1}, "another model"), ("loras", {"LORA": 2.5}, "from -2 to 2"),
    ("control", "NET", "a ControlNet with its weight"), ("control", {"name": "scenes64-edges", "weight": 1}, "another model"),
    ("control", {"name": "NET", "weight": -1}, "from 0 to 2"),
    ("hint", "data:image/png;base64,AAAA", "this is no PNG"), ("hint", None, "this is no PNG"), ("hint", 5, "this is no PNG"),
    ("hint", "SMALL", "must be 32 × 32 pixels"), ("hint", "EMPTY", "The drawing is empty"), ("form", "more", "the form has no")])
def test_mistakes_are_told_at_their_field(client, folder, form, field, value, words):
    net, mine = str(folder / "net"), str(folder / "mine.safetensors")
    if isinstance(value, str):
        value = {"SMALL": drawing(16), "EMPTY": drawing(empty=True), "NET": net}.get(value, value)
    if isinstance(value, dict):
        value = {{"LORA": mine}.get(key, key): net if of == "NET" else of for key, of in value.items()}
    if field == "hint":
        form["control"] = {"name": net, "weight": 1}
    status, said = client.json("/jobs", "POST", form | {"anything" if field == "form" else field: value})
    assert status == 400 and list(said["errors"]) == [field] and words in said["errors"][field], said


def test_all_mistakes_are_told_at_once(client, form):
    status, said = client.json("/jobs", "POST", form | {"prompt": "", "steps": 0, "seed": "x"})
    assert status == 400 and list(said["errors"]) == ["prompt", "steps", "seed"]
    assert client.json("/jobs", "POST", [1])[1] == {"errors": {"form": "expected the fields of the form as one JSON object"}}


def test_nothing_is_said_about_the_inside(client):
    for path, method, body, status in (("/nowhere", "GET", None, 404), ("/jobs/none", "GET", None, 404),
                                       ("/jobs", "GET", None, 405), ("/jobs", "POST", b"{", 400),
                                       ("/jobs", "POST", b"[" * 100_000, 400),
                                       ("/static/../server.py", "GET", None, 403), ("/static/nothing.js", "GET", None, 404)):
        found, _, said = client.ask(path, method, body)
        assert found == status and b"Traceback" not in said and list(json.loads(said)) == ["error"], (path, found, said)
    assert client.json("/jobs", "POST", {}, Content_Type="text/plain")[0] == 415


# ---- one at a time

def test_cancelling_what_is_drawn_and_what_waits(client, form):
    _, long = client.json("/jobs", "POST", form | {"steps": 200, "count": 8})
    _, next_one = client.json("/jobs", "POST", form)
    while (now := client.json(f"/jobs/{long['id']}")[1])["state"] == "waiting":
        time.sleep(0.02)
    assert now["state"] == "drawing" and client.json(f"/jobs/{next_one['id']}")[1]["before"] == 1
    assert client.json(f"/jobs/{next_one['id']}", "DELETE")[1]["state"] == "cancelled"
    client.ask(f"/jobs/{long['id']}", "DELETE")
    assert client.over(long)["state"] == "cancelled" and client.over(long)["share"] < 1
    _, after = client.json("/jobs", "POST", form)
    assert client.over(after)["state"] == "done"


def wish(**more) -> asked.Asked:
    return asked.Asked("x", "", "tiny", "ddim", 25, 1.0, 0, 1, **more)


def test_the_queue_is_short_and_in_order():
    go, seen = threading.Event(), []

    def draw(asked, step):
        go.wait(10)
        seen.append(asked.seed)
        return []
    worker = jobs.Worker(draw)
    first = worker.submit(asked.Asked("x", "", "tiny", "ddim", 25, 1.0, 100, 1))
    while first.state == "waiting":
        time.sleep(0.01)
    waiting = [worker.submit(asked.Asked("x", "", "tiny", "ddim", 25, 1.0, i, 1)) for i in range(jobs.WAITING)]
    with pytest.raises(jobs.Full, match="4 pictures are waiting"):
        worker.submit(wish())
    assert [worker.before(job) for job in waiting] == [1, 2, 3, 4]
    worker.cancel(waiting[1])
    go.set()
    while not waiting[-1].over:
        time.sleep(0.01)
    assert seen == [100, 0, 2, 3] and [job.state for job in waiting] == ["done", "cancelled", "done", "done"]
    worker.close()


def test_only_the_last_jobs_are_remembered():
    worker = jobs.Worker(lambda asked, step: [])
    made = []
    for _ in range(jobs.KEPT + 5):
        made.append(worker.submit(wish()))
        while not made[-1].over:
            time.sleep(0.001)
    assert made[0].id not in worker.jobs and made[-1].id in worker.jobs and len(worker.jobs) <= jobs.KEPT + 1
    worker.close()


@pytest.mark.parametrize("error, words", [(UsageError("none of the steps lies there"), "none of the steps lies there"),
                                          (RuntimeError("secret"), "Something went wrong (RuntimeError)")])
def test_a_job_that_fails_says_so_and_the_next_one_is_drawn(error, words, capsys):
    def draw(asked, step):
        if asked.count == 1:
            raise error
        return ["picture"]
    worker = jobs.Worker(draw)
    job, after = worker.submit(wish()), worker.submit(asked.Asked("x", "", "tiny", "ddim", 25, 1.0, 0, 2))
    while not after.over:
        time.sleep(0.01)
    assert job.state == "failed" and words in job.error and "secret" not in job.error and after.pictures == ["picture"]
    assert ("Traceback" in capsys.readouterr().err) == (not isinstance(error, CourseError))
    worker.close()


def test_a_glimpse_now_and_then_and_the_time_left():
    job = jobs.Job(wish())
    job.state, job.begun = "drawing", time.perf_counter()
    looks = []

    def look():
        looks.append(job.share)
        return Image.new("L", (2, 2))
    for i in range(25):
        time.sleep(0.002)
        job.step((i + 1) / 25, look)
        assert (job.left() is None) == (i == 0)
    assert 1 <= len(looks) <= jobs.LOOKS and 1.0 not in looks and job.left() == 0
    job.cancel.set()
    with pytest.raises(jobs.Cancelled):
        job.step(1.0, look)


# ---- who may talk to it

def test_the_page_needs_the_token_and_nothing_from_elsewhere(client):
    assert client.ask("/", Cookie=None)[0] == client.ask("/?token=wrong", Cookie=None)[0] == 403
    assert client.ask("/jobs", "POST", {}, Cookie=f"course-studio-{client.port}=x")[0] == 403
    status, headers, said = client.ask("/", Cookie=None, Accept="text/html")
    assert status == 403 and headers["Content-Type"].startswith("text/plain") and b"Open the address" in said
    status, headers, page = client.ask(f"/?token={client.token}", Cookie=None)
    assert status == 200 and re.search(r"HttpOnly.*SameSite=Strict", headers["Set-Cookie"])
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in headers["Content-Security-Policy"] and "https:" not in headers["Content-Security-Policy"]
    text = page.decode()
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", text)          # nothing that the policy would refuse
    named = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert "static/studio.js" in named and all(name.startswith("static/") for name in named)
    for name in {*named, "static/drawing.js"}:
        status, headers, asset = client.ask(f"/{name}")
        assert status == 200 and headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(rb"(?<!xmlns=\")https?://|@import|url\([\"'\w/]", asset), name
    assert client.ask("/static/studio.js")[1]["Content-Type"] == "text/javascript"


@pytest.mark.parametrize("headers, status", [
    ({"Host": "studio.evil.example"}, 403), ({"Host": "127.0.0.1.evil.example:80"}, 403), ({"Host": "[::1"}, 403),
    ({"Host": "localhost:4000"}, 200),                                       # forwarded from another machine by ssh
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://127.0.0.1:1"}, 403),
    ({"Sec_Fetch_Site": "cross-site"}, 403), ({"Sec_Fetch_Site": "same-site"}, 403),
    ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 200),   # a link in JupyterLab's terminal
    ({"Sec_Fetch_Site": "same-origin"}, 200), ({"Sec_Fetch_Site": "none"}, 200)])
def test_other_pages_are_refused(client, headers, status):
    assert client.ask("/", **headers)[0] == status
    if status == 403 or "Sec_Fetch_Mode" in headers:
        assert client.ask("/jobs", "POST", {}, **headers)[0] == 403


def test_our_own_page_may_post(client):
    own = {"Host": f"localhost:{client.port}", "Origin": f"http://localhost:{client.port}", "Sec_Fetch_Site": "same-origin"}
    assert client.ask("/jobs", "POST", {}, **own)[0] == 400


def test_it_listens_on_this_machine_alone(client):
    socket.create_connection(("127.0.0.1", client.port), 5).close()
    with pytest.raises(OSError):                                             # also an address of this machine, but not that one
        socket.create_connection(("127.0.0.2", client.port), 2)


def test_another_host_is_warned_of_and_needs_the_token(offered, capsys, monkeypatch):
    asks = []
    monkeypatch.setattr(server.asyncio, "run", lambda coroutine: (coroutine.close(), asks.append(1)))
    for host, warned in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True), ("192.168.0.7", True)):
        server.run(offered, host, 0, "cpu", "cpu", False)
        assert ("can be reached from other machines" in capsys.readouterr().err) == warned
    assert len(asks) == 4
    request = type("Request", (), {"host": "lab-7:8899", "headers": {}, "method": "GET"})
    assert guard.refusal(request, local_only=True) and guard.refusal(request, local_only=False) is None


@pytest.mark.parametrize("words, said", [
    (["--port", "70000"], "port must lie in"), (["--model", "nowhere"], "no model of the course in nowhere"),
    (["--model", "scenes64-xl-refiner"], "is a refiner"), (["--lora", "nowhere"], "no LoRA in nowhere"),
    (["--control", "nowhere"], "no ControlNet in nowhere"), (["--device", "tpu9"], "tpu9"), (["--port", "TAKEN"], "--port 0")])
def test_misuse(words, said, monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        words = [str(other.getsockname()[1]) if word == "TAKEN" else word for word in words]
        monkeypatch.setattr("sys.argv", ["course", "studio", "--no-browser", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
    err = capsys.readouterr().err
    assert end.value.code == 2 and said in err and "Traceback" not in err


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "pipeline.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        catalogue.collect([str(tmp_path)], [], [])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to all processes of a console")
def test_the_command_listens_until_ctrl_c():
    process = subprocess.Popen([sys.executable, "-m", "course", "studio", "--no-browser", "--port", "0"], text=True, cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", process.stdout.readline())[0]
        assert Client(address).ask("/")[0] == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "closed" in out and err == ""
