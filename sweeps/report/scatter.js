/* The scatter: any two columns; a rectangle that is dragged selects points. */

const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779",
  "#6ece58", "#b5de2b", "#fde725"];
const PAD = { left: 78, right: 16, top: 14, bottom: 50 };

/* Which colour each row has, and what a legend says of it. */
function coloring(column, palette) {
  const classes = new Uint8Array(rows);
  if (!column) return { classes, colors: [palette[0]], texts: [""] };
  const distinct = new Set();
  for (const v of column.numbers) if (distinct.size <= palette.length) distinct.add(v);
  distinct.delete(NaN);
  if (column.kind === "words" || distinct.size < palette.length) {
    const order = [...distinct].sort((a, b) => a - b);
    const place = new Map(order.map((v, i) => [v, Math.min(i, palette.length - 1)]));
    for (let i = 0; i < rows; i++) classes[i] = place.get(column.numbers[i]) ?? 0;
    const many = order.length > palette.length;
    const texts = order.slice(0, palette.length).map((v) => show(column, v) || "–");
    if (many) texts[palette.length - 1] = "others";
    return { classes, colors: palette, texts, title: column.label };
  }
  const scale = new Scale(column, column.log, 0);
  for (let i = 0; i < rows; i++) {
    const share = scale.at(column.numbers[i]);
    classes[i] = Math.max(0, Math.min(VIRIDIS.length - 1, Math.floor(share * VIRIDIS.length))) || 0;
  }
  const texts = [show(column, scale.value(0)), show(column, scale.value(1))];
  return { classes, colors: VIRIDIS, texts, title: column.label, ramp: true };
}

const SHAPES = ["circle", "square", "up", "diamond", "down", "plus"];

function mark(pen, shape, x, y, r) {
  pen.beginPath();
  if (shape === "circle") pen.arc(x, y, r, 0, 2 * Math.PI);
  else if (shape === "square") pen.rect(x - 0.88 * r, y - 0.88 * r, 1.76 * r, 1.76 * r);
  else if (shape === "plus") {
    pen.rect(x - r, y - 0.35 * r, 2 * r, 0.7 * r);
    pen.rect(x - 0.35 * r, y - r, 0.7 * r, 2 * r);
  } else {
    const corners = { up: [[0, -1.1], [1, 0.8], [-1, 0.8]], down: [[0, 1.1], [1, -0.8], [-1, -0.8]],
      diamond: [[0, -1.2], [1.1, 0], [0, 1.2], [-1.1, 0]] }[shape];
    corners.forEach(([u, v], i) => pen[i ? "lineTo" : "moveTo"](x + u * r, y + v * r));
    pen.closePath();
  }
  pen.fill();
  pen.stroke();
}

class Scatter {
  constructor(canvas, over, state) {
    Object.assign(this, { canvas, over, state, brush: null });
    this.drag = null;
    over.addEventListener("pointerdown", (e) => this.begin(e));
    over.addEventListener("pointermove", (e) => this.move(e));
    over.addEventListener("pointerup", (e) => this.end(e));
    over.addEventListener("pointerleave", () => this.state.hover(-1));
  }

  show(x, y, logX, logY) {
    this.x = new Scale(x, logX);
    this.y = new Scale(y, logY);
    this.u = this.x.places(x.numbers);
    this.v = this.y.places(y.numbers);
    this.brush = null;
  }

  resize(width, height) {
    Object.assign(this, { width, height });
    this.inner = { w: width - PAD.left - PAD.right, h: height - PAD.top - PAD.bottom };
  }

  place(row) {
    return [PAD.left + this.u[row] * this.inner.w, PAD.top + (1 - this.v[row]) * this.inner.h];
  }

  /* Clears the mask of rows outside the rectangle. */
  filter(mask) {
    if (!this.brush) return;
    const { u0, u1, v0, v1 } = this.brush;
    const { u, v } = this;
    for (let i = 0; i < rows; i++) {
      if (!(u[i] >= u0 && u[i] <= u1 && v[i] >= v0 && v[i] <= v1)) mask[i] = 0;
    }
  }

  draw() {
    const pen = sized(this.canvas, this.width, this.height);
    this.axes(pen);
    this.dots(pen);
    this.crosses(pen);
    this.front(pen);
    this.overlay();
  }

  /* Dominated points as dots: those that are not selected below, then a colour at a time. */
  dots(pen) {
    const { state, u, v } = this;
    const { w, h } = this.inner;
    const size = rows > 20000 ? 2.2 : rows > 2000 ? 3 : 4.5;
    const { classes, colors } = state.color;
    const paths = [FAINT, ...colors].map(() => new Path2D());
    const taken = paths.map(() => new Uint8Array(Math.ceil(this.width * 2) * Math.ceil(this.height * 2)));
    for (let i = 0; i < rows; i++) {
      const [x, y] = [PAD.left + u[i] * w, PAD.top + (1 - v[i]) * h];
      if (x !== x || y !== y || state.front[i] || state.broken[i]) continue;
      const kind = state.mask[i] ? classes[i] + 1 : 0;
      // Of the dots of one kind on the same half pixel one is enough.
      const cell = Math.round(y * 2) * Math.ceil(this.width * 2) + Math.round(x * 2);
      if (taken[kind][cell]) continue;
      taken[kind][cell] = 1;
      paths[kind].rect(x - size / 2, y - size / 2, size, size);
    }
    paths.forEach((path, kind) => {
      pen.fillStyle = kind ? colors[kind - 1] : FAINT;
      pen.globalAlpha = kind ? (state.filtered ? 0.8 : 0.4) : 1;
      pen.fill(path);
    });
    pen.globalAlpha = 1;
  }

