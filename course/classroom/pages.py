"""Two kinds of page: feedback for each student, and the class at a glance. One file each, nothing loaded from elsewhere."""

import hashlib
import re
from collections import Counter
from pathlib import Path

from course import files
from course.classroom import curriculum

SIGNS = {"correct": "●", "partial": "◐", "wrong": "○", "error": "!", "timeout": "⏱", "killed": "✕", "missing": "·",
         "blocked": "▨", "policy": "§"}
WORDS = {"correct": "correct", "partial": "partly right", "wrong": "not right yet", "error": "the code stopped with an error",
         "timeout": "it took too long", "killed": "the process ended or was ended", "missing": "not handed in",
         "blocked": "the file could not be read", "policy": "a rule of the course was broken"}

STYLE = """<style>
 :root { color-scheme: light dark; --ink:#1d1d1f; --page:#fff; --soft:#f4f4f6; --line:#d9d9de; --dim:#66666e; --link:#0067a3;
   --correct:#cfe6f5; --partial:#fbe7bd; --wrong:#f6cdb6; --stopped:#e4d3ee; --missing:#f0f0f2; }
 @media (prefers-color-scheme: dark) { :root { --ink:#ececf0; --page:#17171a; --soft:#232328; --line:#3a3a42; --dim:#a6a6b0;
   --link:#5ab4ec; --correct:#0f4a6e; --partial:#6b4d08; --wrong:#7a3312; --stopped:#523466; --missing:#232328; } }
 * { box-sizing: border-box; }
 body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto; max-width: 68rem;
   padding: 1.5rem 1.2rem 4rem; }
 h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0 .8rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
 a { color: var(--link); } .dim { color: var(--dim); font-size: .9rem; }
 .scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
 th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--line); } td.n, th.n { text-align: right; }
 .map th, .map td { border: 1px solid var(--page); padding: 0; } .map td { width: 1.9rem; min-width: 1.9rem; height: 1.9rem; text-align: center; }
 .map td a { display: block; line-height: 1.9rem; color: inherit; text-decoration: none; }
 .map td.n { width: auto; padding: 0 .6rem; text-align: right; white-space: nowrap; }
 .map tbody th { padding: 0 .8rem 0 0; font-weight: 400; white-space: nowrap; position: sticky; left: 0; background: var(--page); }
 .map thead th { vertical-align: bottom; font-weight: 400; font-size: .8rem; }
 .map thead th span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; padding: .3rem 0; }
 .map thead .chapter { border-bottom: 2px solid var(--line); text-align: center; padding: .2rem .3rem; overflow-wrap: anywhere; }
 .correct { background: var(--correct); } .partial { background: var(--partial); } .wrong { background: var(--wrong); }
 .error, .timeout, .killed, .blocked, .policy { background: var(--stopped); } .missing { background: var(--missing); }
 .badge { display: inline-block; border-radius: 1rem; padding: .05rem .7rem; font-size: .9rem; }
 .bar { background: var(--soft); width: 9rem; height: .7rem; border-radius: .35rem; overflow: hidden; }
 .bar div { background: var(--link); height: 100%; }
 article { border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1.1rem; margin: 1rem 0; }
 article h3 { margin: 0 0 .4rem; font-size: 1.05rem; display: flex; gap: .8rem; flex-wrap: wrap; align-items: baseline; }
 article h3 .n { margin-left: auto; font-weight: 400; font-variant-numeric: tabular-nums; }
 ul.report { list-style: none; padding: 0; margin: .5rem 0; } ul.report li { padding: .12rem 0 .12rem 1.5rem; text-indent: -1.5rem; }
 ul.report .why { display: block; text-indent: 0; font-weight: 600; overflow-wrap: anywhere; }
 pre { background: var(--soft); border-radius: 6px; padding: .7rem .9rem; overflow-x: auto; font-size: .86rem; line-height: 1.45;
   max-height: 30rem; } code { background: var(--soft); border-radius: 4px; padding: .1em .3em; } pre code { padding: 0; }
 details { margin: .4rem 0; } summary { cursor: pointer; color: var(--link); } .hint { white-space: pre-line; }
</style>"""

