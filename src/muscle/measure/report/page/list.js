// The list of instances: DataTables draws the rows in view, this file says what stands in them and moves the focus.

const NARROW = matchMedia("(max-width: 720px)");

function kindCell(kind) {
  const [name, symbol, label] = kind;
  return create("span", { class: `kind ${name}` }, create("span", { "aria-hidden": "true" }, symbol), " ", label);
}

function textCell(text) {
  return text == null ? create("i", { class: "absent" }, "none") : isolated(text);
}

/** A column for DataTables: `shown` makes the node, `key` the number or text to sort by. */
function column(title, className, shown, key) {
  return {
    title,
    className,
    searchable: false,
    orderable: Boolean(key),
    type: "num", // `key` gives numbers, or texts already in order
    data: ([row], type) => (type === "display" ? shown(row) : key ? key(row) : 0),
  };
}

function coded(part) {
  return (row) => part.values[part.index[row]];
}

/** Places of texts in their order, numbers by size, so that sorting compares numbers only. */
function ranks(texts) {
  const order = new Intl.Collator("en", { numeric: true }).compare;
  const places = texts.map((_, i) => i).sort((a, b) => order(texts[a], texts[b]));
  const rank = new Int32Array(texts.length);
  places.forEach((place, i) => (rank[place] = i));
  return rank;
}

function listColumns() {
  const input = coded(columns.texts.input), graded = Object.keys(columns.scores).length > 0;
  let ids;
  const shown = [
    column("old to new", "kind", (row) => kindCell(config.quadrants[columns.quadrant[row]]), (row) => columns.quadrant[row]),
  ];
  if (columns.alignment) {
    const kinds = (row) => config.alignments[columns.alignment[row]];
    shown.push(column("new to comp.", "kind alignment", (row) => kindCell(kinds(row)), (row) => columns.alignment[row] || 99));
  }
  if (graded) {
    const size = (row) => Math.abs(change(row) ?? -1e-300); // what is not graded stands behind what did not change
    shown.push({ ...column("D", "number change", changeText, size), orderSequence: ["desc", "asc"] });
  }
  if (columns.tasks.length > 1) {
    shown.push(column("task", "task", (row) => isolated(nameOf(row)[0]), (row) => columns.task[row]));
  }
  shown.push(
    column("id", "id", (row) => isolated(idText(row)), (row) => (ids ??= ranks(columns.ids))[row]),
    column("input", "input", (row) => textCell(input(row))),
  );
  for (const role of config.roles) {
    shown.push(column(role, "answer", (row) => textCell(coded(columns.texts[role])(row))));
  }
  return shown;
}

function idText(row) {
  const [, id, draw] = nameOf(row);
  return columns.draws ? `${id} #${draw}` : id;
}

function signed(number) {
  return (number > 0 ? "+" : number < 0 ? "\u2212" : "") + Math.abs(number).toPrecision(3).replace(/\.?0+$/, "");
}

function changeText(row) {
  const d = change(row);
  return d == null ? "" : create("span", { class: d < 0 ? "worse" : d > 0 ? "better" : "" }, signed(d));
}

/** The table; `select(row)` is called when an instance is chosen by mouse or keyboard, `open()` when it is to be read. */
function makeList(select, open) {
  const host = document.getElementById("list");
  const element = host.appendChild(create("table", { class: `list compact of-${config.roles.length}`, role: "grid" }));
  const mask = new Uint8Array(rows()).fill(1);
  let current = -1, wantsFocus = false, listed = null; // rows in order, while neither filter nor order changes
  const table = new muscleTables.default(element, {
    data: Array.from(mask, (_, row) => [row]),
    columns: listColumns(),
    createdRow: (node, [row]) => {
      node.dataset.row = row;
      node.tabIndex = -1;
    },
    deferRender: true,
    scroller: { rowHeight: 33, displayBuffer: 5 },
    scrollY: "21rem",
    scrollCollapse: true,
    autoWidth: false,
    order: [],
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    language: { emptyTable: "No instances.", zeroRecords: "No instance matches." },
  });
  element.setAttribute("aria-label", "Instances");
  table.search.fixed("form", (_, __, row) => mask[row] === 1);

  function nodeOf(row) {
    return element.tBodies[0].querySelector(`tr[data-row="${row}"]`);
  }
  function mark() {
    const node = nodeOf(current);
    for (const other of element.tBodies[0].rows) {
      other.setAttribute("aria-selected", String(other === node));
      other.tabIndex = other === node ? 0 : -1;
    }
    const first = element.tBodies[0].rows[0];
    if (!node && first?.dataset.row) first.tabIndex = 0; // some row must be reachable by Tab
    if (node && wantsFocus) {
      node.focus({ preventScroll: true });
      wantsFocus = false;
    }
  }
  /** Make the row the current one and bring it into view. */
  function goTo(row, focus) {
    current = row;
    wantsFocus = focus;
    const body = element.closest(".dt-scroll-body").getBoundingClientRect(), node = nodeOf(row)?.getBoundingClientRect();
    if (!node || node.top < body.top || node.bottom > body.bottom) table.row(row).scrollTo(false);
    mark();
  }
  function step(by) {
    listed ??= table.rows({ order: "applied", search: "applied" }).indexes().toArray();
    if (!listed.length) return;
    const at = listed.indexOf(current);
    const next = listed[at < 0 ? 0 : Math.min(listed.length - 1, Math.max(0, at + by))];
    goTo(next, true);
    select(next);
  }
  table.on("draw", mark);
  table.on("order", () => (listed = null));
  element.tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-row]");
    if (!row) return;
    goTo(Number(row.dataset.row), true);
    select(current);
  });
  element.tBodies[0].addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    if (event.key in steps) step(steps[event.key]);
    else if (event.key === "Enter" || event.key === " ") {
      goTo(Number(event.target.closest("tr[data-row]").dataset.row), false);
      select(current).then(event.key === "Enter" ? open : null);
    } else return;
    event.preventDefault();
  });
  // A telephone has room for what happened and the id.
  function fit() {
    table.columns([".task", ".input", ".alignment", ".answer"]).visible(!NARROW.matches);
  }
  NARROW.addEventListener("change", fit);
  fit();

  return {
    goTo,
    step,
    show(found) {
      mask.fill(0);
      for (const row of found) mask[row] = 1;
      table.draw();
      listed = null;
    },
  };
}