  /* Points that break a constraint are small crosses. */
  crosses(pen) {
    const { state, u, v } = this;
    const every = Math.ceil(state.brokenCount / 4000);
    let seen = 0;
    pen.lineWidth = 0.8;
    for (const dark of [false, true]) {
      pen.strokeStyle = dark ? "#8a8a8a" : FAINT;
      pen.beginPath();
      for (let i = 0; i < rows; i++) {
        if (!state.broken[i] || u[i] !== u[i] || v[i] !== v[i]) continue;
        if (Boolean(state.mask[i]) !== dark || seen++ % every) continue;
        const [x, y] = this.place(i);
        pen.moveTo(x - 2.2, y - 2.2);
        pen.lineTo(x + 2.2, y + 2.2);
        pen.moveTo(x - 2.2, y + 2.2);
        pen.lineTo(x + 2.2, y - 2.2);
      }
      pen.stroke();
    }
  }

  front(pen) {
    const { state } = this;
    pen.lineWidth = 0.9;
    const r = state.frontRows.length > 400 ? 3.2 : 4.6;
    for (const row of state.frontRows) {
      if (Number.isNaN(this.u[row]) || Number.isNaN(this.v[row])) continue;
      const k = state.color.classes[row];
      const [x, y] = this.place(row);
      pen.strokeStyle = state.mask[row] ? "#000000" : "#b5b5b5";
      pen.fillStyle = state.mask[row] ? state.color.colors[k] : "#ffffff";
      mark(pen, state.color.ramp ? "circle" : SHAPES[k % SHAPES.length], x, y, r);
    }
  }

  axes(pen) {
    const { w, h } = this.inner;
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, this.width, this.height);
    pen.strokeStyle = LINE;
    pen.lineWidth = 1;
    pen.fillStyle = SOFT;
    const [across, up] = [this.x.labels(Math.max(3, Math.floor(w / 110))), this.y.labels()];
    pen.textAlign = "center";
    pen.textBaseline = "top";
    let free = -Infinity;
    for (const { at, text } of across.ticks) {
      const x = PAD.left + at * w;
      pen.beginPath();
      pen.moveTo(x, PAD.top);
      pen.lineTo(x, PAD.top + h);
      pen.stroke();
      const half = pen.measureText(text).width / 2;
      if (x - half > free) {
        pen.fillText(text, x, PAD.top + h + 7);
        free = x + half + 8;
      }
    }
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const { at, text } of up.ticks) {
      const y = PAD.top + (1 - at) * h;
      pen.beginPath();
      pen.moveTo(PAD.left, y);
      pen.lineTo(PAD.left + w, y);
      pen.stroke();
      pen.fillText(fitted(pen, text, PAD.left - 26), PAD.left - 7, y);
    }
    pen.fillStyle = INK;
    pen.textAlign = "center";
    pen.textBaseline = "bottom";
    pen.fillText(fitted(pen, across.title, w), PAD.left + w / 2, this.height - 6);
    pen.save();
    pen.translate(13, PAD.top + h / 2);
    pen.rotate(-Math.PI / 2);
    pen.textBaseline = "middle";
    pen.fillText(fitted(pen, up.title, h), 0, 0);
    pen.restore();
  }

  overlay() {
    const pen = sized(this.over, this.width, this.height);
    if (this.brush) {
      const { u0, u1, v0, v1 } = this.brush;
      const { w, h } = this.inner;
      const box = [PAD.left + u0 * w, PAD.top + (1 - v1) * h, (u1 - u0) * w, (v1 - v0) * h];
      pen.fillStyle = "rgba(0, 114, 178, 0.07)";
      pen.fillRect(...box);
      pen.strokeStyle = "#0072b2";
      pen.strokeRect(...box);
    }
    const row = this.state.hovered;
    if (row < 0 || Number.isNaN(this.u[row]) || Number.isNaN(this.v[row])) return;
    const [x, y] = this.place(row);
    pen.strokeStyle = "#000000";
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.arc(x, y, 8, 0, 2 * Math.PI);
    pen.stroke();
  }

  shares(event) {
    const box = this.over.getBoundingClientRect();
    const u = (event.clientX - box.left - PAD.left) / this.inner.w;
    const v = 1 - (event.clientY - box.top - PAD.top) / this.inner.h;
    return [Math.max(0, Math.min(1, u)), Math.max(0, Math.min(1, v))];
  }

  begin(event) {
    this.over.setPointerCapture(event.pointerId);
    this.drag = this.shares(event);
  }

  move(event) {
    const [u, v] = this.shares(event);
    if (!this.drag) {
      this.state.hover(this.nearest(u, v), event);
      return;
    }
    const [a, b] = this.drag;
    this.brush = { u0: Math.min(a, u), u1: Math.max(a, u), v0: Math.min(b, v), v1: Math.max(b, v) };
    this.state.changed();
  }

  /* A click without a drag removes the rectangle. */
  end(event) {
    if (!this.drag) return;
    const [u, v] = this.shares(event);
    const far = Math.hypot((u - this.drag[0]) * this.inner.w, (v - this.drag[1]) * this.inner.h);
    this.drag = null;
    if (far < 4) this.brush = null;
    this.state.changed();
  }

  nearest(u, v) {
    const { w, h } = this.inner;
    let best = 12 * 12;
    let found = -1;
    for (let i = 0; i < rows; i++) {
      const dx = (this.u[i] - u) * w;
      const dy = (this.v[i] - v) * h;
      const far = dx * dx + dy * dy - (this.state.front[i] ? 9 : 0);
      if (far < best && this.state.mask[i]) {
        best = far;
        found = i;
      }
    }
    return found;
  }
}
