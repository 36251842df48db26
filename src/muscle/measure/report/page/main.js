// Puts the page together: theme, list, filters, links to a single instance.

const counter = document.getElementById("count");

function startTheme() {
  const button = document.getElementById("theme"), root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  function label() {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colours`);
  }
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  dark.addEventListener("change", label);
  label();
  button.hidden = false;
}

/** Put the link to the page itself, at this instance, on the clipboard, or where it can be copied by hand. */
async function copyLink(button) {
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy link"), 1500);
  } catch {
    const field = create("input", { type: "text", readonly: "", "aria-label": "Link to this instance" });
    field.value = location.href;
    button.replaceWith(field);
    field.select();
  }
}

function startExplorer() {
  let current = -1, list;
  const actions = {
    current: () => current,
    previous: () => list.step(-1),
    next: () => list.step(1),
    copy: copyLink,
  };
  function select(row) {
    current = row;
    history.replaceState(null, "", linkOf(row));
    return showInstance(row, actions);
  }
  function open() {
    article.focus({ preventScroll: true });
    article.scrollIntoView({ block: "nearest" });
  }
  function tell(shown) {
    const all = rows();
    counter.textContent = shown === all ? `${count(all)} instances` : `${count(shown)} of ${count(all)} instances`;
  }
  list = makeList(select, open);
  const update = watchFilters(
    (found) => {
      list.show(found);
      tell(found.length);
    },
    (share) => (counter.textContent = `Searching: ${Math.round(100 * share)} %`),
  );

  /** Do what the address says: one instance, or one quadrant. */
  async function follow(first) {
    const [kind, value] = location.hash.slice(1).split("=", 2);
    if (kind === "item") {
      const row = rowOf(location.hash);
      if (row < 0) {
        counter.textContent = "This page does not hold the instance that the link names.";
        return;
      }
      form.reset();
      await update();
      list.goTo(row, false);
      await select(row);
      article.scrollIntoView({ block: "start" });
    } else if (kind === "show") {
      showOnly([value, `${value}_different`]);
      await update();
      document.getElementById("instances").scrollIntoView();
    } else if (first) {
      showOnly(["negative_flip"]);
      await update();
    }
  }
  article.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || current < 0) return;
    list.goTo(current, true);
    event.preventDefault();
  });
  addEventListener("hashchange", () => follow(false));
  form.hidden = false;
  return follow(true);
}

startTheme();
counter.textContent = "Loading ...";
load()
  .then(startExplorer)
  .then(() => (document.documentElement.dataset.ready = ""))
  .catch((error) => {
    counter.textContent = "The instances cannot be shown in this browser; a newer one can.";
    throw error;
  });
