import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { examplesFor, phrasesOf, unknownWords, wordsOf } from "../../../server/twinshot_server/static/words.js";

const CARD = new URL("../../../engine/twinshot_engine/builtin/miniature/twinshot.json", import.meta.url);
const known = wordsOf(JSON.parse(readFileSync(CARD, "utf8")).vocabulary);
const unknown = (prompt) => unknownWords(`${prompt} `, known).map(({ word }) => word);

test("the miniature's own words, their plurals and everyday words are known", () => {
  for (const prompt of [
    "a red car left of a tree on a beach",
    "Two Green Apples on a pink background",
    "three foxes, four cherries".replace("cherries", "strawberries"),
    "a photo of two knives and a hot dog",
    "snowmen, cacti, butterflies, buses, dresses and computer mice",
    "a t-shirt above the dog's bowl",
  ]) {
    assert.deepEqual(unknown(prompt), []);
  }
});

test("other words are named with their places", () => {
  const prompt = "a castle and a red dragon, at night";
  assert.deepEqual(unknownWords(prompt, known), [
    { word: "castle", start: 2, end: 8 },
    { word: "dragon", start: 19, end: 25 },
  ]);
  assert.deepEqual(unknown("fünf Bären"), ["fünf", "Bären"]);
  assert.deepEqual(unknown("7 cars"), ["7"]);
});

test("a word that is still being typed may become a known one", () => {
  assert.deepEqual(unknownWords("a ele", known), []);
  assert.deepEqual(unknownWords("a elx", known).map(({ word }) => word), ["elx"]);
  assert.deepEqual(unknownWords("a ele on a beach", known).map(({ word }) => word), ["ele"]);
});

test("a general model knows every word", () => {
  assert.equal(wordsOf({}).size, 0);
  assert.deepEqual(unknownWords("a castle", wordsOf({})), []);
  assert.ok(examplesFor(wordsOf({})).length > 9);
});

test("every example is made of words the miniature knows, and a model with other words gets none of them", () => {
  assert.equal(examplesFor(known).length, examplesFor(wordsOf({})).length);
  assert.deepEqual(examplesFor(wordsOf({ things: ["spaceship"] })), []);
});

test("kinds of words may be lists or objects, and nonsense is no word", () => {
  assert.deepEqual(phrasesOf(["a", 3, null, "b"]), ["a", "b"]);
  assert.deepEqual(phrasesOf({ red: "#f00" }), ["red"]);
  for (const nonsense of [null, 3, "text", undefined]) assert.deepEqual(phrasesOf(nonsense), []);
});

test("other names of the miniature's things are known, too", () => {
  assert.deepEqual(unknown("a puppy and a kitten under the stars, a mug on the grass, a football under the sea"), []);
});
