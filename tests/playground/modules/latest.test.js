import assert from "node:assert/strict";
import test from "node:test";

import { Latest } from "../../../server/twinshot_server/static/latest.js";

/** A server of one session: one request is drawn, one waits, a newer one takes the waiting one's place. */
class Server {
  drawing = null;
  waiting = null;
  dropped = [];
  sent = [];

  constructor() {
    this.latest = new Latest((id, shot) => this.take(id, shot));
  }

  take(id, shot) {
    this.sent.push([id, shot]);
    if (this.drawing === null) this.drawing = id;
    else {
      if (this.waiting !== null) this.dropped.push(this.waiting);
      this.waiting = id;
    }
  }

  /** The frame that was being drawn is done, and the next is begun; its answers reach the page now. */
  finish() {
    for (const id of this.dropped.splice(0)) this.latest.superseded(id);
    const id = this.drawing;
    [this.drawing, this.waiting] = [this.waiting, null];
    const stale = this.latest.isStale(id);
    const shot = this.latest.arrived(id);
    return { id, shot, stale, shown: shot !== null && this.latest.mayShow(id) };
  }
}

function online() {
  const server = new Server();
  server.latest.resume();
  return server;
}

test("the first wish is sent at once, and its frame is shown", () => {
  const server = online();
  server.latest.want(["a"]);
  assert.deepEqual(server.sent, [[1, "a"]]);
  assert.equal(server.latest.busy, true);
  assert.deepEqual(server.finish(), { id: 1, shot: "a", stale: false, shown: true });
  assert.equal(server.latest.busy, false);
});

test("newer wishes are sent while one is drawn; only the newest is drawn next", () => {
  const server = online();
  for (const shot of ["a", "ab", "abc", "abcd"]) server.latest.want([shot]);
  assert.deepEqual(server.sent.map(([, shot]) => shot), ["a", "ab", "abc", "abcd"]);
  const shown = [server.finish(), server.finish()];
  assert.deepEqual(shown.map(({ shot }) => shot), ["a", "abcd"]);
  assert.deepEqual(shown.map(({ stale }) => stale), [true, false]);
  assert.equal(server.drawing, null);
  assert.equal(server.latest.busy, false);
});

test("after a wish at most one older frame is shown, even if two arrive", () => {
  const latest = new Latest(() => {});
  latest.resume();
  for (const shot of ["a", "b", "c"]) latest.want([shot]);
  const shown = [1, 2, 3].filter((id) => latest.arrived(id) !== null && latest.mayShow(id));
  assert.deepEqual(shown, [1, 3]);
});

test("that holds for every wish while wishes keep coming", () => {
  let seed = 7;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  for (let run = 0; run < 200; run++) {
    const latest = new Latest(() => {});
    latest.resume();
    const wishes = []; // of each: how many older frames were shown before one of its own or a newer one
    let newest = 0;
    let next = 1;
    for (let step = 0; step < 60; step++) {
      if (next > newest || random() < 0.5) {
        newest++;
        latest.want([newest]);
        wishes.push({ id: newest, older: 0, served: false });
      } else {
        const id = next + Math.floor(random() * (newest - next + 1));
        next = id + 1;
        if (latest.arrived(id) === null || !latest.mayShow(id)) continue;
        for (const wish of wishes.filter(({ served }) => !served)) {
          if (id >= wish.id) wish.served = true;
          else wish.older++;
        }
      }
    }
    assert.ok(wishes.every(({ older }) => older <= 1));
  }
});

test("variations are drawn one after the other, the first of a new wish before the rest of an old one", () => {
  const server = online();
  server.latest.want(["a0", "a1", "a2"]);
  assert.equal(server.finish().shot, "a0");
  assert.deepEqual(server.sent.map(([, shot]) => shot), ["a0", "a1"]);
  server.latest.want(["b0", "b1"]);
  assert.deepEqual([1, 2, 3].map(() => server.finish().shot), ["a1", "b0", "b1"]);
  assert.deepEqual(server.sent.map(([, shot]) => shot), ["a0", "a1", "b0", "b1"]);
  assert.equal(server.latest.busy, false);
});

test("offline, only the newest wish is kept", () => {
  const server = new Server();
  server.latest.want(["a"]);
  server.latest.want(["b"]);
  assert.deepEqual(server.sent, []);
  server.latest.resume();
  assert.deepEqual(server.sent.map(([, shot]) => shot), ["b"]);
});

test("what was under way when the connection broke is asked for again, if it is still wished for", () => {
  const sent = [];
  const latest = new Latest((id, shot) => sent.push(shot));
  latest.resume();
  latest.want(["old"]);
  latest.want(["new0", "new1"]);
  latest.pause();
  assert.equal(latest.arrived(1), null);
  latest.resume();
  assert.deepEqual(sent, ["old", "new0", "new0"]);
  assert.equal(latest.arrived(3), "new0");
  assert.deepEqual(sent.at(-1), "new1");
});

test("a refused shot waits for resume, and gives way to a newer wish", () => {
  const server = online();
  server.latest.want(["a"]);
  assert.equal(server.latest.failed(1, { retry: true }), true);
  server.drawing = null;
  assert.equal(server.latest.busy, true);
  server.latest.resume();
  assert.deepEqual(server.sent.at(-1), [2, "a"]);
  server.latest.failed(2, { retry: true });
  server.drawing = null;
  server.latest.want(["b"]);
  assert.equal(server.sent.length, 2);
  server.latest.resume();
  assert.deepEqual(server.sent.at(-1), [3, "b"]);
});

test("a shot that can never be drawn ends its wish; an older one's failure is nobody's business", () => {
  const server = online();
  server.latest.want(["a"]);
  server.latest.want(["b0", "b1"]);
  assert.equal(server.latest.failed(1), false);
  assert.equal(server.latest.busy, true);
  assert.equal(server.latest.failed(2), true);
  assert.equal(server.latest.busy, false);
  assert.equal(server.sent.length, 2);
  assert.equal(server.latest.failed(99), false);
});

test("answers to what was never asked are ignored", () => {
  const server = online();
  assert.equal(server.latest.arrived(5), null);
  server.latest.superseded(6);
  server.latest.want(["a"]);
  assert.equal(server.finish().shot, "a");
});
