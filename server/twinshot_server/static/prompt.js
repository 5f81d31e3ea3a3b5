// The prompt box: what is typed, which of its words the model does not know, and words to choose from.

import { $, element, reachable, roving, say } from "./elements.js";
import { phrasesOf, piecesOf } from "./words.js";

const EXAMPLES_SHOWN = 3;
const EXAMPLES = ["a red car left of a tree on a beach", "three penguins in the snow", "a red balloon above a house"];
const KIND_NAMES = { colorable: "in any colour", colors: "colours", synonyms: "other names" };

/** Calls `onChange(timeStamp)` at every keystroke that changes the text, but not while an IME composes. */
export class PromptBox {
  #box = $("prompt");
  #onChange;
  #unknown = [];
  #isTyping = false;
  #examples = [];

  /** `vocabulary()` resolves to the words that the model knows; it is called when somebody wants to see them. */
  constructor(onChange, vocabulary) {
    this.#onChange = onChange;
    $("words").addEventListener("toggle", async () => this.#list(await vocabulary()));
    this.#box.addEventListener("input", (event) => {
      this.#isTyping = true;
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
    this.#isTyping = false;
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

  /** Offer a model's own examples, or some that any model can draw. */
  learn(examples) {
    this.#examples = examples.length ? [...examples] : EXAMPLES;
    this.#offerExamples();
  }

  /** Mark the words that the model was never taught, as its picture told. */
  judge(unknown) {
    this.#unknown = unknown;
    this.#mark();
  }

  /** The typing has stopped: its last word is a whole one. */
  settle() {
    this.#isTyping = false;
    this.#mark();
  }

  #list(vocabulary) {
    const groups = Object.entries(vocabulary).flatMap(([kind, words]) => this.#group(kind, words));
    $("vocabulary").replaceChildren(...(groups.length ? groups : ["It is a general model: try any."]));
  }

  #mark() {
    const text = this.#box.value;
    const whole = this.#unknown.filter(({ word }) => !(this.#isTyping && text.endsWith(word)));
    const pieces = piecesOf(text, whole.map(({ word }) => word));
    $("marks").replaceChildren(...pieces.map((piece, at) => (at % 2 ? element("mark", {}, piece) : piece)), "\u200b");
    const told = whole.filter(({ word }) => pieces.includes(word));
    const names = told.map(({ word, nearest }) => (nearest ? `${word} (${nearest} instead)` : word));
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
