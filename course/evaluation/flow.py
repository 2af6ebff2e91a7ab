"""The pipeline as a drawing: prompt -> tokens -> text; noise -> U-Net, again and again -> latent -> picture.

Every shape and every number of parameters on it comes from a run of the model: see `architecture`.
"""

import random

from course.evaluation import architecture
from course.evaluation.svg import BLUE, GRAY, GREEN, ORANGE, RED, Page, shape, short

PROMPT = ("“a large green ring", "on a pink background”")
LEFT, RIGHT, WIDE = 205, 555, 306                              # the middles of two columns, and the width of a box
CENTRE = (LEFT + RIGHT) / 2


def pipeline(record: "architecture.Record") -> str:
    """The SVG of a pipeline, from words to a picture."""
    page, sizes, total = Page(), record.tensors, sum(record.networks.values())
    page.text(30, 50, f"The pipeline of {record.model}", "title")
    page.text(30, 82, f"{total:,} parameters", "faint")
    steps_begin = words(page, record)
    noise(page, sizes["noise"], steps_begin)
    y = steps(page, record, steps_begin)
    if record.vae:
        y = arrow(page, RIGHT, y, 60, f"z  {shape(sizes['answer'])}")
        y = box(page, RIGHT, y, WIDE, ["Decoder", short(decoder(record))], RED)
    y = arrow(page, RIGHT, y, 60, shape(sizes["picture"]))
    page.bar(RIGHT - 60, y, 120, 120, "drawn", round=8)
    page.made.append(f'<circle cx="{RIGHT}" cy="{y + 60:g}" r="34" class="ring"/>')
    shares(page, record, y + 120)
    page.height = y + 148
    return page.svg(f"The pipeline of {record.model}: {total:,} parameters",
                    f"Words become a text of {shape(sizes['context'])}; noise of {shape(sizes['noise'])} goes through the U-Net "
                    f"once for each step, guided by the text, until a picture of {shape(sizes['picture'])} can be shown.")


def words(page: Page, record: "architecture.Record") -> float:
    """The left column, from the prompt to the text that the U-Net reads; returns the y at which that is handed over."""
    sizes, y = record.tensors, 110
    page.bar(LEFT - WIDE / 2, y, WIDE, 74, "chip", round=10)
    for i, line in enumerate(PROMPT):
        page.text(LEFT, y + 31 + 27 * i, line, anchor="middle")
    y = arrow(page, LEFT, y + 74, 22)
    y = box(page, LEFT, y, WIDE, [f"tokenizer, {record.vocabulary:,} pieces"], GRAY)
    y = arrow(page, LEFT, y, 60, shape(sizes["ids"]))
    encoders = [record.networks[name] for name in ("text_encoder", "text_encoder_2") if name in record.networks]
    width = (WIDE - 12 * (len(encoders) - 1)) / len(encoders)
    for i, count in enumerate(encoders):
        x = LEFT - WIDE / 2 + width / 2 + i * (width + 12)
        below = box(page, x, y, width, ["TextEncoder", short(count)], ORANGE)
    y = arrow(page, LEFT, below, 60 if "pooled" in sizes else 84, shape(sizes["context"]))
    if "pooled" in sizes:
        page.text(LEFT, y + 22, f"and pooled {shape(sizes['pooled'])}", "small faint", "middle")
        page.line(f"M{LEFT} {y + 30} V{y + 52}")
        page.head(LEFT, y + 52, "down")
        return y + 52
    return y


def noise(page: Page, size: tuple[int, ...], end: float) -> None:
    """The right column: squares of chance, and the way to the U-Net."""
    chance, side = random.Random(0), 15
    for row in range(8):
        for column in range(8):
            page.bar(RIGHT - 60 + column * side, 110 + row * side, side, side,
                     chance.choice((BLUE, ORANGE, GREEN, RED, GRAY, GRAY)), round=0)
    page.text(RIGHT, 258, "noise, from a seed", "faint", "middle")
    page.line(f"M{RIGHT} 270 V{end}")
    page.chip(RIGHT, 300, shape(size), "bold")
    page.head(RIGHT, end, "down")


