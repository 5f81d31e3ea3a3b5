// The way to the server: asks how it is, what it can do and whether it wants a key; keeps a WebSocket open.

import { authorization, backoff, parseFrame, protocols } from "./protocol.js";

const LOOK_EVERY_MS = 4000;
const WAIT_FOR_MODEL_MS = 500;

/**
 * Connects, and connects again. Calls what it was given:
 * `state(name, reason)` with connecting, warming, ready, busy, draining, reconnecting, failed or key;
 * `model(model)` with the entry of /v1/models; `open()` and `closed()`;
 * `frame(frame, told)`, what the server told of it, `superseded(id)` and `failed(id, problem)` for what the server sends.
 */
export class Connection {
  #on;
  #key;
  #socket = null;
  #attempt = 0;
  #told = new Map();
  #wake = () => {};

  constructor(handlers, key = "") {
    this.#on = handlers;
    this.#key = key;
  }

  get key() {
    return this.#key;
  }

  /** Whether requests can be sent. */
  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** Try with this key. */
  useKey(key) {
    this.#key = key;
    this.#wake();
  }

  send(id, { prompt, seed, size, steps }) {
    this.#socket.send(JSON.stringify({ id, prompt, seed, size, steps }));
  }

  /** Connect, serve and reconnect as long as the page is there. */
  async run() {
    for (;;) {
      await this.#sleep(backoff(this.#attempt++));
      const health = await fetchHealth();
      if (!health) {
        this.#on.state(this.#attempt > 1 ? "reconnecting" : "connecting");
      } else if (!tellsOfModel(health)) {
        this.#on.state(health.status === "failed" ? "failed" : "warming", health.reason);
        this.#attempt = 0;
        await this.#sleep(WAIT_FOR_MODEL_MS);
      } else if (await this.#learn()) {
        await this.#serve(health);
      }
    }
  }

  /** Look at the server's health now, and tell what follows from it. */
  async look() {
    const health = await fetchHealth();
    if (!this.isOpen) return null;
    if (!health) {
      this.#socket.close(); // a connection that died silently stays open for minutes
      return null;
    }
    const state = { ready: "ready", draining: "draining", failed: "failed" }[health.status] ?? "warming";
    this.#on.state(state, health.reason);
    return health;
  }

  async #learn() {
    const answer = await this.#ask("?vocabulary=false");
    if (answer?.status === 401) {
      this.#on.state("key", this.#key ? "The server does not know this key." : "");
      this.#attempt = 0;
      await new Promise((resolve) => (this.#wake = resolve));
      return false;
    }
    const model = await modelOf(answer);
    if (model) this.#on.model(model);
    return model !== null;
  }

  /** The model with all of its words, or null where the server does not answer. */
  async model() {
    return modelOf(await this.#ask(""));
  }

  #ask(query) {
    return fetch(`v1/models${query}`, { headers: authorization(this.#key) }).catch(() => null);
  }

  async #serve(health) {
    const address = new URL("realtime?timings=true", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = (this.#socket = new WebSocket(address, protocols(this.#key)));
    socket.binaryType = "arraybuffer";
    const closed = new Promise((resolve) => socket.addEventListener("close", resolve));
    socket.addEventListener("open", () => {
      this.#attempt = 0;
      this.#on.state(health.status === "draining" ? "draining" : "ready", health.reason);
      this.#on.open();
    });
    socket.addEventListener("message", ({ data }) => this.#hear(data));
    const looking = setInterval(() => document.hidden || this.look(), LOOK_EVERY_MS);
    await closed;
    clearInterval(looking);
    this.#told.clear();
    this.#on.closed();
    this.#on.state("reconnecting");
  }

  #hear(data) {
    if (typeof data !== "string") {
      const frame = parseFrame(data);
      this.#on.frame(frame, this.#told.get(frame.id) ?? {});
      this.#told.delete(frame.id);
      return;
    }
    const told = JSON.parse(data);
    if (told.type === "timings") this.#told.set(told.id, told);
    if (told.type === "superseded") this.#on.superseded(told.id);
    if (told.type === "error") this.#on.failed(told.id, told.problem);
  }

  #sleep(ms) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, ms);
    });
  }
}

async function modelOf(answer) {
  const models = answer?.ok ? await answer.json().catch(() => null) : null;
  return models && models.data[0];
}

function tellsOfModel({ status, model }) {
  return model !== null && ["ready", "draining"].includes(status);
}

/** /livez tells the same as /health, but is a success also while the model loads: nothing for the console. */
async function fetchHealth() {
  const answer = await fetch("livez", { cache: "no-store" }).catch(() => null);
  return answer ? answer.json().catch(() => null) : null;
}
