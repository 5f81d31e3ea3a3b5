// Where the milliseconds went: the newest picture's parts, and how long the last pictures took.

import { $, element } from "./elements.js";
import { PARTS } from "./protocol.js";

const KEPT = 60;
const FEWEST = 20; // steps of the sparkline before it begins to shrink
const WIDTH = 120;
const HEIGHT = 32;

/** A figure, a bar of six parts with a legend, and a sparkline. */
export class Timing {
  #bar = PARTS.map((part) => element("span", { className: part }));
  #figures = PARTS.map(() => element("dd", {}, "–"));
  #last = [];

  constructor() {
    $("bar").append(...this.#bar);
    const named = (part, index) => element("div", { className: part }, element("dt", {}, part), this.#figures[index]);
    $("legend").append(...PARTS.map(named));
  }

  /** Show a picture that took `ms` from the key's stroke to the screen; `parts` are milliseconds by part. */
  show(ms, parts) {
    this.#last = [...this.#last, ms].slice(-KEPT);
    $("total").textContent = Math.round(ms);
    PARTS.forEach((part, index) => {
      this.#bar[index].style.flexGrow = Math.max(parts[part], 0.01);
      this.#figures[index].textContent = `${readable(parts[part])} ms`;
    });
    this.#draw();
  }

  #draw() {
    const top = Math.max(...this.#last);
    const step = WIDTH / Math.max(FEWEST, this.#last.length - 1);
    const points = this.#last.map((ms, at) => `${(at * step).toFixed(1)},${(HEIGHT - (ms / top) * (HEIGHT - 2)).toFixed(1)}`);
    $("line").setAttribute("points", points.join(" "));
    const ranked = [...this.#last].sort((a, b) => a - b);
    const middle = Math.round(ranked[Math.floor((ranked.length - 1) / 2)]);
    $("summary").textContent = `median ${middle} ms, slowest ${Math.round(top)} ms of ${ranked.length}`;
  }
}

function readable(ms) {
  return ms < 9.95 ? ms.toFixed(1) : ms.toFixed(0);
}
