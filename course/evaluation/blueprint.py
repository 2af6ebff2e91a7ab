"""The U of a U-Net, and an autoencoder's two halves, drawn from what a run of them showed: see `architecture`.

One bar is one block: as wide as its channels, as tall as its feature map. Down on the left, up on the right; a block stands in
the row of the resolution that it makes. A skip joins two blocks at the same height, so it is a straight line.
"""

from course.errors import UsageError
from course.evaluation import architecture
from course.evaluation.svg import BLUE, GRAY, GREEN, ORANGE, WIDTH, Page, shape, short

LEFT, RIGHT, MIDDLE = 190, WIDTH - 190, WIDTH / 2              # the axes of the two arms and between them
WIDEST, GAP, ROW = 216, 4, 50                                  # of bars; between bars; the row with a level's size
SIZES = "A bar: as wide as its channels, as tall as its feature map."
TIME, TEXT = 42, 22                                            # distance of the rails from the edges
LOOKS = {"resnets": BLUE, "attentions": ORANGE, "downsamplers": GREEN, "upsamplers": GREEN, "stem": GREEN,
         "quantize": ORANGE}                                   # by what a block is called; others are gray
Block = architecture.Block


def unet(record: "architecture.Record") -> str:
    """The SVG of a U-Net: skips, what reads the text, what is told the time."""
    maps = [block for block in record.unet if len(block.output) == 3]
    middle = [block for block in maps if block.name.startswith("mid_block.")]
    at = maps.index(middle[0]) if middle else 0
    down, up = maps[:at], maps[at + len(middle):]
    if not down or not up:
        raise UsageError(f"the U-Net of {record.model} has no middle between a way down and a way up; it cannot be drawn as a U")
    page, total = Page(), record.parameters("unet")
    heading(page, f"The U-Net of {record.model}", total)
    bars = Bars(page, maps)
    sources = {source for source, _ in record.skips}
    targets = {target for _, target in record.skips}
    left = split(down, lambda before, now: before.name in sources)
    right = split(up, lambda before, now: now.name in targets or now.output[1:] != before.output[1:])
    bottom = arms(bars, left, right, targets, ("x, noisy", maps[0].input),
                  ({"eps": "its noise", "v": "v", "x0": "x, clean"}[record.predict], maps[-1].output))
    notes = rails(bars, record, hang(bars, middle, bottom))
    legend(page, record.unet, notes)
    told = sum("text" in block.reads for block in record.unet)
    return page.svg(f"The U-Net of {record.model}: {total:,} parameters",
                    f"{len(down)} blocks on the way down, {len(middle)} in the middle, {len(up)} on the way up, "
                    f"{len(record.skips)} skips between them; {told} blocks read the text. "
                    f"Sides: {', '.join(map(str, sides(maps)))}.")


def vae(record: "architecture.Record") -> str:
    """The SVG of an autoencoder: encoder on the left, decoder on the right, the latent between them."""
    if not record.vae:
        raise UsageError(f"{record.model} works on pixels; it has no autoencoder to draw")
    maps = [block for block in record.vae if block.parameters or block.input != block.output]
    down = [block for block in maps if block.name.startswith("encoder.") or block.name == "quant_conv"]
    up = maps[len(down):]
    page, total = Page(), record.parameters("vae")
    heading(page, f"The autoencoder of {record.model}", total)

    def other(before, now):
        return now.output[1:] != before.output[1:]

    bars = Bars(page, maps)
    picture = ("picture", record.vae[0].input), ("picture", record.vae[-1].output)
    bottom = arms(bars, split(down, other), split(up, other), set(), *picture)
    y = bottom + 46
    latent = up[0].input
    page.line(f"M{LEFT} {bottom} V{y - 14} Q{LEFT} {y} {LEFT + 14} {y} H{RIGHT - 14} Q{RIGHT} {y} {RIGHT} {y - 14} V{bottom + 4}")
    page.chip(MIDDLE, y, f"z  {shape(latent)}", "bold")
    legend(page, record.vae, {SIZES: y})
    factor = record.vae[0].input[1] // latent[1]
    return page.svg(f"The autoencoder of {record.model}: {total:,} parameters",
                    f"Encoder {sum(b.parameters for b in down):,}, decoder {sum(b.parameters for b in up):,} parameters; "
                    f"a latent of {' x '.join(map(str, latent))}, its sides {factor} times smaller than the picture's.")


