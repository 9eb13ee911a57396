// The page: joins the connection, the screen, the controls and the settings.

import { makeControls } from "./actions.js";
import { Connection } from "./connection.js";
import { Screen } from "./screen.js";

const $ = (id) => document.getElementById(id);
let hello, screen, controls, inputs = 0;
let state = { running: false, branch: 0, branches: [] };
let moments = [], shownMoment = null, rewindTo = null;

const connection = new Connection({
  open() {
    $("connection").textContent = "";
  },

  close() {
    document.body.classList.add("gone");
    if (!$("connection").dataset.ended) {
      tellEnd("The connection is closed. Reload the page to play again.");
    }
  },

  ended({ reason }) {
    tellEnd(`${reason} Reload the page to play again.`);
    connection.socket.close();
  },

  error({ message }) {
    rewindTo = null;
    tell(message.charAt(0).toUpperCase() + message.slice(1));
  },

  saved({ address, name, path }) {
    const link = document.createElement("a");
    Object.assign(link, { href: address, download: name, textContent: name, id: "saved" });
    tell(path ? `Saved to ${path}: ` : "Saved: ", link);
    link.click();
  },

  hello(message) {
    hello = message;
    document.title = `${hello.world} · imagined live`;
    $("world").textContent = hello.world;
    document.documentElement.style.setProperty("--aspect", `${hello.width} / ${hello.height}`);
    screen = new Screen(hello, showMoment);
    controls = makeControls(hello.actions, (action, begins) => {
      inputs += 1;
      if (state.running) screen.given(inputs);
      connection.send("hold", { id: inputs, action });
      const rests = JSON.stringify(action) === JSON.stringify(hello.actions.rest);
      if (begins && !state.running && !state.over && !rests) run();
    });
    controls?.build($("pad"));
    $("pad").hidden = !controls;
    $("guidance-row").hidden = !hello.guidable;
    $("entropy-row").hidden = hello.maxEntropy === null;
    $("temperature").max = hello.maxTemperature;
    $("guidance").max = hello.maxGuidance;
    buildPrompts();
    buildKeys();
    document.body.classList.add("ready");
    setInterval(measure, 250);
    requestAnimationFrame(pollGamepad);
  },

  state(message) {
    if (message.branches.length > 1 && message.branch > Math.max(...state.branches.map(({ id }) => id), 0)) {
      tell(`Branch ${message.branch + 1} began.`);
    }
    state = { ...message, over: state.over };
    showState();
  },

  moment(header, strips, arrived) {
    moments = header.moments;
    screen.add(header, strips, arrived);
  },
});

function run() {
  connection.send("run");
  state.running = true;
  showState();
}

function pause() {
  connection.send("pause");
  state.running = false;
  showState();
}

function tell(text, ...more) {
  $("news").replaceChildren(text, ...more);
  $("news").classList.add("shown");
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => $("news").classList.remove("shown"), more.length ? 15000 : 5000);
}

function tellEnd(text) {
  $("connection").textContent = text;
  $("connection").dataset.ended = "true";
}

function showState() {
  $("toggle").firstElementChild.textContent = state.running ? "❚❚" : "▶";
  $("toggle").querySelector(".label").textContent = state.running ? "Pause" : "Play";
  $("start").hidden = state.running || moments.length > 1;
  for (const name of ["temperature", "guidance"]) {
    if (document.activeElement !== $(name)) $(name).value = state[name] ?? 1;
    $(`${name}-value`).textContent = Number($(name).value).toFixed(2);
  }
  $("entropy-switch").checked = Boolean(state.entropy);
  $("legend").hidden = !state.entropy;
  screen.entropyOn = Boolean(state.entropy);
  $("no-real").hidden = !state.noReal;
  $("no-real").textContent = state.noReal ? `No real game here. ${state.noReal}` : "";
  $("real").hidden = Boolean(state.noReal);
  $("real-note").textContent = state.noReal || state.realReplayed ? "" : "from a start of its own";
  document.querySelectorAll("#prompts button").forEach((button, i) => {
    button.setAttribute("aria-pressed", i === state.prompt);
  });
  showBranches();
}

