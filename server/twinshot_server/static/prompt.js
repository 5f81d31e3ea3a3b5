// The prompt box: what is typed, which of its words the model does not know, and words to choose from.

import { $, element, reachable, roving, say } from "./elements.js";
import { examplesFor, phrasesOf, unknownWords, wordsOf } from "./words.js";

const EXAMPLES_SHOWN = 3;
const KIND_NAMES = { colorable: "in any colour", colors: "colours", synonyms: "other names" };

/** Calls `onChange(timeStamp)` at every keystroke that changes the text, but not while an IME composes. */
export class PromptBox {
  #box = $("prompt");
  #onChange;
  #known = new Set();
  #examples = [];

  constructor(onChange) {
    this.#onChange = onChange;
    this.#box.addEventListener("input", (event) => {
      this.#mark();
      if (!event.isComposing) onChange(event.timeStamp);
    });
    this.#box.addEventListener("compositionend", (event) => onChange(event.timeStamp));
    roving($("examples"));
  }

  get text() {
    return this.#box.value;
  }

  set text(text) {
    this.#box.value = text;
    this.#mark();
  }

  /** Whether the text fits on one line, so that the arrows up and down are free. */
  get isOneLine() {
    return this.#box.scrollHeight < 2 * parseFloat(getComputedStyle(this.#box).lineHeight) + 24;
  }

  focus() {
    this.#box.focus();
    this.#box.select();
  }

  /** Learn a model's words: mark others from now on, and offer examples and the list. */
  learn(vocabulary) {
    this.#known = wordsOf(vocabulary);
    this.#examples = examplesFor(this.#known);
    this.#offerExamples();
    $("words").hidden = this.#known.size === 0;
    $("vocabulary").replaceChildren(...Object.entries(vocabulary).flatMap(([kind, words]) => this.#group(kind, words)));
    this.#mark();
  }

  #mark() {
    const text = this.#box.value;
    const unknown = unknownWords(text, this.#known);
    let at = 0;
    const pieces = unknown.flatMap(({ word, start, end }) => {
      const before = text.slice(at, start);
      at = end;
      return [before, element("mark", {}, word)];
    });
    $("marks").replaceChildren(...pieces, `${text.slice(at)}\u200b`);
    const names = [...new Set(unknown.map(({ word }) => word))];
    say($("note"), names.length ? `This model was never taught: ${names.join(", ")}` : "");
  }

  #offerExamples() {
    const shown = this.#examples.splice(0, EXAMPLES_SHOWN);
    this.#examples.push(...shown);
    const others = element("button", { type: "button", className: "others" }, "Others");
    others.addEventListener("click", () => {
      this.#offerExamples();
      $("examples").querySelector(".others").focus();
    });
    $("examples").replaceChildren(...shown.map((prompt) => this.#example(prompt)), others);
    reachable($("examples"));
  }

  #example(prompt) {
    const button = element("button", { type: "button" }, prompt);
    button.addEventListener("click", (event) => {
      this.text = prompt;
      this.#onChange(event.timeStamp);
    });
    return button;
  }

  #group(kind, words) {
    const phrases = phrasesOf(words);
    if (phrases.length === 0) return [];
    const buttons = phrases.map((phrase) => this.#word(phrase));
    const row = element("div", { className: "chips", role: "group", ariaLabel: kind }, ...buttons);
    roving(row);
    reachable(row);
    return [element("h3", {}, `${KIND_NAMES[kind] ?? kind} (${phrases.length})`), row];
  }

  /** A word of the list; a click puts it where the caret is. */
  #word(phrase) {
    const button = element("button", { type: "button" }, phrase);
    button.addEventListener("click", (event) => {
      const { value, selectionStart, selectionEnd } = this.#box;
      const before = value.slice(0, selectionStart);
      const gap = before === "" || before.endsWith(" ") ? "" : " ";
      this.#box.setRangeText(gap + phrase, selectionStart, selectionEnd, "end");
      this.#mark();
      this.#onChange(event.timeStamp);
    });
    return button;
  }
}
