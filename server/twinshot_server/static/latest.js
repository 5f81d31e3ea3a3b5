// Newest wins: what to send to a server that draws one request of ours and lets one wait.
//
// A wish is a list of shots. Its first is sent at once, even while an older one is drawn: the server drops
// what of ours still waits. The others follow one by one. A new wish replaces the rest of the old one, after
// which at most one older frame is shown, however late frames arrive.

/** Decides what is sent and which frames are shown. Knows neither sockets nor pictures. */
export class Latest {
  #send;
  #online = false;
  #plan = [];
  #sent = new Map();
  #next = 1;
  #firstOfWish = 1;
  #oldestShowable = 0;

  /** `send(id, shot)` puts a request on the wire. Nothing is sent before `resume`. */
  constructor(send) {
    this.#send = send;
  }

  /** Whether shots of the newest wish are still to come. */
  get busy() {
    return this.#plan.length > 0 || this.#current().length > 0;
  }

  /** Replace what was wished for before. */
  want(shots) {
    this.#plan = [...shots];
    this.#firstOfWish = this.#next;
    this.#advance();
  }

  /** The server can be reached and takes requests. */
  resume() {
    this.#online = true;
    this.#advance();
  }

  /** The connection is gone, and with it all that was sent; what the newest wish lacks is kept for later. */
  pause() {
    this.#online = false;
    this.#plan = [...this.#current(), ...this.#plan];
    this.#sent.clear();
  }

  /** A frame came. Returns its shot, or null if nobody waits for it. */
  arrived(id) {
    const shot = this.#sent.get(id) ?? null;
    this.#sent.delete(id);
    this.#advance();
    return shot;
  }

  /** Whether a frame that came is older than the newest wish. */
  isStale(id) {
    return id < this.#firstOfWish;
  }

  /** Whether a frame that came may be shown now; ask just before, for decoding takes time. */
  mayShow(id) {
    if (id < this.#oldestShowable) return false;
    if (this.isStale(id)) this.#oldestShowable = this.#firstOfWish; // once is enough for the newest wish
    return true;
  }

  /** The server dropped a request for a newer one. */
  superseded(id) {
    this.#sent.delete(id);
    this.#advance();
  }

  /** A request failed. Returns whether it belonged to the newest wish; with `retry` that shot stays wished. */
  failed(id, { retry = false } = {}) {
    const shot = this.#sent.get(id);
    this.#sent.delete(id);
    if (shot === undefined || id < this.#firstOfWish) {
      this.#advance();
      return false;
    }
    if (retry) {
      this.#online = false; // until resume
      this.#plan.unshift(shot);
    } else {
      this.#plan = [];
    }
    return true;
  }

  #current() {
    return [...this.#sent].filter(([id]) => id >= this.#firstOfWish).map(([, shot]) => shot);
  }

  #advance() {
    const opensWish = this.#next === this.#firstOfWish;
    if (!this.#online || this.#plan.length === 0 || (this.#sent.size > 0 && !opensWish)) return;
    const id = this.#next++;
    const shot = this.#plan.shift();
    this.#sent.set(id, shot);
    this.#send(id, shot);
  }
}
