// Which instances are listed: those that match every part of the form.

const form = document.getElementById("filters");

function checked(group) {
  return [...form.querySelectorAll(`[data-group=${group}] input:checked`)].map((box) => box.value);
}

/** A test of rows for everything but the text. */
function currentTest() {
  const tests = [];
  for (const [group, kinds] of [["quadrant", config.quadrants], ["alignment", config.alignments]]) {
    const names = checked(group);
    const wanted = new Set(names.map((name) => kinds.findIndex((kind) => kind[0] === name)));
    if (names.length) tests.push((row) => wanted.has(columns[group][row]));
  }
  const graded = checked("graded");
  if (graded.length === 1) {
    const sign = graded[0] === "better" ? 1 : -1;
    tests.push((row) => change(row) * sign > config.tolerance); // null * sign is 0
  } else if (graded.length === 2) {
    tests.push((row) => Math.abs(change(row)) > config.tolerance);
  }
  for (const select of form.querySelectorAll("select")) {
    if (select.value === "") continue;
    const place = Number(select.value);
    const column = select.dataset.filter === "task" ? columns.task : columns.slices[select.dataset.column].index;
    tests.push((row) => column[row] === place);
  }
  return (row) => tests.every((test) => test(row));
}

/** Check these quadrants and no other box, and empty the rest of the form. */
function showOnly(names) {
  form.reset();
  for (const name of names) {
    const box = form.querySelector(`[data-group=quadrant] input[value=${CSS.escape(name)}]`);
    if (box) box.checked = true;
  }
}

/** Call `apply` with the rows that match, soon after the form changes; texts take a while. */
function watchFilters(apply, progress) {
  let running = new AbortController(), timer;
  async function update() {
    running.abort();
    const { signal } = (running = new AbortController());
    const matches = currentTest(), text = form.querySelector("[data-filter=text]").value.trim();
    let found = [];
    for (let row = 0; row < rows(); row++) if (matches(row)) found.push(row);
    if (text) found = await search(found, text, progress, signal);
    if (!signal.aborted) apply(found);
  }
  form.addEventListener("change", (event) => event.target.type !== "search" && update());
  document.getElementById("all").addEventListener("click", () => {
    form.reset();
    update();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.type !== "search") return;
    clearTimeout(timer);
    timer = setTimeout(update, 200);
  });
  return update;
}
