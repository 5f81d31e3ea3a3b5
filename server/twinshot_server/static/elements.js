// Small things that every part of the page does with its elements.

export const $ = (id) => document.getElementById(id);

/** A new element with properties, and children that are elements or text. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Set an element's text, but only where it differs: readers of live regions hear every change. */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** One stop of the Tab key for a row of buttons; arrows, Home and End move within it. */
export function roving(row) {
  row.addEventListener("keydown", (event) => {
    const buttons = [...row.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const targets = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: -1 };
    if (at < 0 || !(event.key in targets) || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    buttons.at(targets[event.key] % buttons.length).focus();
  });
  row.addEventListener("focusin", (event) => reachable(row, event.target));
}

/** Let the Tab key reach `chosen` of the row's buttons, the first if not given. */
export function reachable(row, chosen = row.querySelector("button")) {
  for (const button of row.querySelectorAll("button")) button.tabIndex = button === chosen ? 0 : -1;
}

/** Calls `work` when nobody called for `ms`. */
export function settled(work, ms) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, ms);
  };
}