def split(blocks: list[Block], cut) -> list[list[Block]]:
    """Cut a list wherever cut(before, now)."""
    groups = [[blocks[0]]]
    for before, now in zip(blocks, blocks[1:], strict=False):
        groups.append([now]) if cut(before, now) else groups[-1].append(now)
    return groups


def sides(blocks: list[Block]) -> list[int]:
    """Heights of the feature maps, large ones first."""
    return sorted({block.output[1] for block in blocks}, reverse=True)


class Bars:
    """Paints blocks of one network, all to the same scale."""

    def __init__(self, page: Page, blocks: list[Block]):
        self.page, self.ticks = page, []                       # (block, y of its centre, its outer edge)
        self.widest, self.largest = max(b.output[0] for b in blocks), sides(blocks)[0]
        # so that networks of few levels and of many are about as tall
        self.tall = min(46.0, max(20.0, 580 / sum(b.output[1] / self.largest for b in blocks)))

    def height(self, block: Block) -> float:
        return max(5.0, self.tall * block.output[1] / self.largest)

    def width(self, block: Block) -> float:
        return max(12.0, WIDEST * block.output[0] / self.widest)

    def stack(self, blocks: list[Block]) -> float:
        return sum(self.height(block) + GAP for block in blocks)

    def put(self, block: Block, axis: float, y: float) -> float:
        """A bar with its upper edge at y; returns the y of its centre."""
        width, height = self.width(block), self.height(block)
        self.page.bar(axis - width / 2, y, width, height, look(block), said(block))
        self.ticks.append((block, y + height / 2, axis + width / 2 if axis > MIDDLE else axis - width / 2))
        return y + height / 2


def look(block: Block) -> str:
    return next((color for word, color in LOOKS.items() if word in block.name.split(".")), GRAY)


def said(block: Block) -> str:
    reads = {"time": "is told the time", "text": "reads the text"}
    more = "".join(f", {reads[what]}" for what in block.reads)
    return f"{block.name}: {block.kind} {shape(block.input)} → {shape(block.output)}, {block.parameters:,} parameters{more}"


def heading(page: Page, title: str, total: int) -> None:
    page.text(30, 50, title, "title")
    page.text(30, 82, f"{total:,} parameters", "faint")


def arms(bars: Bars, left: list[list[Block]], right: list[list[Block]], targets: set[str], above_left: tuple,
         above_right: tuple) -> float:
    """Both arms from the top down; returns y below them.

    left, right: groups in the order in which they run. A group on the right that a skip enters, or where there are no skips one
    of its resolution, stands beside the next one on the left; any other stands alone.
    """
    page, y, waiting, rows = bars.page, 118, list(left), []
    for group in reversed(right):
        fits = group[0].name in targets if targets else bool(waiting) and group[0].output[1:] == waiting[0][0].output[1:]
        rows.append((waiting.pop(0) if fits else [], group))
    for axis, (words, size) in ((LEFT, above_left), (RIGHT, above_right)):
        page.text(axis, y + 6, words, "faint", "middle")
        page.text(axis, y + 33, shape(size), "bold", "middle")
    top, y, side = y + 44, y + 52, None
    spine = len(page.made)                                     # painted first, so that bars lie over it
    heads = [(RIGHT, top, "up")]
    for before, group in rows:
        if group[0].output[1] != side:
            side = group[0].output[1]
            level = [b for pair in rows for b in pair[0] if b.output[1] == side], [b for pair in rows for b in pair[1]
                                                                                  if b.output[1] == side]
            width = max(b.output[0] for b in level[0] or level[1])
            page.text(MIDDLE, y + 32, f"{side} × {group[0].output[2]} × {width}", "bold", "middle")
            for axis, part in ((LEFT + 14, level[0]), (RIGHT - 14, level[1])):
                page.text(axis, y + 32, short(sum(b.parameters for b in part)), "small faint",
                          "start" if axis < MIDDLE else "end") if part else None
            heads += [(LEFT, y + ROW - 8, "down"), *([(RIGHT, y + 12, "up")] if len(heads) > 1 else [])]
            y += ROW
        tall = max(bars.stack(before), bars.stack(group))
        down, up = y + tall - bars.stack(before), y + tall
        for block in before:
            start = bars.put(block, LEFT, down)
            down += bars.height(block) + GAP
        for i, block in enumerate(group):
            up -= bars.height(block) + GAP
            centre = bars.put(block, RIGHT, up)
            if i == 0 and before and targets:                  # the skip: from the last on the left into the first on the right
                end = RIGHT - bars.width(block) / 2 - 3
                page.line(f"M{LEFT + bars.width(before[-1]) / 2 + 2:.1f} {start:.1f} H{end - 8:.1f}", "skip")
                page.head(end, centre, "right", size=5)
        y += tall
    page.made[spine:spine] = [f'<path d="M{axis} {top} V{y:.1f}" class="line"/>' for axis in (LEFT, RIGHT)]
    for x, at, way in heads:
        page.head(x, at, way)
    return y


