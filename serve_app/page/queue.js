// Work that waits its turn: a few pieces at a time, the rest in order. It knows nothing of images.

/** Runs `work(item, signal)`; `onChange(queue)` hears when something begins, ends or is dropped. */
export class Queue {
  constructor(work, { atOnce, longest, onChange }) {
    this.work = work;
    this.atOnce = atOnce;
    this.longest = longest;
    this.onChange = onChange;
    this.waiting = [];
    this.forget();
  }

  /** How many pieces are not done. */
  get left() {
    return this.waiting.length + this.numRunning;
  }

  /** Take as many pieces as there is room for, and return how many. */
  add(items) {
    const taken = items.slice(0, this.longest - this.waiting.length);
    if (this.left === 0) this.numAdded = 0; // a new round
    this.numAdded += taken.length;
    this.waiting.push(...taken);
    this.fill();
    return taken.length;
  }

  /** Drop what waits and stop what runs. */
  cancel() {
    this.stopping.abort();
    this.forget();
    this.onChange(this);
  }

  forget() {
    this.waiting = [];
    this.numRunning = 0;
    this.numAdded = 0;
    this.stopping = new AbortController();
  }

  fill() {
    while (this.numRunning < this.atOnce && this.waiting.length) this.run(this.waiting.shift());
    this.onChange(this);
  }

  async run(item) {
    const { signal } = this.stopping;
    this.numRunning += 1;
    try {
      await this.work(item, signal);
    } finally {
      if (!signal.aborted) {
        this.numRunning -= 1;
        this.fill();
      }
    }
  }
}
