/* Columns: decoded when first asked for, to the very values of the store (_columns.py). */

const spec = JSON.parse(document.getElementById("spec").textContent);
const columnOf = new Map(spec.columns.map((c) => [c.name, c]));
const rows = spec.rows;
const decoded = new Map();

async function inflated(text) {
  const letters = atob(text.trim());
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) packed[i] = letters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/* Bytes come by significance: all first bytes, then all second ones. */
async function arrayOf(text, Kind) {
  const planes = await inflated(text);
  const width = Kind.BYTES_PER_ELEMENT;
  const count = planes.length / width;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < width; plane++) {
    const start = plane * count;
    for (let i = 0; i < count; i++) bytes[i * width + plane] = planes[start + i];
  }
  return new Kind(bytes.buffer);
}

function codeKind(count) {
  if (count <= 256) return Uint8Array;
  return count <= 65536 ? Uint16Array : Uint32Array;
}

const elementText = (id) => document.getElementById(id).textContent;

async function decode(column) {
  const text = elementText(column.element);
  if (column.kind === "words") {
    const codes = await arrayOf(text, codeKind(column.texts.length));
    return { codes, numbers: Float64Array.from(codes) };
  }
  if (column.kind === "wide") {
    const exact = await arrayOf(text, BigInt64Array);
    return { exact, numbers: Float64Array.from(exact, Number) };
  }
  if (column.kind === "integers") {
    const steps = await arrayOf(text, Int32Array);
    const numbers = new Float64Array(steps.length);
    for (let i = 0, sum = 0; i < steps.length; i++) numbers[i] = sum += steps[i];
    return { numbers };
  }
  if (column.kind === "codes") {
    const values = await arrayOf(column.values, Float64Array);
    const codes = await arrayOf(text, codeKind(values.length));
    const numbers = new Float64Array(codes.length);
    for (let i = 0; i < codes.length; i++) numbers[i] = values[codes[i]];
    return { numbers };
  }
  return { numbers: await arrayOf(text, Float64Array) };
}

/* A column with its values: `numbers` (of words: codes), (rows,). */
function load(name) {
  if (!decoded.has(name)) {
    const column = columnOf.get(name);
    decoded.set(name, decode(column).then((values) => ({ ...column, ...values })));
  }
  return decoded.get(name);
}

/* A value as the store has it, for a CSV file. */
function exactText(column, row) {
  if (column.kind === "words") return quoted(column.texts[column.codes[row]]);
  if (column.exact) return String(column.exact[row]);
  const value = column.numbers[row];
  if (Number.isNaN(value)) return "";
  if (Object.is(value, -0)) return "-0.0";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  return String(value);
}

function quoted(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const pause = () => new Promise((done) => setTimeout(done));

/* The chosen rows with all columns of the store, as a CSV file. */
async function csvOf(chosen) {
  const columns = await Promise.all(spec.columns.map((c) => load(c.name)));
  const parts = [`${columns.map((c) => quoted(c.name)).join(",")}\r\n`];
  for (let start = 0; start < chosen.length; start += 5000) {
    const lines = [];
    for (const row of chosen.slice(start, start + 5000)) {
      lines.push(columns.map((c) => exactText(c, row)).join(","));
    }
    parts.push(`${lines.join("\r\n")}\r\n`);
    await pause();
  }
  return new Blob(parts, { type: "text/csv" });
}
