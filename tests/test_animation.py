"""Animations of the denoising: every step in it, small enough, at rest on the picture itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from course import animation, sample
from course.errors import UsageError


@pytest.fixture
def course(pipe, command_line, monkeypatch, tmp_path):
    """`course sample` in this process, with a small model; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    pipe.save("model")

    def run(*words):
        return command_line("sample", *words, "--model", "model", "--device", "cpu")
    return run


def opened(path) -> tuple[list[Image.Image], list[int], dict]:
    """Frames, their milliseconds, and what the file says of itself."""
    file, frames, times = Image.open(path), [], []
    for i in range(file.n_frames):
        file.seek(i)
        file.load()
        frames.append(file.convert("RGB"))
        times.append(round(file.info["duration"]))
    return frames, times, file.info


def test_a_frame_for_each_step_and_the_last_is_the_picture(course):
    code, out, err = course("a ring", "--steps", "4", "--seed", "3", "--out", "x.png", "--animate", "x.webp", "--json")
    assert code == 0, err
    told = json.loads(out)
    frames, times, info = opened("x.webp")
    picture = Image.open("x.png")
    assert len(frames) == 4 and times[:3] == [animation.STEP] * 3 and times[3] == animation.HOLD and info["loop"] == 0
    assert told["animate"] == "x.webp" and told["animation"]["bytes"] == len(open("x.webp", "rb").read()) < animation.LIMIT
    assert told["animation"]["quality"] is None
    (left, right), last = pair(frames[-1], picture.size), np.array(picture)
    assert np.array_equal(right, last) and np.array_equal(left, last)
    assert not np.array_equal(pair(frames[0], picture.size)[0], last)


def pair(frame, size) -> tuple[np.ndarray, np.ndarray]:
    """The two pictures of a frame, which lie side by side below a strip of writing."""
    (width, height), top = size, 2 * size[0] // 28 * 3 // 2
    return tuple(np.array(frame.crop((x, top, x + width, top + height))) for x in (0, frame.width - width))


def test_frames_show_what_the_sampler_had(course, pipe):
    assert course("a ring", "--steps", "3", "--seed", "3", "--out", "x.png", "--animate", "x.webp")[0] == 0
    film = animation.Film()
    pipe.latents("a ring", steps=3, seed=3, callback=film)
    frames, *_ = opened("x.webp")
    for frame, (_, x, x0) in zip(frames[:2], film.steps[:2], strict=True):
        left, right = pair(frame, (256, 256))
        for shown, z in ((left, x), (right, x0)):
            expected = np.array(sample.grid(pipe.decode(z), 1)).astype(int)
            assert np.abs(shown.astype(int) - expected).max() <= 2                      # a batch of another size rounds otherwise
    assert not np.array_equal(*pair(frames[0], (256, 256)))
    assert len({frame.tobytes() for frame in frames}) == 3, "each says which step it is"


def test_prompts_in_a_row_and_as_a_gif(course):
    code, out, err = course("a ring", "a red circle", "a blue star", "--steps", "3", "--animate", "x.gif", "--out", "x.png",
                            "--json")
    assert code == 0, err
    frames, times, info = opened("x.gif")
    assert len(frames) == 3 and times[-1] == animation.HOLD and info["loop"] == 0
    assert frames[0].width == 3 * 256 + 2 * 4 and Image.open("x.png").width == 256       # beside, and below each other
    assert json.loads(out)["animation"]["frames"] == 3


def test_the_picture_and_its_seeds_do_not_change(course):
    assert course("a ring", "--steps", "2", "--out", "with.png", "--animate", "x.webp")[0] == 0
    assert course("a ring", "--steps", "2", "--out", "without.png")[0] == 0
    assert np.array_equal(np.array(Image.open("with.png")), np.array(Image.open("without.png")))


@pytest.mark.parametrize("path", ["x.mp4", "x.png", "x"])
def test_another_ending(course, path, tmp_path):
    code, _, err = course("a ring", "--steps", "2", "--animate", path)
    assert code == 2 and ".webp, .gif" in err and "Traceback" not in err
    assert not (tmp_path / "sample.png").exists(), "said before anything is drawn"


def noisy_frames(count: int = 4, side: int = 160) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (count, side, side, 3), generator=generator, dtype=torch.uint8).numpy()
    return [Image.fromarray(picture) for picture in noise]


@pytest.mark.parametrize("kind", animation.FORMATS)
def test_what_is_too_large_gets_coarser_then_smaller(tmp_path, kind):
    made, path = noisy_frames(), tmp_path / f"x{kind}"
    best = animation.write(path, made)
    assert best["share"] == 1 and best["quality"] == animation.TRIALS[kind][0][1]
    tight = animation.write(path, made, best["bytes"] // 12)
    frames, *_ = opened(path)
    assert path.stat().st_size == tight["bytes"] <= best["bytes"] // 12 and tight["share"] < 1
    assert len(frames) == 4 and frames[0].width == round(160 * tight["share"])
    before = path.read_bytes()
    with pytest.raises(UsageError, match="4 steps of 160 x 160 pixels do not fit into 100 bytes"):
        animation.write(path, made, 100)
    assert path.read_bytes() == before


def test_the_last_frame_shows_what_came_out():
    """A step's own estimate may be something else: around a hole, or where a sampler stops before all noise is gone."""
    x, x0, last = (torch.full((1, 3, 32, 32), value) for value in (-1.0, 0.0, 1.0))
    made = animation.frames([(999.0, x, x0), (500.0, x, x0)], last, lambda z: z, lambda z: sample.grid(z, 1))
    levels = [[int(p.mean().round()) for p in pair(frame, (256, 256))] for frame in made]
    assert levels == [[0, 128], [255, 255]]
