// The player's actions: keys, buttons, sliders and a gamepad, by the meanings of the world's actions.

const WORDS = ["UP", "DOWN", "LEFT", "RIGHT", "FIRE"];
const KEYS = {
  ArrowUp: "UP", ArrowDown: "DOWN", ArrowLeft: "LEFT", ArrowRight: "RIGHT", Space: "FIRE",
  KeyW: "UP", KeyS: "DOWN", KeyA: "LEFT", KeyD: "RIGHT",
};
const SIGNS = { UP: "▲", DOWN: "▼", LEFT: "◀", RIGHT: "▶", FIRE: "FIRE" };
const PAD_BUTTONS = { 0: "FIRE", 1: "FIRE", 12: "UP", 13: "DOWN", 14: "LEFT", 15: "RIGHT" };
const DEAD_ZONE = 0.12; // of a gamepad's axes, for continuous components

// "UPRIGHTFIRE" -> ["UP", "RIGHT", "FIRE"]; null for a meaning that is not made of these words.
export function parts(meaning) {
  let rest = meaning.toUpperCase().replace(/[\s_+-]/g, "");
  if (["NOOP", "NOTHING", "NONE"].includes(rest)) return [];
  const found = [];
  while (rest) {
    const word = WORDS.find((one) => rest.startsWith(one));
    if (!word) return null;
    found.push(word);
    rest = rest.slice(word.length);
  }
  return found;
}

// The action for what is held, oldest first: the one that uses most of it, and of several the newest.
export function choose(combinations, held, rest) {
  let best = rest, most = [0, -1];
  for (const { index, words } of combinations) {
    if (!words.length || !words.every((word) => held.includes(word))) continue;
    const score = [words.length, words.reduce((sum, word) => sum + 2 ** held.indexOf(word), 0)];
    if (score[0] > most[0] || (score[0] === most[0] && score[1] > most[1])) [best, most] = [index, score];
  }
  return best;
}

function isControl(element) {
  return element instanceof Element && element.closest("input, select, textarea, button, a, summary");
}

class Discrete {
  constructor(actions, change) {
    this.change = change;
    this.rest = actions.rest;
    this.held = []; // words, and indices of actions that have no words, oldest first
    this.sources = new Map(); // what holds each of them: keys, pointers, the gamepad
    this.combinations = [];
    this.others = [];
    actions.meanings.forEach((meaning, index) => {
      const words = parts(meaning);
      if (words) this.combinations.push({ index, words });
      else if (index !== actions.rest) this.others.push({ index, meaning });
    });
    this.words = WORDS.filter((word) => this.combinations.some(({ words }) => words.includes(word)));
  }

  press(what, source) {
    if (!this.sources.has(what)) this.sources.set(what, new Set());
    this.sources.get(what).add(source);
    if (!this.held.includes(what)) this.held.push(what);
    this.update();
  }

  release(what, source) {
    const sources = this.sources.get(what);
    if (!sources?.delete(source) || sources.size) return;
    this.held = this.held.filter((one) => one !== what);
    this.update();
  }

  releaseAll() {
    this.sources.clear();
    this.held = [];
    this.update();
  }

  update() {
    const other = this.held.findLast((what) => typeof what === "number");
    const action = other ?? choose(this.combinations, this.held, this.rest);
    document.querySelectorAll("#pad [data-what]").forEach((button) => {
      button.classList.toggle("held", this.held.some((what) => String(what) === button.dataset.what));
    });
    this.change(action, true);
  }

