"""The classroom: what a notebook imports to check an exercise and to go on without it.

    from course.classroom import begin, check, use

    check("schedule.add_noise", add_noise)                    # prints a report; worth its points
    add_noise = use("schedule.add_noise", add_noise)          # yours if it passes, the course's part if not

    for step in track(range(1000), "training"):               # shows how far it is
        ...
    slider(draw, 0, 999, start=300)                           # draw(t) for the t that the reader chooses: see widgets

Importing this module loads neither torch nor any check.
"""

import os
import random
from types import SimpleNamespace

from course import __version__, style
from course.classroom.widgets import attention_hover, latent_mixer, live, prompt_box, slider
from course.errors import UsageError

__all__ = ["attention_hover", "begin", "check", "figure_style", "latent_mixer", "prompt_box", "slider", "track", "use"]

PROFILES = ("quick", "cpu", "gpu")


def check(id: str, obj):
    """Check `obj` as the answer to exercise `id`, print one line per property, and return the `checks.Result`.

    Under COURSE_GRADING=1 an answer that falls short raises `checks.CheckFailed`; otherwise the notebook goes on.
    Raises UsageError for an unknown id.
    """
    from course.classroom import checks

    result = checks.find(id).run(obj)
    checks.report(result)
    if not result.passed and os.environ.get("COURSE_GRADING") == "1":
        raise checks.CheckFailed(checks.text(result))
    return result


def use(id: str, obj):
    """`obj` if it passes the check of exercise `id`; otherwise the course's own part, with a banner that says so."""
    from course.classroom import checks

    exercise = checks.find(id)
    if exercise.run(obj).passed:
        return obj
    _banner(f"Exercise {id} is not solved yet: from here on this notebook uses the course's own part instead.")
    return exercise.reference


def begin(needs: str, seed: int = 0) -> SimpleNamespace:
    """Start a chapter: check the version, choose the device, seed torch. Returns .profile, .device and .seed.

    Args:
        needs: the version of `course` the notebook was written for, "major.minor".
        seed: of Python's and torch's random numbers.

    COURSE_PROFILE says how much a chapter computes: quick (20 seconds), cpu (10 minutes at most; the default) or gpu.
    """
    import torch

    if __version__.split(".")[:2] != needs.split("."):
        raise UsageError(f"this notebook was written for course {needs}, but course {__version__} is installed: "
                         "take the notebook and the package from the same release")
    profile = os.environ.get("COURSE_PROFILE", "cpu")
    if profile not in PROFILES:
        raise UsageError(f"COURSE_PROFILE must be one of {', '.join(PROFILES)}, got {profile!r}")
    device = "cpu"
    if profile == "gpu":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if profile == "quick":
        torch.set_num_threads(1)                               # small tensors: threads cost more than they give
    random.seed(seed)
    torch.manual_seed(seed)
    print(f"course {__version__} · profile {profile} · device {device} · seed {seed}")
    return SimpleNamespace(profile=profile, device=device, seed=seed)


def figure_style(**settings) -> tuple[str, str, str, str, str]:
    """Let Matplotlib draw as all chapters do, `settings` of its own (`{"axes.titlesize": 9}`) on top; returns the colours
    blue, orange, green, red and grey."""
    import matplotlib
    matplotlib.rcParams.update(style.CHAPTER | settings)
    return style.BLUE, style.ORANGE, style.GREEN, style.RED, style.GREY


def track(steps, title: str, lines: int = 4):
    """Go through `steps`, a list or a range, and show how far: a bar with the time left for somebody who looks on, in a live
    session; `lines` plain lines on stdout where a notebook is only executed."""
    steps = list(steps)
    if live():
        from tqdm.auto import tqdm
        yield from tqdm(steps, desc=title)
        return
    for done, step in enumerate(steps, 1):
        yield step
        if done * lines // len(steps) > (done - 1) * lines // len(steps):
            print(f"{title}: {done} of {len(steps)}")


def _banner(text: str) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import HTML, display
    except ImportError:
        return print(f"*** {text} ***")
    if get_ipython() is None:
        return print(f"*** {text} ***")
    # inline colours, so that the box is legible on light and on dark pages
    display(HTML('<div style="border-left:6px solid #E69F00;background:#FFF4DC;color:#3B2A00;padding:8px 12px">'
                 f"{text}</div>"))
