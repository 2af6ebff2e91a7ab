"""`course train distill`: the same pictures in fewer steps."""

import json
from dataclasses import replace
from pathlib import Path

from course import files
from course.adapt.drawn import draw, marks
from course.data import latents, oracle
from course.pipeline import StableDiffusion
from course.training import diffusion, distill
from course.training.engine import processes


def train(recipe, data, out: Path, how: dict, pipe: StableDiffusion):
    """The same pictures in fewer and fewer steps; `out/N-steps` holds the pipeline of each round, `out/model` the last."""
    device = how["engine"].device
    pipe.to(device)
    with processes(how["engine"]).main_process_first():
        mean, std = latents.cached(out / "latents", pipe.vae, data.images, device)
    batches = diffusion.latent_batches(mean, std, pipe.vae.scaling_factor, draw_latents=False)
    ids = pipe.tokenizer([c for ways in data.captions for c in ways]).view(len(data.captions), -1, pipe.config.text.length)
    loss = replace(recipe.loss, guidance=pipe.config.guidance_scale)
    teacher = pipe.unet
    state, students = distill.train(pipe, batches, ids, pipe.tokenizer("")[0], out, recipe.loop, loss, **how)

    def finish():
        rows, found = {}, {"oracle_by_steps": {}}
        files.write_bytes(out / "log.jsonl", one_after_the_other([out / f"{n}-steps" / "log.jsonl" for n in loss.rounds]))
        for steps, student in [*students.items(), (None, teacher)]:
            pipe.unet, scale = student or teacher, 1.0 if steps else pipe.config.guidance_scale
            if steps:                                          # one pass a step: what guidance did is learned
                config = replace(pipe.config, guidance_scale=1.0, steps=steps)
                fast = StableDiffusion(config, pipe.tokenizer, student, pipe.text_encoder, pipe.vae)
                for folder in (out / f"{steps}-steps" / "model", *([out / "model"] if steps == loss.rounds[-1] else [])):
                    fast.save(folder)
            for number in ([steps] if steps else [25, *loss.rounds]):
                images = draw(pipe, data.test_captions, number, scale, recipe.seed)
                title = f"{'distilled' if steps else 'teacher'}, {number} step{'s' * (number > 1)}"
                rates = oracle.rates(images, data.test_scenes)
                found["oracle_by_steps"][title] = rates
                rows[title] = images, marks(images, data.test_scenes)
        found["oracle"] = found["oracle_by_steps"][f"distilled, {loss.rounds[-1]} step{'s' * (loss.rounds[-1] > 1)}"]
        return rows, found
    return state, finish


def one_after_the_other(logs: list[Path]) -> bytes:
    """The rounds' logs as one, with the time running on."""
    lines, begun = [], 0.0
    for log in logs:
        lines += [row | {"seconds": row["seconds"] + begun} for row in map(json.loads, log.read_text("utf-8").splitlines())]
        begun = lines[-1]["seconds"] if lines else begun
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
