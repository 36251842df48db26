// One instance: its texts side by side, with the words that differ marked.

const article = document.getElementById("instance");

const NAMES = { old: "Old", new: "New", compatible: "Compatible" };
const VERDICTS = { "1": ["right", "✓ right"], "0": ["wrong", "✗ wrong"], "-1": ["unscored", "? unscored"] };

/** Show the instance; resolves when its texts are there. */
async function showInstance(row, actions) {
  const texts = await textsOf(row);
  if (actions.current() !== row) return; // another one was chosen meanwhile
  article.replaceChildren(head(row, actions), answers(row, texts), ...prompts(texts));
  article.hidden = false;
  showEnds();
}

function head(row, actions) {
  const [task, id, draw] = nameOf(row);
  const title = create("h3", {}, kindCell(config.quadrants[columns.quadrant[row]]), " ");
  if (columns.alignment?.[row]) title.append(kindCell(config.alignments[columns.alignment[row]]), " ");
  const where = create("p", { class: "where" });
  if (task) where.append(isolated(task), " / ");
  where.append(isolated(id));
  if (columns.draws) where.append(`, draw ${draw}`);
  columns.slices.forEach((slice, i) => {
    const value = coded(slice)(row);
    if (value != null) where.append(", ", isolated(columns.sliceNames[i]), ": ", isolated(value));
  });
  const d = change(row);
  if (d != null) where.append(", ", create("span", { class: "number" }, `D = ${signed(d)}`));
  const buttons = create("div", { class: "buttons" });
  for (const [label, act] of [["Previous", actions.previous], ["Next", actions.next], ["Copy link", actions.copy]]) {
    const button = buttons.appendChild(create("button", { type: "button", class: "quiet" }, label));
    button.addEventListener("click", () => act(button));
  }
  return create("header", {}, create("div", {}, title, where), buttons);
}

function answers(row, texts) {
  const shown = create("div", { class: `answers of-${config.roles.length}` });
  const pieces = {}, before = texts.old.answer;
  for (const role of config.roles.slice(1)) {
    const after = texts[role].answer;
    if (before == null || after == null) continue;
    const [removed, added] = diffWords(before, after);
    pieces.old ??= removed; // against new
    pieces[role] = added;
  }
  for (const role of config.roles) {
    const [name, verdict] = VERDICTS[columns.correct[role][row]];
    const score = columns.scores[role]?.[row];
    const title = create("h4", {}, create("span", { class: `key ${role}` }), " ", NAMES[role], " ");
    title.append(create("span", { class: `verdict ${name}` }, verdict));
    if (score != null) title.append(create("span", { class: "number score" }, ` ${score}`));
    shown.append(create("section", {}, title, answer(role, texts[role].answer, pieces[role])));
  }
  return shown;
}

function answer(role, text, pieces) {
  if (text == null) return create("p", { class: "absent" }, "No answer in the log.");
  const shown = create("div", { class: "text", dir: "auto" });
  if (text === "") shown.append(create("i", { class: "absent" }, "empty"));
  for (const [piece, kept] of pieces ?? [[text, true]]) {
    if (kept) appendText(shown, piece);
    else shown.append(appendText(create(role === "old" ? "del" : "ins"), piece));
  }
  return shown;
}

/** Target and input; once where all logs have the same, else of each. */
function prompts(texts) {
  return [["target", "Target"], ["input", "Input"]].map(([field, title]) => {
    const of = new Map(); // text -> roles
    for (const role of config.roles) {
      const text = texts[role][field];
      if (text != null) of.set(text, [...(of.get(text) ?? []), role]);
    }
    const shown = create("div", { class: `prompts ${field}` });
    if (!of.size) {
      const absent = create("p", { class: "absent" }, "Not in the logs.");
      shown.append(create("section", {}, create("h4", {}, title), absent));
    }
    for (const [text, roles] of of) {
      const heading = of.size > 1 ? `${title} of ${roles.join(" and ")}` : title;
      shown.append(create("section", {}, create("h4", {}, heading), isolated(text, "div", { class: "text" })));
    }
    return shown;
  });
}

/** The question stands last in a prompt. */
function showEnds() {
  for (const text of article.querySelectorAll(".input .text")) text.scrollTop = text.scrollHeight;
}
