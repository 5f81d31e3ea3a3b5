// Taking a picture along: the clipboard, a PNG file that says what it shows, a link, and the code that draws it.

import { authorization } from "./protocol.js";
import { withTexts } from "./png.js";

/** The picture as a lossless file, drawn anew from its settings, which stand in its metadata. */
export async function downloadPng(shot, model, key) {
  const { prompt, seed, size, steps } = shot;
  const answer = await fetch("generate", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(key) },
    body: JSON.stringify({ prompt, seed, size, steps, format: "png" }),
  });
  if (!answer.ok) throw new Error((await answer.json()).detail);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  save(withTexts(bytes, describe(shot, model)), `twinshot-${slug(prompt)}-${seed}.png`);
}

/** Keywords that PNG knows, and `parameters` as picture browsers read it. */
function describe({ prompt, seed, size, steps }, model) {
  return {
    Description: prompt,
    Software: "twinshot",
    Comment: JSON.stringify({ prompt, seed, size, steps, model }),
    parameters: `${prompt}\nSteps: ${steps}, Seed: ${seed}, Size: ${size}, Model: ${model}`,
  };
}

/** The canvas's picture to the clipboard. */
export async function copyPicture(canvas) {
  const file = new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  await navigator.clipboard.write([new ClipboardItem({ "image/png": file })]);
}

export async function copyText(text) {
  await navigator.clipboard.writeText(text);
}

/** Browsers give pages the clipboard over HTTPS and on this machine's own address only. */
export const HAS_CLIPBOARD = Boolean(globalThis.navigator?.clipboard?.write);

function save(file, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function slug(prompt) {
  return prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60).replace(/^-|-$/g, "") || "picture";
}
