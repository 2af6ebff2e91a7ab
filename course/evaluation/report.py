"""The page that a run ends with: what was done, what came out, and how to go on; one file with its pictures inside."""

import base64
from pathlib import Path

from course import files

KEYS = ("shape", "color", "size", "position", "background", "all")

STYLE = """<style>
 :root { color-scheme: light dark; --ink:#1d1d1f; --page:#fff; --soft:#f4f4f6; --line:#d9d9de; --latent:#0067a3;
   --pixel:#b84e00; }
 @media (prefers-color-scheme: dark) { :root { --ink:#ececf0; --page:#17171a; --soft:#232328; --line:#3a3a42;
   --latent:#5ab4ec; --pixel:#ff9950; } }
 body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
   max-width: 62rem; padding: 1.5rem 1.2rem 4rem; }
 h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0 .8rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
 img { max-width: 100%; background: #fff; border-radius: 6px; border: 1px solid var(--line); }
 .scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 34rem; }
 th, td { padding: .32rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
 th:first-child, td:first-child { text-align: left; } thead th { font-weight: 600; }
 .latent { color: var(--latent); font-weight: 600; } .pixel { color: var(--pixel); font-weight: 600; }
 code, pre { background: var(--soft); border-radius: 4px; } code { padding: .1em .3em; }
 pre { padding: .8rem 1rem; overflow-x: auto; }
 .small { font-size: .88rem; opacity: .8; }
</style>"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Latent diffusion against pixel diffusion</title>
{{ style|safe }}</head><body>
<h1>The same U-Net, the same minutes: in latent space and in pixel space</h1>
<p>Two text-to-image models were trained for {{ "%.1f"|format(m.latent.train_seconds / 60) }} minutes each on drawn
{{ size }} × {{ size }} pictures. The <span class="latent">latent</span> model first spent
{{ "%.1f"|format(m.autoencoder.train_seconds / 60) }} of them on an autoencoder that packs a picture into
{{ 48 }} times fewer numbers, and then learned to make those; the <span class="pixel">pixel</span> model made pictures
directly. Both were then asked for the same {{ m.prompts }} pictures, with the same seeds, and a program that knows how the
pictures are drawn (the oracle) read what came out.</p>
<img src="{{ samples }}" alt="Pictures of both models over their prompts; a tick where every attribute is right">
<h2>How often the picture shows what the prompt says</h2>
<div class="scroll"><table><thead><tr><th></th>{% for k in keys %}<th>{{ k }}</th>{% endfor %}</tr></thead><tbody>
{% for title, cls, row in oracle %}<tr><td class="{{ cls }}">{{ title }}</td>
{% for k in keys %}<td>{{ "%.1f"|format(100 * row[k]) }} %</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
<p class="small">Share of {{ m.prompts }} prompts of pictures that no model was trained on; <em>all</em> means that all five
are right at once. The autoencoder's row is the ceiling for the latent model: real pictures, packed and unpacked. Prompts
of the pairs of shape and colour that training never showed together are a test of composition.</p>
<h2>What it cost</h2>
<div class="scroll"><table><thead><tr><th></th><th class="latent">latent</th><th class="pixel">pixel</th><th>pixel / latent</th>
</tr></thead><tbody>{% for title, a, b, ratio in cost %}
<tr><td>{{ title }}</td><td>{{ a }}</td><td>{{ b }}</td><td>{{ ratio }}</td></tr>{% endfor %}</tbody></table></div>
<p class="small">The times were taken in turns in one process, batch {{ m.cost_batch }}; absolute times of this machine drift,
their ratio does not. Memory: the peak of a training step in a process of its own. The pixel model's training pictures and
minutes are counted as those of the latent model together with its autoencoder.</p>
<h2>Out of the noise</h2>
<img src="{{ progress }}" alt="The estimate of the clean picture at several noise levels, for both models">
<p class="small">What each model believes the finished picture to be, at falling noise levels t.</p>
<h2>How training went</h2>
<img src="{{ curves }}" alt="Loss curves of the autoencoder, the latent and the pixel model">
<h2>How to go on</h2>
<pre>course sample "a large green ring on a pink background" --out ring.png
course demo --minutes 20 --out runs/longer
make lab</pre>
<p class="small">Autoencoder: {{ "%.1f"|format(m.autoencoder.psnr) }} dB PSNR on unseen pictures. Seed {{ m.seed }}, commit
{{ m.commit }}, {{ m.device }}, PyTorch {{ m.torch }}. All figures: <code>metrics.json</code>.</p>
</body></html>
"""


