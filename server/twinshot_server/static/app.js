// The page: what is asked for, sent at every keystroke, and what came of it.
//
// The event "twinshot:picture" tells of each that is shown: prompt, seed, tile, whether it is stale (drawn for
// an older wish), and ms since the keystroke.

import { Connection } from "./connection.js";
import { $, element, say, settled } from "./elements.js";
import { Latest } from "./latest.js";
import { History, Stage } from "./pictures.js";
import { PromptBox } from "./prompt.js";
import { split } from "./protocol.js";
import { fromFragment, parseSeed, randomSeed, shots, stepSeed, toFragment } from "./settings.js";
import { curl, python } from "./snippets.js";
import { copyPicture, copyText, downloadPng, HAS_CLIPBOARD } from "./taking.js";
import { Timing } from "./timing.js";

const FIRST = { prompt: "a red car left of a tree on a beach", seed: 7, size: "", steps: 1, n: 1 };
const SETTLED_MS = 700;
const STATES = {
  connecting: "Connecting …",
  warming: "The model is warming up",
  ready: "Ready",
  busy: "Busy: your picture waits for its turn",
  draining: "This server is about to stop",
  reconnecting: "Connection lost, trying again …",
  failed: "The model cannot be loaded",
  key: "An API key is needed",
};

const settings = { ...FIRST, ...fromFragment(location.hash) };
let model = null;
let waits = false; // refused because of load, until a picture comes

const latest = new Latest(send);
const stage = new Stage($("stage"), showCode);
const history = new History($("history"), recall);
const timing = new Timing();
const prompt = new PromptBox(typed, async () => (await connection.model())?.vocabulary ?? {});
const connection = new Connection(
  {
    state: showState,
    model: learn,
    open: () => latest.resume(),
    closed: () => latest.pause(),
    frame: showFrame,
    superseded: (id) => latest.superseded(id),
    failed: refuse,
  },
  remembered(),
);

function typed(at) {
  settings.prompt = prompt.text;
  if (!isLocked()) settings.seed = randomSeed();
  wish(at);
}

/** Ask for what the settings say; `at` is when the user did it. */
function wish(at = performance.now()) {
  $("seed").value = settings.seed;
  say($("problem"), "");
  if (model === null || settings.prompt.trim() === "") return;
  stage.layout(settings.n, settings.size);
  latest.want(shots(settings).map((shot) => ({ ...shot, at })));
}

function send(id, shot) {
  shot.sent = performance.now();
  if (shot.sent - shot.at > 100) shot.at = shot.sent; // it waited for the connection, not for a picture
  connection.send(id, shot);
}

async function showFrame(frame, told) {
  const came = performance.now();
  const shot = latest.arrived(frame.id);
  waits = false;
  if (shot === null || !(await stage.show(frame, shot, () => latest.mayShow(frame.id)))) return;
  const stale = latest.isStale(frame.id);
  const ms = performance.now() - shot.at;
  $("copy").disabled = $("download").disabled = false;
  prompt.judge(told.unknown_words ?? []);
  if (shot.tile === 0) timing.show(ms, split(came - shot.sent, told.timings_ms));
  showCode();
  settle();
  const detail = { prompt: shot.prompt, seed: shot.seed, tile: shot.tile, stale, ms };
  document.dispatchEvent(new CustomEvent("twinshot:picture", { detail }));
}

/** The typing has stopped and the picture is there: worth keeping, sharing and reading out. */
const settle = settled(() => {
  if (latest.busy || !stage.current) return;
  prompt.settle();
  const { prompt: text, seed, size, steps } = stage.shots[0];
  const kept = { prompt: text, seed, size, steps, n: settings.n };
  history.add(kept, $("stage").querySelector("canvas"));
  $("earlier").hidden = false;
  window.history.replaceState(null, "", toFragment(kept));
  say($("heard"), `Picture of ${text}, seed ${seed}, ${$("total").textContent} milliseconds`);
  if (connection.isOpen && !waits) connection.look();
}, SETTLED_MS);

async function refuse(id, problem) {
  const waiting = problem.status === 429 || problem.status >= 503;
  if (!latest.failed(id, { retry: waiting })) return;
  if (!waiting) {
    say($("problem"), problem.detail);
    return;
  }
  const health = await connection.look();
  waits = problem.status !== 503;
  if (waits) showState("busy");
  setTimeout(() => connection.isOpen && latest.resume(), Math.min(5000, Math.max(400, health?.predicted_wait_ms ?? 0)));
}

function learn(told) {
  model = told;
  $("model").replaceChildren(element("b", {}, told.id), ` ${told.description} `);
  $("where").textContent = [told.device, told.precision].join(" · ");
  if (!told.sizes.includes(settings.size)) settings.size = told.sizes[0];
  if (!told.steps.includes(settings.steps)) settings.steps = told.steps[0];
  $("size").replaceChildren(...told.sizes.map((size) => new Option(size.replace("x", " × "), size)));
  $("steps").replaceChildren(...told.steps.map((steps) => new Option(steps)));
  prompt.learn(told.examples);
  reflect();
  if (!stage.current) wish();
}

