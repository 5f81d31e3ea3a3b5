// What goes over the wire, into addresses and into files.

import assert from "node:assert/strict";
import test from "node:test";
import { crc32, deflateSync } from "node:zlib";

import { withTexts } from "../../../server/twinshot_server/static/png.js";
import { authorization, backoff, parseFrame, protocols, split } from "../../../server/twinshot_server/static/protocol.js";
import { fromFragment, parseSeed, shots, stepSeed, toFragment } from "../../../server/twinshot_server/static/settings.js";

test("a frame is its header and a file", async () => {
  const bytes = new Uint8Array(16 + 3);
  new DataView(bytes.buffer).setUint32(0, 2 ** 32 - 1);
  bytes.set([1, 2, 3], 16);
  const { id, file } = parseFrame(bytes.buffer);
  assert.equal(id, 2 ** 32 - 1);
  assert.deepEqual([...new Uint8Array(await file.arrayBuffer())], [1, 2, 3]);
});

test("a key of any letters becomes a subprotocol and a header", () => {
  assert.deepEqual(protocols(""), ["twinshot"]);
  const [, protocol] = protocols("schlüssel?>");
  assert.match(protocol, /^twinshot\.key\.[A-Za-z0-9_-]+$/);
  assert.equal(Buffer.from(protocol.slice("twinshot.key.".length), "base64url").toString(), "schlüssel?>");
  assert.deepEqual(authorization(""), {});
  assert.deepEqual(authorization("k"), { Authorization: "Bearer k" });
});

test("the parts of a picture's time add up to the round trip", () => {
  const parts = split(20, { queue: 1, text: 2, denoise: 3, decode: 4, encode: 5 });
  assert.deepEqual(parts, { network: 5, queue: 1, text: 2, denoise: 3, decode: 4, encode: 5 });
  assert.deepEqual(split(9), { network: 9, queue: 0, text: 0, denoise: 0, decode: 0, encode: 0 });
  assert.equal(split(1, { denoise: 2 }).network, 0);
});

test("tries to connect again come ever later, but never much later than four seconds", () => {
  assert.equal(backoff(0), 0);
  const waits = [1, 2, 3, 4, 5, 6, 50].map((attempt) => backoff(attempt, () => 0.5));
  assert.deepEqual(waits, [250, 500, 1000, 2000, 4000, 4000, 4000]);
  assert.equal(backoff(1, () => 0), 187.5);
});

test("seeds step around the ends of their range", () => {
  assert.equal(stepSeed(0, -1), 4294967295);
  assert.equal(stepSeed(4294967295, 1), 0);
  assert.equal(stepSeed(7, 4), 11);
});

test("only whole numbers in range are seeds", () => {
  assert.deepEqual(["0", " 7 ", "4294967295"].map(parseSeed), [0, 7, 4294967295]);
  for (const text of ["", "-1", "1.5", "1e3", "4294967296", "99999999999", "seven", "０"]) {
    assert.equal(parseSeed(text), null, text);
  }
});

test("variations are shots whose seeds count up", () => {
  const made = shots({ prompt: "a", seed: 4294967295, size: "256x256", steps: 1, n: 2 });
  assert.deepEqual(made, [
    { prompt: "a", seed: 4294967295, size: "256x256", steps: 1, tile: 0 },
    { prompt: "a", seed: 0, size: "256x256", steps: 1, tile: 1 },
  ]);
});

test("settings survive the address", () => {
  const settings = { prompt: "50 % & 'more' #1? + ümlaut\n猫", seed: 7, size: "256x256", steps: 4, n: 3 };
  assert.deepEqual(fromFragment(new URL(`http://host/${toFragment(settings)}`).hash), settings);
});

test("an address written by hand does no harm", () => {
  assert.deepEqual(fromFragment(""), {});
  assert.deepEqual(fromFragment("#seed=-1&size=huge&steps=0&n=9"), {});
  assert.deepEqual(fromFragment("#n=4&steps=two&prompt="), { n: 4, prompt: "" });
  assert.equal(fromFragment(`#prompt=${"x".repeat(9000)}`).prompt.length, 4000);
});

test("texts stand in a PNG file after its header, each with its checksum", async () => {
  const header = chunk("IHDR", Buffer.from([0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0]));
  const rest = Buffer.concat([chunk("IDAT", deflateSync(Buffer.from([0, 5]))), chunk("IEND", Buffer.alloc(0))]);
  const file = Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), header, rest]);
  const told = Buffer.from(await withTexts(file, { Description: "grün 猫" }).arrayBuffer());
  const text = chunk("iTXt", Buffer.from("Description\0\0\0\0\0grün 猫"));
  assert.deepEqual(told, Buffer.concat([file.subarray(0, 33), text, rest]));
});

function chunk(name, content) {
  const named = Buffer.concat([Buffer.from(name), content]);
  const [length, checksum] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(content.length);
  checksum.writeUInt32BE(reference(named));
  return Buffer.concat([length, named, checksum]);
}

/** Bit by bit, as the PNG specification writes it. */
function reference(bytes) {
  if (crc32) return crc32(bytes);
  let value = 0xffffffff;
  for (const byte of bytes) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  }
  return ~value >>> 0;
}
