// A word-level diff: the longest common subsequence of the words of two texts.

// Words, runs of blanks, and any other character of its own; scripts without blanks go by character.
const WORDS = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}]|[\p{L}\p{M}\p{N}_]+|\s+|./gsu;

// Cells of the table below: texts of some 3,000 words each, a quarter of a second.
const MOST_CELLS = 9_000_000;

/**
 * What two texts have in common and what only one has.
 * Returns [[text, kept], ...] for each of them; all of what differs is one piece where the texts are too long.
 */
function diffWords(left, right) {
  const a = left.match(WORDS) ?? [], b = right.match(WORDS) ?? [];
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const keptA = new Uint8Array(a.length).fill(1, 0, head).fill(1, a.length - tail);
  const keptB = new Uint8Array(b.length).fill(1, 0, head).fill(1, b.length - tail);
  for (const run of commonRuns(a.slice(head, a.length - tail), b.slice(head, b.length - tail))) {
    // Blanks and commas alone between two changes are no common ground.
    if (!run.some(([i]) => /[\p{L}\p{N}]/u.test(a[head + i]))) continue;
    for (const [i, j] of run) keptA[head + i] = keptB[head + j] = 1;
  }
  return [pieces(a, keptA), pieces(b, keptB)];
}

/** The longest common subsequence, as runs of places [in a, in b] that follow each other in both. */
function commonRuns(a, b) {
  const n = a.length, m = b.length, runs = [];
  if (n * m > MOST_CELLS) return runs;
  const longest = new Uint16Array((n + 1) * (m + 1)); // at i * (m + 1) + j: of the words from i of a and from j of b
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      const at = i * (m + 1) + j, below = longest[at + m + 1], beside = longest[at + 1];
      longest[at] = a[i] === b[j] ? longest[at + m + 2] + 1 : below > beside ? below : beside;
    }
  }
  for (let i = 0, j = 0; i < n && j < m; ) {
    const run = [];
    while (i < n && j < m && a[i] === b[j]) run.push([i++, j++]);
    if (run.length) runs.push(run);
    else if (longest[(i + 1) * (m + 1) + j] >= longest[i * (m + 1) + j + 1]) i++;
    else j++;
  }
  return runs;
}

/** Neighbours that are kept, or not, as one text. */
function pieces(words, kept) {
  const found = [];
  words.forEach((word, i) => {
    const same = kept[i] === 1, last = found.at(-1);
    if (last && last[1] === same) last[0] += word;
    else found.push([word, same]);
  });
  return found;
}