/** Let every control show the settings. */
function reflect() {
  if (prompt.text !== settings.prompt) prompt.text = settings.prompt;
  $("seed").value = settings.seed;
  $("size").value = settings.size;
  $("steps").value = settings.steps;
  document.querySelector(`[name=n][value="${settings.n}"]`).checked = true;
}

function showState(name, reason) {
  if (waits && name === "ready") return;
  document.body.dataset.state = name;
  $("access").hidden = name !== "key";
  say($("state"), reason && ["warming", "failed"].includes(name) ? `${STATES[name]}: ${reason}` : STATES[name]);
  if (name !== "key") return;
  say($("refused"), reason);
  $("key").focus();
}

function showCode() {
  if (!stage.current) return;
  const origin = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const seeds = stage.shots.map(({ seed }) => seed);
  const shown = { ...stage.shots[0], n: seeds.length };
  const language = document.querySelector("[name=language]:checked").value;
  const code = language === "curl" ? curl(origin, shown, connection.key !== "") : python(origin, shown, seeds);
  say($("snippet"), code);
}

function step(offset) {
  settings.seed = stepSeed(settings.seed, offset * settings.n);
  wish();
}

function recall(kept) {
  Object.assign(settings, kept);
  reflect();
  wish();
}

function isLocked() {
  return $("lock").getAttribute("aria-pressed") === "true";
}

/** The key of this tab; without storage it is asked for again. */
function remembered() {
  try {
    return sessionStorage.getItem("twinshot-key") ?? "";
  } catch {
    return "";
  }
}

function remember(key) {
  try {
    sessionStorage.setItem("twinshot-key", key);
  } catch {
    // The tab may not store anything; the key then lives as long as the page.
  }
}

/** Do what a button says, and say how it went. */
function onClick(id, work, done) {
  $(id).addEventListener("click", async () => {
    try {
      await work();
      if (done) say($("done"), done);
    } catch (error) {
      say($("done"), `That did not work: ${error.message}`);
    }
    setTimeout(() => say($("done"), ""), 4000);
  });
}

onClick("previous", () => step(-1));
onClick("following", () => step(1));
onClick("lock", () => $("lock").setAttribute("aria-pressed", !isLocked()));
onClick("copy", () => copyPicture(stage.canvas), "Picture copied.");
onClick("download", () => downloadPng(stage.current, model.id, connection.key), "PNG saved, settings inside.");
onClick("share", () => copyText(new URL(toFragment(settings), location.href).href), "Link copied.");
onClick("copy-code", () => copyText($("snippet").textContent), "Code copied.");
for (const id of ["copy", "share", "copy-code"]) $(id).hidden = !HAS_CLIPBOARD;

$("asking").addEventListener("submit", (event) => event.preventDefault());
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  remember($("key").value);
  connection.useKey($("key").value);
});
$("seed").addEventListener("input", (event) => {
  const seed = parseSeed($("seed").value);
  $("seed").setAttribute("aria-invalid", seed === null);
  if (seed === null || seed === settings.seed) return;
  settings.seed = seed;
  wish(event.timeStamp);
});
$("options").addEventListener("change", () => {
  settings.size = $("size").value;
  settings.steps = Number($("steps").value);
  settings.n = Number(document.querySelector("[name=n]:checked").value);
  wish();
});
$("language").addEventListener("change", showCode);
window.addEventListener("hashchange", () => recall(fromFragment(location.hash)));
document.addEventListener("keydown", (event) => {
  const offset = stepOf(event);
  if (offset !== 0) step(offset);
  else if (event.key === "/" && !isWriting(event.target)) prompt.focus();
  else return;
  event.preventDefault();
});

/** How many seeds a key steps: arrows, as far as they are not needed for what has the focus, and Enter. */
function stepOf({ key, altKey, ctrlKey, metaKey, shiftKey, isComposing, target }) {
  if (isComposing || ctrlKey || metaKey || shiftKey) return 0;
  if (target.id === "prompt" && key === "Enter") return 1;
  const vertical = { ArrowUp: 1, ArrowDown: -1 }[key] ?? 0;
  if (altKey || target.id === "seed" || (target.id === "prompt" && prompt.isOneLine)) return vertical;
  const horizontal = { ArrowRight: 1, ArrowLeft: -1 }[key] ?? 0;
  return isWriting(target) || target.closest("pre") ? 0 : horizontal;
}

function isWriting(target) {
  return target.matches("input, textarea, select");
}

reflect();
stage.layout(settings.n, settings.size || "256x256");
connection.run();
