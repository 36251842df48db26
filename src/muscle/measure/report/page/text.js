// Texts of models are untrusted. They enter the page here and nowhere else: as text nodes, never as markup.

// What a reader cannot see, or what would turn the order of letters around (U+202E and its like).
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/gu;

function codePoint(character) {
  return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}

/** Append the text to the element, with its invisible characters made visible. */
function appendText(parent, text) {
  let end = 0;
  for (const found of text.matchAll(UNSEEN)) {
    parent.append(text.slice(end, found.index));
    parent.append(create("span", { class: "unseen", title: "an invisible character" }, codePoint(found[0])));
    end = found.index + found[0].length;
  }
  parent.append(text.slice(end));
  return parent;
}

/** A new element; children are elements or texts that the page itself made. */
function create(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** An element that keeps the direction of the text in it to itself. */
function isolated(text, name = "bdi", attributes = {}) {
  return appendText(create(name, { dir: "auto", ...attributes }), text);
}

function count(number) {
  return number.toLocaleString("en");
}