def write(path: Path, metrics: dict, pictures: dict[str, Path], image_size: int) -> None:
    """Render the page; `pictures` names the PNG files of samples, progress and curves."""
    from jinja2 import Environment
    m = metrics
    oracle = [("real pictures", "", m["real"]["oracle"]), ("autoencoder", "", m["autoencoder"]["oracle"]),
              ("latent model", "latent", m["latent"]["oracle"]), ("pixel model", "pixel", m["pixel"]["oracle"]),
              ("latent, pairs never seen together", "latent", m["latent"]["heldout_oracle"]),
              ("pixel, pairs never seen together", "pixel", m["pixel"]["heldout_oracle"])]
    rows = (("parameters of the U-Net and its text encoder", "params", "{:,.0f}"),
            ("seconds of training, autoencoder included", "train_seconds", "{:,.0f}"),
            ("pictures seen", "images_seen", "{:,.0f}"),
            ("training step, ms a picture", "train_ms_per_image", "{:.2f}"),
            ("guided sampling step, ms a picture", "sample_step_ms_per_image", "{:.2f}"),
            ("decoding, ms a picture", "decode_ms_per_image", "{:.2f}"),
            ("peak memory of a training step, MiB", "peak_mb", "{:,.0f}"))
    cost = [(title, form.format(m["latent"][key]), form.format(m["pixel"][key]), _ratio(m["pixel"][key], m["latent"][key]))
            if key != "decode_ms_per_image" else (title, form.format(m["latent"][key]), "–", "–")    # pixels need none
            for title, key, form in rows]
    html = Environment(autoescape=True).from_string(PAGE).render(
        m=metrics, style=STYLE, oracle=oracle, cost=cost, keys=KEYS, size=image_size, **inline(pictures))
    files.write_bytes(path, html.encode())


RUN_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ r.kind }} · {{ r.model }}</title>
{{ style|safe }}</head><body>
<h1>{{ r.kind }} · {{ r.model }}</h1>
<p>{{ "{:,}".format(m.images_seen) }} pictures in {{ "%.1f"|format(m.seconds / 60) }} minutes on {{ m.device }};
data: {{ r.data.source }} at {{ r.data.size }} × {{ r.data.size }}. Expected of this recipe: {{ r.expected }}.</p>
<img src="{{ samples }}" alt="Pictures of the run over their captions">
{% if figures %}<h2>What was measured on pictures kept apart</h2>
<div class="scroll"><table><tbody>{% for name, value in figures %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</tbody></table></div>
{% endif %}<h2>How training went</h2>
<img src="{{ curves }}" alt="Loss against minutes of training">
<h2>The recipe</h2>
<div class="scroll"><table><tbody>{% for name, value in settings %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</tbody></table></div>
<p class="small">Seed {{ m.seed }}, commit {{ m.commit }}. Everything else: <code>run.json</code>, <code>metrics.json</code>,
<code>log.jsonl</code>.</p>
</body></html>
"""


def write_run(path: Path, recipe: dict, metrics: dict, pictures: dict[str, Path]) -> None:
    """The page of one `course train`."""
    from jinja2 import Environment
    said = ("kind", "expected", "commit", "device", "seed", "seconds", "images_seen", "steps")  # above and below the table
    told = {k: v for k, v in metrics.items() if k not in said}
    html = Environment(autoescape=True).from_string(RUN_PAGE).render(
        r=recipe, m=metrics, style=STYLE, figures=[(k, _short(v)) for k, v in _flat(told)],
        settings=[(k, _short(v)) for k, v in _flat(recipe)], **inline(pictures))
    files.write_bytes(path, html.encode())


def _flat(d: dict, before: str = "") -> list[tuple[str, object]]:
    """{"a": {"b": 1}} -> [("a.b", 1)]"""
    rows = []
    for key, value in d.items():
        rows += _flat(value, f"{before}{key}.") if isinstance(value, dict) else [(before + key, value)]
    return rows


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def inline(pictures: dict[str, Path]) -> dict[str, str]:
    return {name: "data:image/png;base64," + base64.b64encode(p.read_bytes()).decode() for name, p in pictures.items()}


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.3g} ×" if a and b else "–"
