// Which words of a prompt a narrow model was never taught, and prompts to begin with.

// Words that carry no picture of their own, or name where things stand; every model copes with them.
const EVERYDAY = new Set(
  `a an the and or of with without in on at to from by for left right above below over under beneath underneath next
  beside between behind front against top bottom side inside outside near is are that which shows showing there some
  one two three four 1 2 3 4 pair photo picture image drawing draw illustration render scene background backdrop wall
  please me my i it its this small large big little color colour colored coloured simple clean bright`.split(/\s+/),
);

const EXAMPLES = [
  "three penguins in the snow",
  "a rocket above a house in space",
  "two green apples on a pink background",
  "an orange fish below a boat at sunset",
  "four balloons in a meadow",
  "a robot and a cactus in the desert",
  "three foxes in a meadow",
  "a red balloon above a house",
  "a panda and a purple umbrella",
  "a red car left of a tree on a beach",
];

const WORD = /[\p{L}\p{N}][\p{L}\p{N}'’-]*/gu;
const PLURALS = [
  [/s$/, ""],
  [/es$/, ""],
  [/ies$/, "y"],
  [/ves$/, "fe"],
  [/men$/, "man"],
  [/mice$/, "mouse"],
  [/i$/, "us"],
];

/** Every single word that occurs in a model card's vocabulary, whatever its kinds are called. */
export function wordsOf(vocabulary) {
  const phrases = Object.values(vocabulary).flatMap(phrasesOf);
  return new Set(phrases.flatMap((phrase) => phrase.toLowerCase().match(WORD) ?? []));
}

/** The phrases of one kind: a list of them, or an object whose names they are. */
export function phrasesOf(kind) {
  if (Array.isArray(kind)) return kind.filter((phrase) => typeof phrase === "string");
  return kind && typeof kind === "object" ? Object.keys(kind) : [];
}

/**
 * Where unknown words stand in `prompt`, as `{ word, start, end }`. With no known words the model is a general one,
 * and nothing is unknown. A word that is still being typed at the end counts as unknown only when it cannot become a
 * known one any more.
 */
export function unknownWords(prompt, known) {
  if (known.size === 0) return [];
  return [...prompt.matchAll(WORD)]
    .map((match) => ({ word: match[0], start: match.index, end: match.index + match[0].length }))
    .filter(({ word, end }) => !isKnown(word.toLowerCase(), known, end === prompt.length));
}

/** Example prompts that hold known words only, in an order of their own. */
export function examplesFor(known) {
  return EXAMPLES.filter((prompt) => unknownWords(prompt, known).length === 0);
}

function isKnown(word, known, unfinished) {
  const has = (candidate) => known.has(candidate) || EVERYDAY.has(candidate);
  const singulars = PLURALS.filter(([ending]) => ending.test(word)).map(([ending, end]) => word.replace(ending, end));
  if ([word, word.replace(/['’]s?$/, ""), ...singulars].some(has)) return true;
  return unfinished && [...known, ...EVERYDAY].some((candidate) => candidate.startsWith(word));
}
