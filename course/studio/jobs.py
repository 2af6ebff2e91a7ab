"""One job at a time in a thread of its own, a short queue, and what is known of each: progress, time left, result."""

import io
import secrets
import threading
import time
import traceback
from collections import OrderedDict

from PIL import Image

from course import sample
from course.errors import CourseError
from course.studio.asked import Asked

WAITING, KEPT = 4, 12                   # jobs that may wait, and finished ones that are remembered
LOOKS = 6                               # so many glimpses on the way, if they cost little:
LOOK_SHARE = 0.2                        # of the time, at most, goes into them


class Full(CourseError):
    """Too many jobs wait already."""


class Cancelled(Exception):
    """Nobody wants the picture any more."""


class Job:
    """States: waiting, drawing, done, failed, cancelled. Written by the worker's thread, read by the server's."""

    def __init__(self, asked: Asked):
        self.id, self.asked = secrets.token_urlsafe(9), asked
        self.state, self.error, self.share = "waiting", "", 0.0
        self.pictures: list = []
        self.look: bytes | None = None                         # PNG of what is there by now
        self.looked = 0                                        # ... and the step that it is of
        self.begun: float | None = None
        self.seconds: float | None = None                      # how long it took
        self.cancel = threading.Event()
        self._looking = 0.0                                    # seconds spent on glimpses
        self._first = self._last = (0.0, 0.0)                  # time and share at the end of a step

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    def left(self) -> float | None:
        """Seconds, once two steps say how long one takes. The first also waits for the model to be loaded."""
        (began, start), (latest, share) = self._first, self._last
        if self.state != "drawing" or share <= start:
            return None
        return max(0.0, (latest - began) / (share - start) * (1 - share) - (time.perf_counter() - latest))

    def step(self, share: float, look) -> None:
        """After each step: note it, take a glimpse now and then, and stop here if that was asked for."""
        if self.cancel.is_set():
            raise Cancelled
        now, total = time.perf_counter(), self.asked.steps
        self.share, done = share, round(share * total)
        self._first, self._last = self._first if self._first[1] else (now, share), (now, share)
        every = max(2, -(-total // LOOKS))
        if done % every == 0 and done < total and self._looking <= LOOK_SHARE * (now - self.begun):
            self.look, self.looked = as_png(look()), done
            self._looking += time.perf_counter() - now


def as_png(image: Image.Image, said: dict | None = None) -> bytes:
    page = io.BytesIO()
    image.save(page, format="PNG", **({"pnginfo": sample.inside(said)} if said else {}))
    return page.getvalue()


class Worker:
    """worker.submit(asked) -> a Job to be watched; draw(asked, step) is Painter's."""

    def __init__(self, draw):
        self.draw = draw
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
        self._thread.start()

    def submit(self, asked: Asked) -> Job:
        """Raises Full."""
        with self._changed:
            if len(self._waiting()) >= WAITING:
                raise Full(f"{WAITING} pictures are waiting already: wait for one, or cancel it")
            job = Job(asked)
            self.jobs[job.id] = job
            over = [id for id, old in self.jobs.items() if old.over]
            for id in over[:max(0, len(over) - KEPT)]:
                del self.jobs[id]
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """A waiting job is gone at once, the one that is drawn after its current step; one that is over stays as it is."""
        with self._changed:
            job.cancel.set()
            if job.state == "waiting":
                job.state = "cancelled"

    def before(self, job: Job) -> int:
        """How many jobs must be over before this one begins."""
        with self._changed:
            queue = [j for j in self.jobs.values() if not j.over]
            return queue.index(job) if job in queue else 0

    def close(self) -> None:
        with self._changed:
            self._closed = True
            for job in self.jobs.values():
                job.cancel.set()
            self._changed.notify()
        self._thread.join(timeout=10)

    def _waiting(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state == "waiting"]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting())
                if self._closed:
                    return
                job = self._waiting()[0]
                job.state, job.begun = "drawing", time.perf_counter()
            try:
                job.pictures = self.draw(job.asked, job.step)
                state = "done"
            except Cancelled:
                state = "cancelled"
            except CourseError as error:
                state, job.error = "failed", str(error)
            except Exception as error:                          # a bug, or too little memory: the page stays
                traceback.print_exc()
                state, job.error = "failed", f"Something went wrong ({type(error).__name__}); the terminal says where."
            with self._changed:
                job.seconds = time.perf_counter() - job.begun
                job.state = state                               # last: who sees it may count on all the rest