def steps(page: Page, record: "architecture.Record", y: float) -> float:
    """What is done again for each step: U-Net, guidance, sampler; returns the y below."""
    sizes, left, right = record.tensors, LEFT - WIDE / 2, RIGHT + WIDE / 2
    twice = record.guidance != 1
    top = len(page.made)
    start, answer = y, {"eps": "the noise in x", "v": "v", "x0": "x without noise"}[record.predict]
    lines = ["U-Net", f"{short(record.parameters('unet'))}: from x, t and the text, {answer}"]
    y = box(page, CENTRE, y, right - left, lines, BLUE, 92)
    batch = shape(sizes["answer"]).replace("B", "2B") if twice else shape(sizes["answer"])
    below = arrow(page, LEFT, y, 66, batch)
    page.line(f"M{RIGHT} {below} V{y}")
    page.chip(RIGHT, y + 40, f"x  {shape(sizes['answer'])}", "bold")
    page.head(RIGHT, y, "up")
    guided = [f"guidance: u + {record.guidance:g} (c − u)", "c: with the text, u: without"]
    guided = guided if twice else ["no guidance", "one answer, with the text"]
    y = box(page, LEFT, below, WIDE, guided, ORANGE)
    box(page, RIGHT, below, WIDE, ["sampler", "x, with less noise"], GREEN)
    page.line(f"M{LEFT + WIDE / 2} {below + 38} H{RIGHT - WIDE / 2}")
    page.head(RIGHT - WIDE / 2, below + 38, "right")
    page.text(left, y + 34, "again, for each step", "bold")
    page.made.insert(top, f'<rect x="{left - 24:g}" y="{start - 22:g}" width="{right - left + 48:g}" height="{y - start + 74:g}" '
                          f'rx="16" class="line" stroke-dasharray="7 6"/>')
    page.line(f"M{RIGHT} {y} V{y + 52}")
    return y + 52


def decoder(record: "architecture.Record") -> int:
    return sum(b.parameters for b in record.vae if not b.name.startswith("encoder.") and b.name != "quant_conv")


def shares(page: Page, record: "architecture.Record", end: float) -> None:
    """Where the parameters are, as bars; the last stands on y = end."""
    rows = [("U-Net", record.parameters("unet"), BLUE)]
    encoders = [count for name, count in record.networks.items() if name.startswith("text_encoder")]
    rows += [("text", sum(encoders), ORANGE)]
    if record.vae:
        rows += [("decoder", decoder(record), RED), ("encoder", record.parameters("vae") - decoder(record), GRAY)]
    left, most = LEFT - WIDE / 2, max(count for _, count, _ in rows)
    y = end - 42 * len(rows)
    for words, count, color in rows:
        page.text(left, y + 25, words, "small")
        page.bar(left + 88, y + 8, max(3.0, 120 * count / most), 22, color)
        page.text(left + 96 + max(3.0, 120 * count / most), y + 25, short(count), "small")
        y += 42


def box(page: Page, x: float, y: float, width: float, lines: list[str], look: str, height: float = 0) -> float:
    """A box with a line in bold and others below it, centred at x; returns the y of its lower edge."""
    height = height or (76 if len(lines) > 1 else 50)
    page.bar(x - width / 2, y, width, height, f"box {look}", round=10)
    first = y + height / 2 - 13.5 * (len(lines) - 1) + 7
    for i, line in enumerate(lines):
        page.text(x, first + 28 * i, line, "bold" if i == 0 else "", "middle")
    return y + height


def arrow(page: Page, x: float, y: float, length: float, size: str = "") -> float:
    """Down from (x, y), with the shape of what goes along it; returns the y of its end."""
    page.line(f"M{x} {y:g} V{y + length:g}")
    if size:
        page.chip(x, y + 26, size, "bold")
    page.head(x, y + length, "down")
    return y + length
