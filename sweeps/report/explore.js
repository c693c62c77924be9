/* The linked views: one selection, which scatter, parallel coordinates and table share. */

const $ = (id) => document.getElementById(id);
const HEIGHT = { scatter: 430, parallel: 320 };

class State {
  constructor() {
    this.mask = new Uint8Array(rows).fill(1);
    this.hovered = -1;
    this.filtered = false;
    this.waiting = false;
  }

  async begin() {
    this.front = await arrayOf(elementText("front"), Uint8Array);
    this.shown = await arrayOf(elementText("shown"), Uint8Array);
    const beyond = spec.statuses.indexOf("beyond a constraint");
    this.broken = this.shown.map((code) => (code === beyond ? 1 : 0));
    this.brokenCount = this.broken.reduce((a, b) => a + b, 0);
    this.frontRows = [...this.front.keys()].filter((i) => this.front[i]);
    this.scatter = new Scatter($("scatter"), $("scatter-over"), this);
    this.parallel = new Parallel($("parallel"), $("parallel-over"), this);
    this.table = new Table($("table"), $("pager"), this);
    await this.recolor();
    await this.axes();
    this.parallel.show(await Promise.all(spec.parallel.map(load)));
    this.table.show(await Promise.all(spec.table.map(load)));
    this.resize();
    this.apply();
  }

  statusOf(row) {
    return spec.statuses[this.shown[row]];
  }

  async axes() {
    const [x, y] = await Promise.all([load($("x-axis").value), load($("y-axis").value)]);
    this.scatter.show(x, y, $("log-x").checked, $("log-y").checked);
  }

  async recolor() {
    const name = $("color").value;
    this.color = coloring(name ? await load(name) : null, spec.palette);
    legend(this.color);
  }

  resize() {
    const width = Math.max(320, $("views").clientWidth);
    this.scatter.resize(width, HEIGHT.scatter);
    this.parallel.resize(width, HEIGHT.parallel);
    for (const [id, tall] of Object.entries(HEIGHT)) $(`${id}-box`).style.height = `${tall}px`;
    $("scatter-box").style.width = `${this.scatter.width}px`;
  }

  /* Many events between two frames are one drawing. */
  changed() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.apply();
    });
  }

  apply() {
    this.mask.fill(1);
    this.scatter.filter(this.mask);
    this.parallel.filter(this.mask);
    if ($("front-only").checked) this.mask.forEach((_, i) => (this.mask[i] &= this.front[i]));
    const chosen = [];
    for (let i = 0; i < rows; i++) if (this.mask[i]) chosen.push(i);
    this.filtered = chosen.length < rows;
    this.chosen = chosen;
    $("count").textContent = this.counted();
    $("csv-selected").disabled = !this.filtered;
    this.scatter.draw();
    this.parallel.draw();
    this.table.update(chosen);
    $("thinned").hidden = !this.parallel.thinned;
  }

  counted() {
    const all = `${rows.toLocaleString("en")} point${rows === 1 ? "" : "s"}`;
    if (!this.filtered) return `all ${all}`;
    return `${this.chosen.length.toLocaleString("en")} of ${all} selected`;
  }

  hover(row, event) {
    if (row === this.hovered) return;
    this.hovered = row;
    this.scatter.overlay();
    this.parallel.overlay();
    tip(this, row, event);
  }

  clear() {
    this.scatter.brush = null;
    for (const axis of this.parallel.axes) axis.brush = null;
    $("front-only").checked = false;
    this.changed();
  }
}

/* What a colour means, beside the scatter. */
function legend(color) {
  const box = $("legend");
  box.replaceChildren();
  if (!color.title) return;
  const title = document.createElement("strong");
  title.textContent = color.title;
  box.append(title);
  if (color.ramp) {
    const ramp = document.createElement("span");
    ramp.className = "ramp";
    ramp.style.background = `linear-gradient(to right, ${color.colors.join(",")})`;
    box.append(color.texts[0], ramp, color.texts[1]);
    return;
  }
  color.texts.forEach((text, k) => {
    const item = document.createElement("span");
    item.className = "item";
    const sign = document.createElement("canvas");
    const pen = sized(sign, 14, 14);
    pen.fillStyle = color.colors[k];
    pen.strokeStyle = "#000000";
    pen.lineWidth = 0.9;
    mark(pen, SHAPES[k % SHAPES.length], 7, 7, 4.6);
    item.append(sign, text);
    box.append(item);
  });
}

