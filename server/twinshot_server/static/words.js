// The words of a narrow model, and where in a text those stand that it was never taught.

/** The phrases of one kind: a list of them, or an object whose names they are. */
export function phrasesOf(kind) {
  if (Array.isArray(kind)) return kind.filter((phrase) => typeof phrase === "string");
  return kind && typeof kind === "object" ? Object.keys(kind) : [];
}

/** A text in pieces: every second one, from the first on, is between `words`, the others are the words. */
export function piecesOf(text, words) {
  const whole = (word) => (/\p{Script=Han}/u.test(word) ? word : `(?<![\\p{L}\\p{N}])${word}(?![\\p{L}\\p{N}])`);
  return words.length ? text.split(new RegExp(`(${words.map(whole).join("|")})`, "u")) : [text];
}
