import assert from "node:assert/strict";
import test from "node:test";

import { phrasesOf, piecesOf } from "../../../server/twinshot_server/static/words.js";

test("a text is cut at whole words, which are every second piece", () => {
  assert.deepEqual(piecesOf("a red castle", []), ["a red castle"]);
  assert.deepEqual(piecesOf("a red castle", ["castle"]), ["a red ", "castle", ""]);
  assert.deepEqual(piecesOf("owls, an owl!", ["owl"]), ["owls, an ", "owl", "!"]);
  assert.deepEqual(piecesOf("Élan élan", ["élan"]), ["Élan ", "élan", ""]);
  assert.deepEqual(piecesOf("fünf Bären", ["fünf", "Bären"]), ["", "fünf", " ", "Bären", ""]);
  assert.deepEqual(piecesOf("other text", ["castle"]), ["other text"]);
});

test("Chinese has no spaces around words", () => {
  assert.deepEqual(piecesOf("一只狼在山上", ["狼", "山"]), ["一只", "狼", "在", "山", "上"]);
});

test("kinds of words may be lists or objects, and nonsense is no word", () => {
  assert.deepEqual(phrasesOf(["a", 3, null, "b"]), ["a", "b"]);
  assert.deepEqual(phrasesOf({ red: "#f00" }), ["red"]);
  for (const nonsense of [null, 3, "text", undefined]) assert.deepEqual(phrasesOf(nonsense), []);
});
