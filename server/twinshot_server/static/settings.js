// What the page draws, and its form in the address: `#prompt=a+red+car&seed=7&size=256x256&steps=1&n=1`.

export const MAX_SEED = 2 ** 32 - 1;
export const MAX_VARIATIONS = 4;

/** The seed `offset` further on; after the last comes 0. */
export function stepSeed(seed, offset) {
  const count = MAX_SEED + 1;
  return (((seed + offset) % count) + count) % count;
}

/** Any seed. */
export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/** A whole number from 0 to 4294967295, or null if `text` is none. */
export function parseSeed(text) {
  const seed = Number(text);
  return /^\d{1,10}$/.test(text.trim()) && seed <= MAX_SEED ? seed : null;
}

/** The shots that settings ask for: one a variation, seeds counting up. */
export function shots({ prompt, seed, size, steps, n }) {
  return Array.from({ length: n }, (_, tile) => ({ prompt, seed: stepSeed(seed, tile), size, steps, tile }));
}

/** The address's fragment for settings. */
export function toFragment({ prompt, seed, size, steps, n }) {
  return `#${new URLSearchParams({ prompt, seed, size, steps, n })}`;
}

/** Settings of a fragment that somebody may have written by hand: what makes no sense is left out. */
export function fromFragment(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const found = {
    prompt: given.get("prompt")?.slice(0, 4000),
    seed: parseSeed(given.get("seed") ?? "") ?? undefined,
    size: /^\d{1,5}x\d{1,5}$/.test(given.get("size") ?? "") ? given.get("size") : undefined,
    steps: whole(given.get("steps"), 1000),
    n: whole(given.get("n"), MAX_VARIATIONS),
  };
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined));
}

function whole(text, largest) {
  const number = Number(text);
  return Number.isInteger(number) && number >= 1 && number <= largest ? number : undefined;
}
