/* The table of the selected points, page by page. */

const PAGE = 20;

class Table {
  constructor(element, pager, state) {
    Object.assign(this, { element, pager, state, sort: null, page: 0, rows: [], columns: [] });
  }

  show(columns) {
    this.columns = columns;
  }

  /* Takes the rows that are selected; the front stands first until a column is clicked. */
  update(chosen) {
    this.chosen = chosen;
    const { front } = this.state;
    this.rows = Uint32Array.from(chosen);
    if (this.sort) {
      const { column, up } = this.sort;
      const key = column.kind === "words" ? ranks(column) : column.numbers;
      const sign = up ? 1 : -1;
      this.rows.sort((a, b) => {
        const [x, y] = [key[a], key[b]];
        if (x !== x || y !== y) return x !== x ? (y !== y ? a - b : 1) : -1;
        return sign * (x - y) || a - b;
      });
    } else {
      const first = chosen.filter((row) => front[row]);
      this.rows.set(first);
      let at = first.length;
      for (const row of chosen) if (!front[row]) this.rows[at++] = row;
    }
    this.page = 0;
    this.draw();
  }

  draw() {
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const column of this.columns) head.append(this.heading(column));
    const body = table.createTBody();
    const start = this.page * PAGE;
    for (const row of this.rows.subarray(start, start + PAGE)) this.line(body, row);
    this.element.replaceChildren(table);
    const pages = Math.max(1, Math.ceil(this.rows.length / PAGE));
    this.pager.querySelector("span").textContent =
      `page ${(this.page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`;
    const [back, next] = this.pager.querySelectorAll("button");
    back.disabled = this.page === 0;
    next.disabled = this.page + 1 >= pages;
  }

  heading(column) {
    const cell = document.createElement("th");
    cell.className = column.kind === "words" ? "word" : "number";
    cell.scope = "col";
    const button = document.createElement("button");
    const sorted = this.sort?.column.name === column.name;
    button.textContent = column.label + (sorted ? (this.sort.up ? " ▲" : " ▼") : "");
    button.title = column.name;
    cell.setAttribute("aria-sort", sorted ? (this.sort.up ? "ascending" : "descending") : "none");
    button.addEventListener("click", () => {
      this.sort = { column, up: sorted ? !this.sort.up : true };
      this.update(this.chosen);
    });
    cell.append(button);
    return cell;
  }

  line(body, row) {
    const line = body.insertRow();
    line.dataset.row = row;
    if (this.state.front[row]) line.className = "front";
    for (const column of this.columns) {
      const cell = line.insertCell();
      cell.className = column.kind === "words" ? "word" : "number";
      if (column.name === "status") cell.textContent = this.state.statusOf(row);
      else if (column.exact) cell.textContent = String(column.exact[row]);
      else cell.textContent = show(column, valueOf(column, row));
    }
    line.addEventListener("pointerenter", () => this.state.hover(row));
    line.addEventListener("pointerleave", () => this.state.hover(-1));
  }

  turn(step) {
    this.page += step;
    this.draw();
  }
}

const valueOf = (column, row) =>
  column.kind === "words" ? column.codes[row] : column.numbers[row];

/* The place of each row's text in alphabetical order. */
function ranks(column) {
  const order = column.texts.map((text, i) => [text, i]).sort((a, b) => (a[0] < b[0] ? -1 : 1));
  const rank = new Float64Array(order.length);
  order.forEach(([, i], place) => {
    rank[i] = place;
  });
  return Float64Array.from(column.codes, (code) => rank[code]);
}