  // What a key stands for; undefined for none.
  keyed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return undefined;
    const word = KEYS[event.code];
    if (word && this.words.includes(word)) {
      const takesIt = event.code === "Space" || event.code.startsWith("Arrow");
      return takesIt && isControl(event.target) ? undefined : word;
    }
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
    return digit ? this.others[(Number(digit[1]) + 9) % 10]?.index : undefined;
  }

  keydown(event) {
    const what = this.keyed(event);
    if (what === undefined) return false;
    event.preventDefault();
    if (!event.repeat) this.press(what, event.code);
    return true;
  }

  keyup(event) {
    const word = KEYS[event.code];
    if (word) this.release(word, event.code);
    this.others.forEach(({ index }) => this.release(index, event.code));
  }

  gamepad(pad) {
    const down = new Set();
    for (const [index, word] of Object.entries(PAD_BUTTONS)) if (pad.buttons[index]?.pressed) down.add(word);
    const [x = 0, y = 0] = pad.axes;
    if (Math.abs(x) > 0.5) down.add(x < 0 ? "LEFT" : "RIGHT");
    if (Math.abs(y) > 0.5) down.add(y < 0 ? "UP" : "DOWN");
    for (const word of this.words) {
      if (down.has(word)) {
        if (!this.sources.get(word)?.has("gamepad")) this.press(word, "gamepad");
      } else this.release(word, "gamepad");
    }
  }

  build(place) {
    const button = (what, label, name) => {
      const element = document.createElement("button");
      element.type = "button";
      element.dataset.what = what;
      element.className = typeof what === "number" ? "other" : what.toLowerCase();
      element.textContent = label;
      element.setAttribute("aria-label", name);
      element.addEventListener("pointerdown", (event) => {
        event.preventDefault(); // the focus stays with the game
        element.setPointerCapture(event.pointerId);
        this.press(what, `pointer ${event.pointerId}`);
      });
      for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
        element.addEventListener(end, (event) => this.release(what, `pointer ${event.pointerId}`));
      }
      const keys = (event, act) => {
        if (event.code !== "Space" && event.code !== "Enter") return;
        event.preventDefault();
        if (!event.repeat) act(what, `button ${event.code}`);
      };
      element.addEventListener("keydown", (event) => keys(event, this.press.bind(this)));
      element.addEventListener("keyup", (event) => keys(event, this.release.bind(this)));
      element.addEventListener("contextmenu", (event) => event.preventDefault());
      return element;
    };
    const cross = document.createElement("div");
    cross.className = "cross";
    for (const word of this.words.filter((one) => one !== "FIRE")) {
      cross.append(button(word, SIGNS[word], word.toLowerCase()));
    }
    if (cross.childElementCount) place.append(cross);
    if (this.words.includes("FIRE")) place.append(button("FIRE", "FIRE", "fire"));
    if (this.others.length) {
      const list = document.createElement("div");
      list.className = "others";
      for (const { index, meaning } of this.others) list.append(button(index, meaning, `action ${meaning}`));
      place.append(list);
    }
  }

  legend() {
    const rows = [];
    if (this.words.some((word) => word !== "FIRE")) rows.push(["Arrows, WASD", "move"]);
    if (this.words.includes("FIRE")) rows.push(["Space", "fire"]);
    this.others.slice(0, 10).forEach(({ meaning }, i) => rows.push([String((i + 1) % 10), meaning]));
    return rows;
  }
}

class Continuous {
  constructor(actions, change) {
    Object.assign(this, { actions, change, values: [...actions.rest], inputs: [], pushed: new Set() });
  }

  show(index, value) {
    this.values[index] = value;
    this.inputs[index].value = value;
    this.inputs[index].nextElementSibling.textContent = this.text(index);
  }

  text(index) {
    return this.actions.whole[index] ? String(this.values[index]) : this.values[index].toFixed(2);
  }

  build(place) {
    this.actions.meanings.forEach((meaning, index) => {
      const row = document.createElement("label");
      row.className = "component";
      row.append(/^\d+$/.test(meaning) ? `Action ${meaning}` : meaning);
      const input = document.createElement("input");
      const [low, high] = [this.actions.low[index], this.actions.high[index]];
      const step = this.actions.whole[index] ? 1 : "any";
      Object.assign(input, { type: "range", min: low, max: high, step, value: this.values[index] });
      input.addEventListener("input", () => {
        this.show(index, Number(input.value));
        this.change([...this.values], true);
      });
      const output = document.createElement("output");
      output.textContent = this.text(index);
      row.append(input, output);
      this.inputs.push(input);
      place.append(row);
    });
    const middle = document.createElement("button");
    Object.assign(middle, { type: "button", textContent: "Let go" });
    middle.addEventListener("click", () => this.releaseAll());
    place.append(middle);
  }

  // All components in one change: the server would play the actions between.
  releaseAll() {
    this.actions.rest.forEach((value, index) => this.show(index, value));
    this.change([...this.values], false);
  }

  gamepad(pad) {
    let changed = false, begins = false;
    this.values.forEach((before, index) => {
      const axis = Math.max(-1, Math.min(1, pad.axes[index] ?? 0)); // some drivers go beyond
      const away = Math.abs(axis) > DEAD_ZONE;
      if (!away && !this.pushed.delete(index)) return; // at rest the slider's value counts
      if (away && !this.pushed.has(index)) {
        this.pushed.add(index);
        begins = true;
      }
      const value = away ? this.at(index, axis) : this.actions.rest[index];
      if (value === before) return;
      this.show(index, value);
      changed = true;
    });
    if (changed) this.change([...this.values], begins);
  }

  // A component's value: at rest for 0, its bounds for -1 and 1.
  at(index, axis) {
    const [low, rest, high] = [this.actions.low[index], this.actions.rest[index], this.actions.high[index]];
    const value = rest + Math.abs(axis) * ((axis < 0 ? low : high) - rest);
    const within = Math.max(low, Math.min(high, value)); // rounding may go beyond
    return this.actions.whole[index] ? Math.round(within) : within;
  }

  keydown() {
    return false;
  }

  keyup() {}

  legend() {
    return [["Sliders, gamepad", "actions"]];
  }
}

// `change(action, begins)` is called whenever the player holds another action. `begins`: by a new movement, not by one
// that goes on.
export function makeControls(actions, change) {
  let last = JSON.stringify(actions.rest);
  const changed = (action, begins) => {
    const now = JSON.stringify(action);
    if (now === last) return;
    last = now;
    change(action, begins);
  };
  if (actions.kind === "none") return null;
  return actions.kind === "discrete" ? new Discrete(actions, changed) : new Continuous(actions, changed);
}