FEEDBACK = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: feedback</title>{{ style|safe }}</head><body>
<h1>{{ name }}</h1>
<p><strong>{{ total|n }} of {{ most|n }} points</strong> · {{ solved }} of {{ marks|length }} exercises correct</p>
{% for line in refused %}<p>Not read: {{ line }}</p>{% endfor %}
{% for chapter, rows in groups %}<h2>{{ chapter }}</h2>
{% for row in rows %}<article id="{{ row.id }}">
<h3><code>{{ row.id }}</code> <span class="badge {{ row.mark.status }}">{{ signs[row.mark.status] }} {{ words[row.mark.status] }}</span>
<span class="n">{{ row.mark.points|n }} of {{ row.mark.most|n }}</span></h3>
{% if row.mark.why %}<p>{{ row.mark.why }}</p>{% endif %}
{% for flag in row.mark.flags %}<p class="dim">{{ flag }}</p>{% endfor %}
{% if row.report %}<ul class="report">{% for sign, title, why in row.report %}
<li>{{ sign }} {{ title }}{% if why %}<span class="why">{{ why }}</span>{% endif %}</li>{% endfor %}</ul>{% endif %}
{% if row.source %}<details{% if row.mark.status != 'correct' %} open{% endif %}><summary>Your code</summary><pre><code>{{ row.source }}</code></pre></details>{% endif %}
{% if row.mark.status not in ('correct', 'blocked', 'policy') %}{% for hint in row.hints %}
<details><summary>Hint {{ loop.index }}</summary><p class="hint">{{ hint }}</p></details>{% endfor %}{% endif %}
</article>{% endfor %}{% endfor %}
<p class="dim">A tick is a property that your answer has, a cross one that it lacks. The points of an exercise are earned by
properties in equal shares. The inputs were drawn afresh for this class, so numbers differ from those in your notebook.</p>
</body></html>
"""

CLASS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The class</title>{{ style|safe }}</head><body>
<h1>The class: {{ made.students|length }} students, {{ made.exercises|length }} exercises</h1>
<p>{{ most|n }} points in all; the mean is {{ mean|n }}, the median {{ median|n }}. Every row leads to the student's feedback.</p>
<div class="scroll"><table class="map"><thead>
<tr><th></th>{% for chapter, ids in groups %}<th class="chapter" colspan="{{ ids|length }}">{{ chapter[:2] }}</th>{% endfor %}<th></th></tr>
<tr><th></th>{% for id in made.exercises %}<th><span>{{ id }}</span></th>{% endfor %}<th></th></tr></thead><tbody>
{% for name, page, marks, total in rows %}<tr><th><a href="{{ page }}">{{ name }}</a></th>
{% for id, mark in marks %}<td class="{{ mark.status }}" title="{{ id }}: {{ words[mark.status] }}, {{ mark.points|n }} of {{ mark.most|n }}"><a
href="{{ page }}#{{ id }}">{{ signs[mark.status] }}</a></td>{% endfor %}<td class="n">{{ total|n }}</td></tr>
{% endfor %}</tbody></table></div>
<p class="dim">{% for status, sign in signs.items() %}<span class="badge {{ status }}">{{ sign }} {{ words[status] }}</span> {% endfor %}</p>
<h2>The hardest exercises</h2>
<div class="scroll"><table><thead><tr><th>exercise</th><th>points earned</th><th class="n"></th><th class="n">correct</th><th class="n">not handed
in</th></tr></thead><tbody>{% for row in hardest %}
<tr><td><code>{{ row.id }}</code></td><td><div class="bar"><div style="width:{{ row.share }}%"></div></div></td><td class="n">{{ row.share }} %</td>
<td class="n">{{ row.correct }}</td><td class="n">{{ row.missing }}</td></tr>{% endfor %}</tbody></table></div>
<h2>The most frequent wrong answers</h2>
{% if wrong %}<div class="scroll"><table><thead><tr><th class="n">students</th><th>exercise</th><th>what they were told</th></tr></thead><tbody>
{% for (id, words), count in wrong %}<tr><td class="n">{{ count }}</td><td><code>{{ id }}</code></td><td>{{ words }}</td></tr>{% endfor %}
</tbody></table></div>{% else %}<p>None.</p>{% endif %}
<h2>Submissions that are alike</h2>
{% if pairs %}<div class="scroll"><table><thead><tr><th>pair</th><th>exercises, how alike, and how near to the course's own answer</th></tr></thead><tbody>
{% for pair in pairs %}<tr><td>{{ pair.students|join(', ') }}</td><td>{% for e in pair.exercises[:6] %}<code>{{ e.exercise }}</code>
{{ (100 * e.ratio)|round|int }} % ({{ (100 * e.to_course)|round|int }} %){{ ', ' if not loop.last }}{% endfor %}{% if pair.exercises|length > 6 %},
and {{ pair.exercises|length - 6 }} more{% endif %}</td></tr>{% endfor %}</tbody></table></div>{% else %}<p>None above 90 %.</p>{% endif %}
<p class="dim">Compared without names, comments and layout; pairs in which both are within 90 % of the course's own answer are left out:
the course is public, so grading stops tampering, not copying. A pair is a reason to talk, no proof.</p>
{% if refused %}<h2>Files that were not read</h2><ul>{% for name, line in refused %}<li>{{ name }}: {{ line }}</li>{% endfor %}</ul>{% endif %}
</body></html>
"""


