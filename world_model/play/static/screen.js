// The pictures: frames are shown at their rate as they come, the newest rather than all, and their delay is measured.

const SCALE_NATS = 3; // entropy of the brightest tokens

export class Screen {
  constructor(hello, frameShown) {
    this.hello = hello;
    this.frameShown = frameShown;
    this.imagined = document.getElementById("imagined");
    this.real = document.getElementById("real");
    this.overlay = document.getElementById("entropy");
    for (const canvas of [this.imagined, this.real]) Object.assign(canvas, { width: hello.width, height: hello.height });
    [this.overlay.height, this.overlay.width] = hello.grid;
    this.queue = [];
    this.next = 0;
    this.interval = (1000 * hello.frames) / hello.fps; // between moments, as they come
    this.arrived = 0;
    this.shown = []; // times of the frames shown in the last seconds
    this.inputs = new Map(); // when each input was given
    this.delays = [];
    this.entropyOn = false;
    requestAnimationFrame((now) => this.tick(now));
  }

  // An input was given now: the first frame of a moment under it ends the delay.
  given(id) {
    this.inputs.set(id, performance.now());
  }

  add(header, strips, arrived) {
    if (header.jump) {
      this.clear();
      this.draw({ header, strips, row: this.hello.frames - 1 });
      this.arrived = 0;
      return;
    }
    if (this.arrived) {
      const gap = Math.min(arrived - this.arrived, 1000);
      this.interval += 0.2 * (gap - this.interval);
    }
    this.arrived = arrived;
    if (this.queue.length > this.hello.frames) this.queue.splice(0, this.queue.length - 1); // late: skip
    for (let row = 0; row < this.hello.frames; row++) this.queue.push({ header, strips, row });
  }

  clear() {
    this.queue = [];
  }

  tick(now) {
    requestAnimationFrame((later) => this.tick(later));
    if (!this.queue.length || now < this.next) return;
    const frame = this.queue.shift();
    this.draw(frame);
    const own = 1000 / this.hello.fps;
    const period = this.queue.length > this.hello.frames ? own * 0.8 : Math.max(own, this.interval / this.hello.frames);
    this.next = Math.max(this.next + period, now - period);
    this.shown.push(now);
    if (frame.row === 0) this.measure(frame.header, now);
  }

  measure(header, now) {
    for (const [id, time] of this.inputs) {
      if (id > header.input) continue;
      this.inputs.delete(id);
      if (id === header.input) this.delays = [...this.delays.slice(-199), now - time];
    }
  }

  draw({ header, strips, row }) {
    const { width, height } = this.hello;
    [this.imagined, this.real].forEach((canvas, i) => {
      if (strips[i]) canvas.getContext("2d").drawImage(strips[i], 0, row * height, width, height, 0, 0, width, height);
    });
    this.imagined.dataset.moment = header.moment;
    this.imagined.dataset.row = row;
    if (row === 0 || header.jump) this.drawEntropy(header);
    this.frameShown(header);
  }

  drawEntropy(header) {
    this.overlay.hidden = !(this.entropyOn && header.entropy);
    if (this.overlay.hidden) return;
    const context = this.overlay.getContext("2d");
    const image = context.createImageData(this.overlay.width, this.overlay.height);
    header.entropy.forEach((nats, i) => {
      const strength = Math.min(1, nats / SCALE_NATS);
      image.data.set([255, 60, 180, 165 * strength], 4 * i);
    });
    context.putImageData(image, 0, 0);
  }

  // Frames shown in each of the last seconds, on average.
  get fps() {
    const now = performance.now();
    this.shown = this.shown.filter((time) => now - time < 2000);
    return this.shown.length / 2;
  }

  // The delay that a share of the keys stays below; undefined without any.
  delay(share) {
    const sorted = [...this.delays].sort((a, b) => a - b);
    return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  }
}
