// The pictures: one to four tiles that change in one stroke, and the strip of those before.

import { element, reachable, roving } from "./elements.js";

const KEPT = 16;
const THUMBNAIL = 96;

/** The tiles. A frame is decoded elsewhere and drawn at once, so that no tile is ever empty or half new. */
export class Stage {
  #root;
  #shown = [];
  selected = 0;

  /** `onSelect()` is called when a tile is chosen among several. */
  constructor(root, onSelect) {
    this.#root = root;
    root.addEventListener("click", (event) => {
      const tile = event.target.closest(".tile");
      if (!tile) return;
      this.select([...root.children].indexOf(tile));
      onSelect();
    });
    roving(root);
  }

  /** Have `count` tiles of `size`, keeping the pictures there are. */
  layout(count, size) {
    const [width, height] = size.split("x");
    while (this.#root.children.length > count) this.#root.lastElementChild.remove();
    while (this.#root.children.length < count) this.#root.append(makeTile(width, height));
    this.#shown.length = Math.min(this.#shown.length, count);
    this.#root.dataset.count = count;
    this.select(Math.min(this.selected, count - 1));
  }

  select(index) {
    this.selected = index;
    [...this.#root.children].forEach((tile, at) => tile.setAttribute("aria-pressed", at === index));
    reachable(this.#root, this.#root.children[index]);
  }

  /** What the selected tile shows: its shot, or undefined before the first picture. */
  get current() {
    return this.#shown[this.selected];
  }

  /** Every picture that is shown, by tile. */
  get shots() {
    return this.#shown.filter(Boolean);
  }

  /** Draw a frame into its shot's tile, if by then `mayShow()` and nothing newer is there. Resolves to whether it was. */
  async show(frame, shot, mayShow) {
    const bitmap = await createImageBitmap(frame.file);
    const tile = this.#root.children[shot.tile];
    const before = this.#shown[shot.tile];
    const inTime = tile !== undefined && !(before?.id > frame.id) && mayShow();
    if (inTime) {
      paint(tile.querySelector("canvas"), bitmap, bitmap.width, bitmap.height);
      tile.setAttribute("aria-label", `${shot.prompt}, seed ${shot.seed}`);
      tile.querySelector(".seed").textContent = `seed ${shot.seed}`;
      tile.classList.remove("empty");
      this.#shown[shot.tile] = { ...shot, id: frame.id };
    }
    bitmap.close();
    return inTime;
  }

  /** The selected tile's canvas. */
  get canvas() {
    return this.#root.children[this.selected].querySelector("canvas");
  }
}

/** The strip of settled pictures, the newest first; each brings its settings back. */
export class History {
  #row;
  #entries = [];
  #onRecall;

  constructor(row, onRecall) {
    this.#row = row;
    this.#onRecall = onRecall;
    roving(row);
  }

  /** Remember what `canvas` shows, unless the strip has it; then it moves to the front. */
  add(settings, canvas) {
    const name = JSON.stringify(settings);
    const known = this.#entries.findIndex((entry) => entry.name === name);
    const item = known >= 0 ? this.#entries.splice(known, 1)[0].item : this.#make(settings);
    const scale = THUMBNAIL / Math.max(canvas.width, canvas.height);
    paint(item.querySelector("canvas"), canvas, canvas.width * scale, canvas.height * scale);
    this.#entries.unshift({ name, item });
    for (const { item: old } of this.#entries.splice(KEPT)) old.remove();
    this.#row.prepend(item);
    if (!this.#row.contains(document.activeElement)) reachable(this.#row);
  }

  #make(settings) {
    const label = `${settings.prompt}, seed ${settings.seed}`;
    const button = element("button", { type: "button", title: label, ariaLabel: label }, element("canvas"));
    button.addEventListener("click", () => this.#onRecall(settings));
    return element("li", {}, button);
  }
}

function makeTile(width, height) {
  const canvas = element("canvas", { width, height });
  const tile = element("button", { type: "button", className: "tile empty" });
  tile.append(canvas, element("span", { className: "seed" }));
  tile.setAttribute("aria-label", "No picture yet");
  return tile;
}

function paint(canvas, source, width, height) {
  width = Math.round(width);
  height = Math.round(height);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
}