function showBranches() {
  $("branches").replaceChildren(...state.branches.map(({ id, picture }) => {
    const button = document.createElement("button");
    const image = document.createElement("img");
    Object.assign(image, { src: picture, alt: "" });
    button.type = "button";
    button.dataset.branch = id;
    button.setAttribute("aria-current", id === state.branch);
    button.append(image, `Branch ${id + 1}`);
    button.addEventListener("click", () => connection.send("branch", { branch: id }));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

function showMoment(header) {
  shownMoment = header.moment;
  state.over = header.over;
  $("imagined-score").textContent = scoreText(header.score, header.over);
  $("real-score").textContent = scoreText(header.realScore, header.realOver);
  $("reward").textContent = header.reward === null ? "not predicted" : header.reward.toFixed(2);
  if (header.entropy) {
    const mean = header.entropy.reduce((sum, nats) => sum + nats, 0) / header.entropy.length;
    $("mean-entropy").textContent = `${mean.toFixed(2)} nats`;
  } else $("mean-entropy").textContent = "–";
  $("time-of-step").textContent = header.milliseconds ? `${Math.round(header.milliseconds)} ms` : "–";
  if (rewindTo !== null && header.jump) sendRewind();
  showTime();
}

function scoreText(score, over) {
  if (over) return "over";
  return score === null ? "" : `score ${Math.round(10 * score) / 10}`;
}

function showTime() {
  const slider = $("time");
  slider.max = Math.max(0, moments.length - 1);
  const at = moments.indexOf(shownMoment);
  if (rewindTo === null) slider.value = at < 0 ? slider.max : at;
  const behind = ((slider.max - slider.value) * hello.frames) / hello.fps;
  const text = behind ? `${behind.toFixed(1)} s ago` : "now";
  $("when").textContent = text;
  slider.setAttribute("aria-valuetext", text);
}

// Rewinds to where the slider stands; at most one is on its way.
function rewind(index) {
  const waiting = rewindTo !== null;
  rewindTo = moments[Math.max(0, Math.min(moments.length - 1, index))];
  state.running = false;
  if (!waiting) {
    connection.send("rewind", { moment: rewindTo });
    rewind.sent = rewindTo;
  }
}

function sendRewind() {
  const wanted = rewindTo;
  rewindTo = null;
  if (wanted !== rewind.sent && moments.includes(wanted)) rewind(moments.indexOf(wanted));
}

function buildPrompts() {
  $("prompts").replaceChildren(...hello.prompts.map(({ name, picture }, i) => {
    const button = document.createElement("button");
    const image = document.createElement("img");
    Object.assign(image, { src: picture, alt: name });
    button.type = "button";
    button.append(image);
    button.addEventListener("click", () => reset(i));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

function buildKeys() {
  const rows = [...(controls?.legend() ?? []), ["P", "play, pause"], ["N", "one step"], ["[ and ]", "back, forth"],
    ["R", "reset"], ["E", "entropy"]];
  $("keys").replaceChildren(...rows.flatMap(([key, meaning]) => {
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    const box = document.createElement("kbd");
    box.textContent = key;
    term.append(box);
    text.textContent = meaning;
    return [term, text];
  }));
}

function reset(prompt) {
  state.over = false;
  controls?.releaseAll();
  connection.send("reset", prompt === undefined ? {} : { prompt });
}

function step() {
  state.running = false;
  connection.send("step");
}

function switchEntropy(on) {
  connection.send("entropy", { on });
  state.entropy = on;
  showState();
}

function measure() {
  const fps = screen.fps;
  $("fps").textContent = fps ? fps.toFixed(0) : "–";
  const [half, most] = [screen.delay(0.5), screen.delay(0.95)];
  $("latency").textContent = half === undefined ? "–" : `${half.toFixed(0)} ms (95%: ${most.toFixed(0)})`;
  $("latency").dataset.p95 = most ?? "";
}

function pollGamepad() {
  const pad = navigator.getGamepads?.().find(Boolean);
  controls?.gamepad(pad ?? { axes: [], buttons: [] }); // one that is unplugged lets go
  requestAnimationFrame(pollGamepad);
}

const shortcuts = {
  KeyP: () => (state.running ? pause() : run()),
  KeyN: step,
  KeyR: () => reset(),
  KeyE: () => switchEntropy(!state.entropy),
  BracketLeft: () => rewind(moments.indexOf(rewindTo ?? shownMoment) - 1),
  BracketRight: () => rewind(moments.indexOf(rewindTo ?? shownMoment) + 1),
};

document.addEventListener("keydown", (event) => {
  if (!hello || controls?.keydown(event)) return;
  const plain = !(event.ctrlKey || event.metaKey || event.altKey);
  if (plain && shortcuts[event.code]) {
    event.preventDefault();
    shortcuts[event.code]();
  }
});
document.addEventListener("keyup", (event) => controls?.keyup(event));
window.addEventListener("blur", () => controls?.held && controls.releaseAll()); // sliders stay where they are
document.addEventListener("visibilitychange", () => {
  if (document.hidden && state.running) pause();
});
// A button that was clicked with the pointer gives the focus back, so that Space fires and does not click it again.
document.addEventListener("click", (event) => {
  if (event.detail && event.target.closest("button")) $("stage").focus({ preventScroll: true });
});

$("start").addEventListener("click", run);
$("toggle").addEventListener("click", () => (state.running ? pause() : run()));
$("step").addEventListener("click", step);
$("reset").addEventListener("click", () => reset());
$("save").addEventListener("click", () => connection.send("save"));
$("time").addEventListener("input", () => {
  rewind(Number($("time").value));
  showTime();
});
$("entropy-switch").addEventListener("change", (event) => switchEntropy(event.target.checked));
for (const name of ["temperature", "guidance"]) {
  $(name).addEventListener("input", () => {
    $(`${name}-value`).textContent = Number($(name).value).toFixed(2);
    clearTimeout(measure.timer);
    measure.timer = setTimeout(() => connection.send("sampler", {
      temperature: Number($("temperature").value),
      guidance: hello.guidable ? Number($("guidance").value) : 1,
    }), 150);
  });
}
