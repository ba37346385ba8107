"use strict";
const form = document.querySelector("form");
const colours = JSON.parse(form.dataset.colours);
const list = document.getElementById("rows");
const rows = Array.from(list.children);
const series = JSON.parse(form.dataset.series);
const steps = JSON.parse(form.dataset.steps);
const fields = form.elements;
const painted = new WeakMap();
let ordered = "index";

// Colours

function paint(text, chosen, own) {
  const tokens = Array.from(text.querySelectorAll("[data-v]"));
  const values = tokens.map(token => token.dataset.v.split(" ")[chosen]).map(v => v === "" ? null : Number(v));
  let limit = series[chosen].limit, middle = 0;
  if (own) {
    const known = values.filter(v => v !== null);
    middle = known.reduce((sum, v) => sum + v, 0) / (known.length || 1);
    limit = Math.max(...known.map(v => Math.abs(v - middle))) || 1;
  }
  tokens.forEach((token, i) => {
    const share = values[i] === null ? 0 : (values[i] - middle) / limit;
    const rgb = share > 0 ? colours.good : colours.bad;
    token.style.background = `rgba(${rgb}, ${colours.strongest * Math.min(Math.abs(share), 1)})`;
    token.classList.toggle("low", share <= -colours.low);
  });
}

function number(magnitude) {
  return magnitude >= 0.1 ? magnitude.toFixed(2) : magnitude.toPrecision(2);
}

function describe(chosen, own) {
  const {limit, ends} = series[chosen];
  const legend = form.querySelector(".legend");
  legend.querySelector(".from").textContent = own ? "below its mean" : `\u2212${number(limit)} ${ends[0]}`;
  legend.querySelector(".to").textContent = own ? "above its mean" : `${ends[1]} \u2265 +${number(limit)}`;
  legend.querySelector(".dots").textContent = own ? "half of the way down" : `\u2212${number(colours.low * limit)}`;
}

// Which rows, in which order

function update() {
  const order = fields.order.value, chosen = Number(fields.series.value || 0), own = fields.scale.value === "own";
  const prompt = fields.prompt.value, step = steps[Number(fields.step.value)];
  // All completions of one prompt stand below each other; of all prompts, those of one step.
  const every = steps.length < 2 || prompt !== "";
  fields.step.disabled = every;
  fields.at.textContent = every ? "all" : `${step} of ${steps[steps.length - 1]}`;
  let shown = 0;
  if (order !== ordered) {
    rows.sort((a, b) => a.dataset[order] - b.dataset[order] || a.dataset.index - b.dataset.index);
    list.append(...rows);
    ordered = order;
  }
  for (const row of rows) {
    row.hidden = prompt !== "" && row.dataset.prompt !== prompt || !every && Number(row.dataset.step) !== step;
    shown += row.hidden ? 0 : 1;
    const wanted = `${chosen} ${own}`;
    if (!row.hidden && painted.get(row) !== wanted) {
      row.querySelectorAll(".text").forEach(text => paint(text, chosen, own));
      painted.set(row, wanted);
    }
  }
  if (series.length) describe(chosen, own);
  fields.shown.textContent = shown + " shown";
  hide();
}

// The numbers of a token

const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);
let current = null;

function hide() {
  if (current) current.classList.remove("at");
  current = null;
  tip.hidden = true;
}

function show(token) {
  hide();
  if (token.title) {  // or the browser would show it too
    token.dataset.numbers = token.title;
    token.removeAttribute("title");
  }
  current = token;
  token.classList.add("at");
  tip.textContent = token.textContent.trim() + "\n" + token.dataset.numbers;
  tip.hidden = false;
  tip.style.left = 0;  // its width is not to be that of the room at its last place
  const at = token.getClientRects()[0];
  const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = at.bottom + tip.offsetHeight + 8 < window.innerHeight;
  tip.style.left = Math.max(8, left) + window.scrollX + "px";
  tip.style.top = (below ? at.bottom + 6 : at.top - tip.offsetHeight - 6) + window.scrollY + "px";
}

for (const type of ["pointerover", "click"]) {
  document.addEventListener(type, event => {
    const token = event.target.closest ? event.target.closest("[data-v]") : null;
    if (token) show(token);
    else if (current && current.parentElement !== document.activeElement) hide();
  });
}
list.addEventListener("focusin", event => {
  const text = event.target.closest(".text");
  if (text && !(current && text.contains(current))) {
    const token = text.querySelector("[data-v]");
    if (token && text.matches(":focus-visible")) show(token);
  }
});
list.addEventListener("focusout", hide);
list.addEventListener("keydown", event => {
  const text = event.target.closest(".text");
  if (!text) return;
  const tokens = Array.from(text.querySelectorAll("[data-v]"));
  const place = tokens.indexOf(current);
  const forward = getComputedStyle(text).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
  const targets = {Home: 0, End: tokens.length - 1, ArrowRight: place - 1, ArrowLeft: place - 1};
  targets[forward] = place + 1;
  if (event.key === "Escape") hide();
  else if (event.key in targets && tokens.length) {
    event.preventDefault();
    const token = tokens[Math.max(0, Math.min(targets[event.key], tokens.length - 1))];
    token.scrollIntoView({block: "nearest"});
    show(token);
  }
});

list.querySelectorAll(".text").forEach(text => { text.tabIndex = 0; });
const wanted = {series: series.length > 1, prompts: fields.prompt.length > 1, steps: steps.length > 1};
form.querySelectorAll("[data-if]").forEach(label => { label.hidden = !wanted[label.dataset.if]; });
fields.step.max = Math.max(0, steps.length - 1);
fields.step.value = fields.step.max;
form.addEventListener("input", update);
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
update();