def write(made, pairs: list[dict], out: Path) -> None:
    from jinja2 import Environment
    environment = Environment(autoescape=True)
    environment.filters["n"] = lambda value: f"{value:g}" if isinstance(value, int) else f"{round(value, 2):g}"
    groups = _groups(made)
    common = {"style": STYLE, "signs": SIGNS, "words": WORDS}
    page = environment.from_string(FEEDBACK)
    wanted = {file_name(name) for name in made.students}
    for name, student in made.students.items():
        marks = made.marks[name]
        text = page.render(**common, name=name, marks=marks, total=made.total(name), most=sum(made.most.values()),
                           refused=student.refused, solved=sum(m.status == "correct" for m in marks.values()),
                           groups=[(chapter, [_row(id, marks[id], student) for id in ids]) for chapter, ids in groups])
        files.write_bytes(out / "feedback" / file_name(name), text.encode("utf-8", "replace"))
    for path in (out / "feedback").glob("*.html"):              # of a student who is no longer in the class
        if path.name not in wanted:
            path.unlink()
    totals = sorted(made.total(name) for name in made.students)
    middle = (totals[(len(totals) - 1) // 2] + totals[len(totals) // 2]) / 2
    rows = [(name, f"feedback/{file_name(name)}", list(made.marks[name].items()), made.total(name)) for name in made.students]
    text = environment.from_string(CLASS).render(
        **common, made=made, groups=groups, rows=rows, pairs=pairs[:30], most=sum(made.most.values()),
        mean=sum(totals) / len(totals), median=middle, hardest=_hardest(made)[:10], wrong=_frequent(made),
        refused=[(name, line) for name, s in made.students.items() for line in s.refused])
    files.write_bytes(out / "index.html", text.encode("utf-8", "replace"))


def file_name(name: str) -> str:
    """A file name for any name of a student: two students never share one."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60]
    return (plain if plain == name and name else f"{plain or 'student'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}") + ".html"


def _groups(made) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for id in made.exercises:
        found.setdefault(curriculum.tasks()[id].chapter, []).append(id)
    return [(stem.replace("_", " "), ids) for stem, ids in found.items()]


def _row(id: str, mark, student) -> dict:
    report = []
    for message in mark.messages:
        title, _, why = message.partition("\n")
        report.append((title[:1], title[1:].strip(), why.strip()))
    return {"id": id, "mark": mark, "report": report, "source": student.sources.get(id, ""), "hints": curriculum.tasks()[id].hints}


def _hardest(made) -> list[dict]:
    rows = []
    for id in made.exercises:
        marks = [m[id] for m in made.marks.values()]
        share = round(100 * sum(m.points for m in marks) / (len(marks) * made.most[id]))
        rows.append({"id": id, "share": share, "correct": sum(m.status == "correct" for m in marks),
                     "missing": sum(m.status == "missing" for m in marks)})
    return sorted(rows, key=lambda r: (r["share"], r["id"]))


def _frequent(made) -> list:
    """What is behind the first cross of an answer, without its numbers, which differ from answer to answer."""
    told: Counter = Counter()
    for marks in made.marks.values():
        for id, mark in marks.items():
            first = next((m for m in mark.messages if m.startswith("✗")), "")
            words = first.partition("\n")[2].strip() or mark.why
            if words and mark.status not in ("correct", "missing", "blocked"):
                told[id, re.sub(r"-?\d+\.\d+(e-?\d+)?", "…", words)[:200]] += 1
    return sorted(told.items(), key=lambda item: (-item[1], item[0]))[:12]