def hang(bars: Bars, middle: list[Block], y: float) -> float:
    """The middle of the U, from the left arm's end to the right arm's; returns y below it."""
    page, below = bars.page, y + 56
    turn = y + 24
    page.line(f"M{LEFT} {y:.1f} V{turn - 14:.1f} Q{LEFT} {turn:.1f} {LEFT + 14} {turn:.1f} H{MIDDLE - 14} Q{MIDDLE} {turn:.1f} "
              f"{MIDDLE} {turn + 14:.1f} V{below:.1f}")
    end = below + bars.stack(middle) + 18
    page.line(f"M{MIDDLE} {below:.1f} V{end - 14:.1f} Q{MIDDLE} {end:.1f} {MIDDLE + 14} {end:.1f} H{RIGHT - 14} "
              f"Q{RIGHT} {end:.1f} {RIGHT} {end - 14:.1f} V{y:.1f}")
    page.head(MIDDLE, below - 2, "down")
    page.head(RIGHT, y + 6, "up")
    for block in middle:
        bars.put(block, MIDDLE, below)
        below += bars.height(block) + GAP
    page.text(MIDDLE + 14, turn + 22, short(sum(b.parameters for b in middle)), "small faint")
    return end


def rails(bars: Bars, record: "architecture.Record", y: float) -> dict[str, float]:
    """Time and text: a line along the outside of the U for each, and a branch to every block that is handed it.

    Returns what has to be said of them, and how low it is.
    """
    page, notes = bars.page, {}
    embeddings = [b for b in record.unet if len(b.output) == 1]
    told = "time, sizes, pooled text" if "pooled" in record.tensors else "time t"
    rows = [("time", TIME, BLUE, y + 42, f"{told} → {shape(embeddings[0].output)}, "
             f"{short(sum(b.parameters for b in embeddings))}")] if embeddings else []
    if any("text" in block.reads for block, *_ in bars.ticks):
        rows.append(("text", TEXT, ORANGE, y + 88, f"text {shape(record.tensors['context'])}"))
    for what, margin, color, low, words in rows:
        reading = [(at, edge) for block, at, edge in bars.ticks if what in block.reads]
        for x in (margin, WIDTH - margin):
            mine = [(at, edge) for at, edge in reading if (edge > MIDDLE) == (x > MIDDLE)]
            top, turn = min(at for at, _ in mine), 12 if x < MIDDLE else -12
            page.line(f"M{x} {top:.1f} V{low - 12:.1f} Q{x} {low:.1f} {x + turn} {low:.1f} H{MIDDLE}", color)
            for at, edge in mine:
                end = edge - 2 if x < MIDDLE else edge + 2
                page.line(f"M{x} {at:.1f} H{end:.1f}", f"{color} thin")
                page.head(end, at, "right" if x < MIDDLE else "left", color, 4)
        page.chip(MIDDLE, low, words, "bold")
        notes["Blue lines: is told the time. Orange: cross-attention to the text." if what == "text" else
              "Blue lines: is told the time."] = low
    return {list(notes)[-1]: max(notes.values()), SIZES: max(notes.values())}


def legend(page: Page, blocks: tuple[Block, ...], notes: dict[str, float]) -> None:
    """Each class of block: its colour, how many there are, what they hold; with the embeddings they are the whole network."""
    found, y = {}, max(notes.values()) + 64
    for block in blocks:
        if len(block.output) == 3 and (block.parameters or block.input != block.output):
            found.setdefault((look(block), block.kind), []).append(block.parameters)
    for i, ((color, kind), counts) in enumerate(sorted(found.items(), key=lambda item: -sum(item[1]))):
        x, row = (30, 400)[i % 2], y + 32 * (i // 2)
        page.bar(x, row - 15, 18, 18, color)
        page.text(x + 28, row, f"{len(counts)} {kind}, {short(sum(counts))}", "small")
    y += 32 * -(-len(found) // 2) + 6
    for i, note in enumerate(notes):
        page.text(30, y + 28 * i, note, "small faint")
    page.height = y + 28 * len(notes)
