/* Parallel coordinates: one line for each point; a stretch dragged on an axis selects. */

const EDGE = { left: 70, right: 70, top: 46, bottom: 18 };
/* Lines that are drawn of each kind; of more, evenly some. */
const MOST_LINES = 2000;

class Parallel {
  constructor(canvas, over, state) {
    Object.assign(this, { canvas, over, state, axes: [], drag: null });
    over.addEventListener("pointerdown", (e) => this.begin(e));
    over.addEventListener("pointermove", (e) => this.move(e));
    over.addEventListener("pointerup", (e) => this.end(e));
  }

  /* Brushes of columns that stay are kept. */
  show(columns) {
    const before = new Map(this.axes.map((a) => [a.column.name, a.brush]));
    this.axes = columns.map((column) => {
      const scale = new Scale(column, column.log, 0.02);
      const brush = before.get(column.name) ?? null;
      return { column, scale, places: scale.places(column.numbers), brush };
    });
  }

  resize(width, height) {
    Object.assign(this, { width, height, tall: height - EDGE.top - EDGE.bottom });
  }

  across(k) {
    const wide = this.width - EDGE.left - EDGE.right;
    return EDGE.left + (this.axes.length > 1 ? (k * wide) / (this.axes.length - 1) : wide / 2);
  }

  down(share) {
    return EDGE.top + (1 - share) * this.tall;
  }

  filter(mask) {
    for (const { brush, places } of this.axes) {
      if (!brush) continue;
      const [low, high] = brush;
      for (let i = 0; i < rows; i++) if (!(places[i] >= low && places[i] <= high)) mask[i] = 0;
    }
  }

  draw() {
    const pen = sized(this.canvas, this.width, this.height);
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, this.width, this.height);
    const { state } = this;
    const [out, plain, front] = [[], [], []];
    for (let i = 0; i < rows; i++) {
      (state.mask[i] ? (state.front[i] ? front : plain) : out).push(i);
    }
    if (state.filtered) this.lines(pen, out, () => FAINT, 0.5, MOST_LINES / 2);
    const shade = (row) => state.color.colors[state.color.classes[row]];
    const clear = plain.length < 200 ? 0.6 : state.filtered ? 0.3 : 0.13;
    this.lines(pen, plain, shade, clear, MOST_LINES);
    this.lines(pen, front, shade, 0.95, MOST_LINES, 1.3);
    this.thinned = Math.max(plain.length, front.length) > MOST_LINES;
    this.frame(pen);
    this.overlay();
  }

  lines(pen, chosen, shade, alpha, most, width = 0.8) {
    const every = Math.max(1, Math.ceil(chosen.length / most));
    pen.globalAlpha = alpha;
    pen.lineWidth = width;
    for (let k = 0; k < chosen.length; k += every) {
      pen.strokeStyle = shade(chosen[k]);
      this.line(pen, chosen[k]);
    }
    pen.globalAlpha = 1;
  }

  /* A missing value interrupts a line. */
  line(pen, row) {
    pen.beginPath();
    let joined = false;
    this.axes.forEach(({ places }, k) => {
      const share = places[row];
      if (Number.isNaN(share)) joined = false;
      else {
        pen[joined ? "lineTo" : "moveTo"](this.across(k), this.down(share));
        joined = true;
      }
    });
    pen.stroke();
  }

  frame(pen) {
    const room = this.axes.length > 1 ? this.across(1) - this.across(0) - 12 : this.width;
    this.axes.forEach(({ scale }, k) => {
      const x = this.across(k);
      pen.strokeStyle = SOFT;
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(x, this.down(1));
      pen.lineTo(x, this.down(0));
      pen.stroke();
      const { title, ticks } = scale.labels(5);
      pen.font = '11px system-ui, "DejaVu Sans", sans-serif';
      pen.textAlign = "left";
      pen.textBaseline = "middle";
      for (const { at, text } of ticks) {
        const y = this.down(at);
        const label = fitted(pen, text, Math.min(room, k + 1 < this.axes.length ? 130 : EDGE.right) - 8);
        const wide = pen.measureText(label).width;
        pen.fillStyle = "rgba(255, 255, 255, 0.82)";
        pen.fillRect(x + 5, y - 7, wide + 4, 14);
        pen.fillStyle = INK;
        pen.fillText(label, x + 7, y);
        pen.beginPath();
        pen.moveTo(x - 3, y);
        pen.lineTo(x + 3, y);
        pen.stroke();
      }
      this.title(pen, title, x, Math.max(room, 60));
    });
  }

  /* Titles take up to two lines. */
  title(pen, text, x, room) {
    pen.font = '12px system-ui, "DejaVu Sans", sans-serif';
    pen.fillStyle = INK;
    pen.textAlign = "center";
    pen.textBaseline = "bottom";
    const words = text.split(" ");
    let first = words.shift();
    while (words.length && pen.measureText(`${first} ${words[0]}`).width <= room) {
      first += ` ${words.shift()}`;
    }
    const second = words.join(" ");
    pen.fillText(fitted(pen, first, room), x, second ? 18 : 32);
    if (second) pen.fillText(fitted(pen, second, room), x, 34);
  }

  overlay() {
    const pen = sized(this.over, this.width, this.height);
    this.axes.forEach(({ brush }, k) => {
      if (!brush) return;
      const [low, high] = brush;
      const box = [this.across(k) - 7, this.down(high), 14, this.down(low) - this.down(high)];
      pen.fillStyle = "rgba(0, 114, 178, 0.18)";
      pen.fillRect(...box);
      pen.strokeStyle = "#0072b2";
      pen.strokeRect(...box);
    });
    if (this.state.hovered < 0) return;
    pen.strokeStyle = "#000000";
    pen.lineWidth = 2.2;
    this.line(pen, this.state.hovered);
  }

  at(event) {
    const box = this.over.getBoundingClientRect();
    const x = event.clientX - box.left;
    let axis = -1;
    this.axes.forEach((_, k) => {
      if (Math.abs(this.across(k) - x) < 26) axis = k;
    });
    const share = 1 - (event.clientY - box.top - EDGE.top) / this.tall;
    return { axis, share: Math.max(0, Math.min(1, share)) };
  }

  begin(event) {
    const { axis, share } = this.at(event);
    if (axis < 0) return;
    this.over.setPointerCapture(event.pointerId);
    this.drag = { axis, share };
  }

  move(event) {
    const { axis, share } = this.at(event);
    this.over.style.cursor = axis >= 0 || this.drag ? "ns-resize" : "default";
    if (!this.drag) return;
    const ends = [this.drag.share, share].sort((a, b) => a - b);
    this.axes[this.drag.axis].brush = ends;
    this.state.changed();
  }

  /* A click without a drag frees the axis. */
  end(event) {
    if (!this.drag) return;
    const { share } = this.at(event);
    if (Math.abs(share - this.drag.share) * this.tall < 4) this.axes[this.drag.axis].brush = null;
    this.drag = null;
    this.state.changed();
  }
}
