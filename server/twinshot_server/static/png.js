// Tells a PNG file what it shows: text chunks after its header, as PNG (third edition) describes them.

const HEADER_END = 33; // signature, and IHDR with its length, name and checksum
const CHECKSUMS = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

/** A copy of the PNG file `bytes` with a text for each keyword of `texts`; both may be any Unicode. */
export function withTexts(bytes, texts) {
  const chunks = Object.entries(texts).map(([keyword, text]) => internationalText(keyword, text));
  return new Blob([bytes.subarray(0, HEADER_END), ...chunks, bytes.subarray(HEADER_END)], { type: "image/png" });
}

/** An iTXt chunk: keyword, not compressed, no language, no translated keyword, UTF-8. */
function internationalText(keyword, text) {
  return chunk("iTXt", new TextEncoder().encode(`${keyword}\0\0\0\0\0${text}`));
}

function chunk(name, content) {
  const whole = new Uint8Array(content.length + 12);
  const view = new DataView(whole.buffer);
  view.setUint32(0, content.length);
  whole.set(new TextEncoder().encode(name), 4);
  whole.set(content, 8);
  view.setUint32(content.length + 8, checksum(whole.subarray(4, content.length + 8)));
  return whole;
}

function checksum(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CHECKSUMS[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}
