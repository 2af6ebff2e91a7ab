// A sheet of black paper of the model's own size, and white lines on it: what the ControlNet is shown, pixel by pixel.
// All is kept as strokes in shares of the side, so that the paper may change its size and any stroke can be taken back.

const PEN = 1.6 / 64, ERASER = 7 / 64;                 // widths, in shares of the side

export class Drawing {
  constructor(canvas, cursor, tool, changed) {
    Object.assign(this, { canvas, cursor, tool, changed, strokes: [], open: null, place: [0.5, 0.5] });
    canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); this.begin(this.at(e)); });
    canvas.addEventListener("pointermove", (e) => {
      if (this.open) (e.getCoalescedEvents?.() ?? [e]).forEach((one) => this.move(this.at(one)));
    });
    canvas.addEventListener("pointerup", () => this.end());
    canvas.addEventListener("pointercancel", () => this.end());
    canvas.addEventListener("keydown", (e) => this.key(e));
    canvas.addEventListener("blur", () => { this.end(); cursor.hidden = true; });
    this.paint();
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  begin(point) { this.open = { tool: this.tool(), points: [point] }; this.strokes.push(this.open); this.paint(); }

  move(point) {
    const free = ["pen", "eraser"].includes(this.open.tool);
    this.open.points = free ? [...this.open.points, point] : [this.open.points[0], point];
    this.paint();
  }

  end() {
    if (!this.open) return;
    const lone = this.open.points.length < 2 && !["pen", "eraser"].includes(this.open.tool);
    if (lone) this.strokes.pop();                       // a line, an ellipse, a box that was only begun
    this.open = null;
    this.paint();
    this.changed();
  }

  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) {
      const far = (event.shiftKey ? 8 : 1) / this.canvas.width;
      this.place = this.place.map((value, i) => Math.min(1, Math.max(0, value + way[i] * far)));
      if (this.open) this.move(this.place);
    } else if (event.key === " ") {
      if (this.open) this.end(); else this.begin(this.place);
    } else return;
    event.preventDefault();
    this.cursor.hidden = false;
    this.cursor.classList.toggle("down", this.open !== null);
    this.cursor.style.left = `${this.place[0] * this.canvas.clientWidth}px`;
    this.cursor.style.top = `${this.place[1] * this.canvas.clientHeight}px`;
  }

  get empty() { return !this.strokes.some((stroke) => stroke.tool !== "eraser"); }
  undo() { this.strokes.pop(); this.paint(); this.changed(); }
  clear() { this.strokes = []; this.paint(); this.changed(); }
  put(image) { this.strokes.push({ tool: "image", image }); this.paint(); this.changed(); }

  resize(size) {
    if (size === this.canvas.width) return;
    this.canvas.width = this.canvas.height = size;
    this.paint();
  }

  url() { return this.canvas.toDataURL("image/png"); }

  paint() {
    const side = this.canvas.width, pen = this.canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    pen.fillStyle = "black";
    pen.fillRect(0, 0, side, side);
    pen.lineCap = pen.lineJoin = "round";
    for (const { tool, points, image } of this.strokes) {
      if (tool === "image") { pen.drawImage(image, 0, 0, side, side); continue; }
      const [[x, y], [u, v]] = [points[0], points.at(-1)].map((p) => p.map((value) => value * side));
      pen.strokeStyle = tool === "eraser" ? "black" : "white";
      pen.lineWidth = (tool === "eraser" ? ERASER : PEN) * side;
      pen.beginPath();
      if (tool === "box") pen.rect(x, y, u - x, v - y);
      else if (tool === "ellipse") pen.ellipse((x + u) / 2, (y + v) / 2, Math.abs(u - x) / 2, Math.abs(v - y) / 2, 0, 0, 7);
      else {
        pen.moveTo(x, y);
        for (const [px, py] of points.slice(1)) pen.lineTo(px * side, py * side);
        if (points.length === 1) pen.lineTo(x, y);      // a dot
      }
      pen.stroke();
    }
  }
}

// A picture file, cut to a square and shrunk to size x size, on white: a canvas. Rejects what is no picture.
export async function square(file, size) {
  const image = await createImageBitmap(file);
  const side = Math.min(image.width, image.height), page = document.createElement("canvas");
  page.width = page.height = size;
  const pen = page.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, size, size);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, size, size);
  return page;
}
