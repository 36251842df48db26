// The instances: columns in memory, texts unpacked a block at a time when they are looked at or searched.

const config = JSON.parse(document.getElementById("config").textContent);
const blocks = new Map(); // place of a block -> promise of its texts
let columns; // set by `load`

async function unpack(id) {
  const binary = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

async function load() {
  columns = await unpack("columns");
  columns.sliceNames = Object.keys(columns.slices);
  columns.slices = Object.values(columns.slices);
}

function rows() {
  return columns.ids.length;
}

function blockOf(row) {
  const place = Math.floor(row / config.block);
  if (!blocks.has(place)) blocks.set(place, unpack(`texts-${place}`));
  return blocks.get(place);
}

/** The texts of an instance: by role, its input, target and answer; null where the log has none. */
async function textsOf(row) {
  const block = await blockOf(row), i = row % config.block, texts = {};
  for (const role of config.roles) {
    texts[role] = {};
    for (const [field, places] of Object.entries(block.columns[role])) {
      texts[role][field] = places[i] < 0 ? null : block.texts[places[i]];
    }
  }
  return texts;
}

/** Those of the rows that have the text in their id, inputs, targets or answers; any case. */
async function search(wanted, text, progress, signal) {
  const pattern = new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "iu");
  const found = [];
  let known, hits;
  for (let i = 0; i < wanted.length; i++) {
    const row = wanted[i], block = Math.floor(row / config.block);
    if (block !== known) {
      known = block;
      const unpacked = await blockOf(row);
      if (signal.aborted) return null;
      // Equal texts of a block are stored, and searched, once.
      hits = { texts: unpacked.texts.map((candidate) => pattern.test(candidate)), columns: unpacked.columns };
      progress(i / wanted.length);
    }
    if (pattern.test(columns.ids[row]) || hasHit(hits, row % config.block)) found.push(row);
  }
  return found;
}

function hasHit(hits, i) {
  return Object.values(hits.columns).some((fields) => Object.values(fields).some((places) => hits.texts[places[i]]));
}

/** D: how much the score changed from old to new; null where a log does not grade the instance. */
function change(row) {
  const { scores } = columns;
  if (!scores.old || config.roles.some((role) => scores[role][row] === null)) return null;
  return scores.new[row] - scores.old[row];
}

function nameOf(row) {
  const draw = columns.draws ? columns.draws[row] : 0;
  return [columns.tasks[columns.task[row]], columns.ids[row], draw];
}

function linkOf(row) {
  return "#item=" + nameOf(row).map(encodeURIComponent).join("/");
}

/** The row that a link names; -1 where the page does not hold it. */
function rowOf(link) {
  let parts;
  try {
    parts = link.replace("#item=", "").split("/").map(decodeURIComponent);
  } catch {
    return -1; // not written by this page
  }
  const [task, id, draw = "0"] = parts;
  for (let row = columns.ids.indexOf(id); row >= 0; row = columns.ids.indexOf(id, row + 1)) {
    const [itsTask, , itsDraw] = nameOf(row);
    if (itsTask === task && String(itsDraw) === draw) return row;
  }
  return -1;
}