/* The design below the pointer, in words. */
async function tip(state, row, event) {
  const box = $("tip");
  box.hidden = row < 0 || !event;
  if (box.hidden) return;
  const names = [...new Set([...spec.axes, ...Object.keys(spec.objectives), $("x-axis").value,
    $("y-axis").value])];
  const columns = await Promise.all(names.map(load));
  if (state.hovered !== row) return;
  const place = document.createElement("b");
  place.textContent = state.front[row] ? "on the front" : state.statusOf(row);
  const lines = columns.map((c) => {
    const line = document.createElement("div");
    line.textContent = `${c.label}: ${show(c, valueOf(c, row)) || "–"}`;
    return line;
  });
  box.replaceChildren(place, ...lines);
  const area = $("scatter-box").getBoundingClientRect();
  const x = event.clientX - area.left;
  const left = x > area.width / 2;
  box.style.left = left ? "" : `${x + 14}px`;
  box.style.right = left ? `${area.width - x + 14}px` : "";
  box.style.top = `${Math.max(0, event.clientY - area.top - 30)}px`;
}

function option(column) {
  const item = document.createElement("option");
  item.value = column.name;
  item.textContent = column.label;
  item.title = column.name;
  return item;
}

/* Equal labels are told apart by the column's name. */
function fill(select, columns, chosen) {
  for (const column of columns) {
    const item = option(column);
    if (columns.some((c) => c !== column && c.label === column.label)) item.textContent = column.name;
    select.append(item);
  }
  select.value = chosen;
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/* Check boxes for the columns of a view; the view keeps the order of the page. */
function choices(box, columns, chosen, act) {
  for (const column of columns) {
    const label = document.createElement("label");
    const check = document.createElement("input");
    check.type = "checkbox";
    check.value = column.name;
    check.checked = chosen.includes(column.name);
    check.addEventListener("change", () => {
      act([...box.querySelectorAll("input:checked")].map((c) => c.value));
    });
    label.append(check, ` ${column.label}`);
    label.title = column.name;
    box.append(label);
  }
}

async function explore() {
  const state = new State();
  const drawn = spec.columns.filter((c) => c.drawn);
  const [x, y] = spec.scatter;
  fill($("x-axis"), drawn, x);
  fill($("y-axis"), drawn, y);
  fill($("color"), drawn, spec.color);
  for (const way of ["x", "y"]) {
    $(`log-${way}`).checked = columnOf.get($(`${way}-axis`).value).log;
    $(`${way}-axis`).addEventListener("change", async (e) => {
      $(`log-${way}`).checked = columnOf.get(e.target.value).log;
      await state.axes();
      state.changed();
    });
    $(`log-${way}`).addEventListener("change", async () => {
      await state.axes();
      state.changed();
    });
  }
  $("color").addEventListener("change", async () => {
    await state.recolor();
    state.changed();
  });
  $("front-only").addEventListener("change", () => state.changed());
  $("clear").addEventListener("click", () => state.clear());
  const [back, next] = $("pager").querySelectorAll("button");
  back.addEventListener("click", () => state.table.turn(-1));
  next.addEventListener("click", () => state.table.turn(1));
  const name = document.title.replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 60);
  const all = Uint32Array.from({ length: rows }, (_, i) => i);
  $("csv-all").addEventListener("click", async () => save(await csvOf(all), `${name}.csv`));
  $("csv-selected").addEventListener("click", async () => {
    save(await csvOf(Uint32Array.from(state.chosen)), `${name}-selected.csv`);
  });
  choices($("parallel-columns"), drawn, spec.parallel, async (names) => {
    state.parallel.show(await Promise.all(names.map(load)));
    state.changed();
  });
  choices($("table-columns"), spec.columns, spec.table, async (names) => {
    state.table.show(await Promise.all(names.map(load)));
    state.table.draw();
  });
  await state.begin();
  new ResizeObserver(() => {
    state.resize();
    state.changed();
  }).observe($("views"));
  window.opbyteReport = state;
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

if (spec.scatter.length && rows) {
  if (typeof DecompressionStream === "undefined") $("explore-problem").hidden = false;
  else explore();
}
