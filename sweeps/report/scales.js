/* Values as text with units, and where they lie on an axis. */

const SI = [[1e-12, "p"], [1e-9, "n"], [1e-6, "µ"], [1e-3, "m"], [1, ""], [1e3, "k"], [1e6, "M"],
  [1e9, "G"], [1e12, "T"], [1e15, "P"], [1e18, "E"]];
const BINARY = [[1, ""], [2 ** 10, "Ki"], [2 ** 20, "Mi"], [2 ** 30, "Gi"], [2 ** 40, "Ti"],
  [2 ** 50, "Pi"]];

function prefixOf(value, prefixes) {
  if (prefixes === "none" || !(value > 0) || !Number.isFinite(value)) return [1, ""];
  const table = prefixes === "si" ? SI : BINARY;
  let found = table[0];
  for (const entry of table) if (entry[0] <= value * (1 + 1e-9)) found = entry;
  return found;
}

function digits(value, count = 4) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e7 || size < 1e-4) return value.toExponential(2).replace(/\.?0+e/, "e");
  const rounded = Number(value.toPrecision(count));
  return size >= 1000 ? Math.round(rounded).toLocaleString("en") : String(rounded);
}

/* A value of a column as text, such as "1.8 TB/s". */
function show(column, value) {
  if (column.kind === "words") return column.texts[value] ?? "";
  if (Number.isNaN(value)) return "";
  const whole = column.prefixes === "none" && column.scale === 1 && Number.isInteger(value);
  if (whole) return `${value.toLocaleString("en")} ${column.unit}`.trim();
  const inUnit = value * column.scale;
  const [factor, prefix] = prefixOf(Math.abs(inUnit), column.prefixes);
  const gap = column.unit === "×" || !(prefix + column.unit) ? "" : " ";
  return `${digits(inUnit / factor)}${gap}${prefix}${column.unit}`;
}

function rangeOf(numbers, positive) {
  let low = Infinity;
  let high = -Infinity;
  for (const v of numbers) {
    if (!Number.isFinite(v) || (positive && v <= 0)) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return low <= high ? [low, high] : [0, 1];
}

function linearTicks(low, high, count) {
  const rough = (high - low) / count;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const parts = decades < 2 ? [1, 2, 5] : decades < 3 ? [1, 3] : [1];
  const ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
    for (const p of parts) {
      const tick = p * 10 ** e;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

/* Where the values of a column lie on an axis: share 0 to 1. */
class Scale {
  constructor(column, log, margin = 0.04) {
    this.column = column;
    this.words = column.kind === "words";
    this.log = log && !this.words;
    let [low, high] = rangeOf(column.numbers, this.log);
    if (this.words) [low, high] = [-0.5, column.texts.length - 0.5];
    if (this.log) [low, high] = [Math.log(low), Math.log(high)];
    const pad = high > low ? (high - low) * (this.words ? 0 : margin) : Math.abs(low) * 0.05 || 0.5;
    [this.low, this.high] = [low - pad, high + pad];
  }

  at(value) {
    const v = this.log ? Math.log(value) : value;
    return (v - this.low) / (this.high - this.low);
  }

  value(share) {
    const v = this.low + share * (this.high - this.low);
    return this.log ? Math.exp(v) : v;
  }

  places(numbers) {
    const found = new Float32Array(numbers.length);
    for (let i = 0; i < found.length; i++) {
      const share = this.at(numbers[i]);
      found[i] = Number.isFinite(share) ? share : NaN;
    }
    return found;
  }

  /* {title, ticks: [{at, text}]}, with one unit for all ticks where the span allows it. */
  labels(count = 6) {
    const { column } = this;
    if (this.words) {
      const ticks = column.texts.map((text, i) => ({ at: this.at(i), text: text || "–" }));
      return { title: column.label, ticks };
    }
    const [low, high] = [this.value(0), this.value(1)];
    const scaled = [low, high].map((v) => v * column.scale);
    let values = this.log ? logTicks(...scaled) : linearTicks(...scaled, count);
    if (values.length < 2) values = linearTicks(...scaled, count);
    const wide = this.log && high / low > 50 && column.prefixes !== "none";
    const middle = this.log ? Math.sqrt(scaled[0] * scaled[1]) : Math.max(...scaled.map(Math.abs));
    const [factor, prefix] = prefixOf(middle, column.prefixes);
    const unit = prefix + column.unit;
    const ticks = values.map((v) => ({
      at: this.at(v / column.scale),
      text: wide ? show(column, v / column.scale) : digits(v / factor),
    }));
    return { title: unit && !wide ? `${column.label} (${unit})` : column.label, ticks };
  }
}

/* A canvas with sharp lines on any screen; returns its drawing context in CSS pixels. */
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.font = '12px system-ui, "DejaVu Sans", sans-serif';
  return pen;
}

const INK = "#1c1c1c";
const SOFT = "#5d5d5d";
const LINE = "#dcdcdc";
const FAINT = "#dfe2e6";

/* Text that is cut to a width. */
function fitted(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let cut = text;
  while (cut.length > 1 && pen.measureText(`${cut}…`).width > width) cut = cut.slice(0, -1);
  return `${cut}…`;
}
